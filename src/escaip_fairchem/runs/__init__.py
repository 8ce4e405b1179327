"""What run folders say of trainings, and what SLURM says of their jobs; without fairchem, so that it is quick."""
