"""What applies where a user says nothing. Imports nothing, so that ``--help`` shows it at once."""

from __future__ import annotations

from typing import Final

ENERGY_KEY = "energy"
FORCES_KEY = "forces"
STRESS_KEY = "stress"
ID_KEY = "sid"
ENERGY_UNITS = "eV"
FORCE_UNITS = "eV/Ang"
STRESS_UNITS = "eV/Ang^3"

REQUIRE = ("energy", "forces")
MIN_DISTANCE = 0.5  # Å
MAX_FORCE = 50.0  # eV/Å

SPLIT = (0.9, 0.05, 0.05)
SEED = 0
SHARD_ROWS = 50_000
OC20_SHARD_ROWS = 500_000  # of All+MD, 345 files, each of which a training keeps open

# Published sets: 95 % of SPICE's molecules for training and validation, 95 % of MPtrj's materials for training.
SPICE_ENERGIES: Final = ("formation", "total")
SPICE_SELECTIONS: Final = ("mace-off", "all")
SPICE_SPLIT = (0.93, 0.02, 0.05)
MPTRJ_ENERGIES: Final = ("corrected", "uncorrected")
MPTRJ_SPLIT = (0.95, 0.05)
MPTRJ_SPLIT_BY = "mp_id"
MOLECULE_SETS: Final = ("md22", "rmd17")

DEMO_TRAIN = 2000
DEMO_EVALUATED = 200
DEMO_FORMATS: Final = ("lmdb", "aselmdb")
