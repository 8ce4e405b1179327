"""The keys of a configuration that somebody reads.

Taken from what fairchem-core 1.10 and this package's trainer look up; a test compares the lists with fairchem's source.
Keys that only older releases read, and that published configurations still carry, are accepted as well.
"""

from __future__ import annotations

import inspect

from torch.optim import lr_scheduler

from escaip_fairchem.plugin.trainer import EScAIPForcesTrainer


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


TOP = _words(
    "trainer logger task dataset model optim outputs loss_functions evaluation_metrics slurm hide_eval_progressbar",
    "skip_experimental_imports timeout use_cuda_visibile_devices noddp includes",
    # written by the command line
    "mode identifier timestamp_id seed is_debug run_dir print_every amp checkpoint cpu submit summit world_size",
    "distributed_backend gp_gpus local_rank init_method rank",
    # older spellings
    "loss_fns eval_metrics val_dataset test_dataset relax_dataset name",
)
OPTIM = _words(
    "batch_size eval_batch_size num_workers load_balancing load_balancing_on_error lr_initial max_epochs optimizer",
    "optimizer_params weight_decay scheduler scheduler_params warmup_steps warmup_factor lr_gamma lr_milestones",
    "clip_grad_norm ema_decay eval_every checkpoint_every keep_checkpoints amp_dtype tf32",
    "load_datasets_and_model_then_exit use_denoising_pos denoising_pos_params denoising_pos_coefficient",
    # older spellings and places
    "energy_coefficient force_coefficient loss_energy loss_forces loss_force warmup_epochs max_steps",
)
TASK = _words(
    "strict_load trust_checkpoint prediction_dtype predict_free_atoms_only set_deterministic_scatter eval_relaxations",
    "relax_dataset relax_opt relax_cell relax_volume relaxation_steps relaxation_fmax num_relaxation_batches",
    "save_full_traj write_pos",
    # older spellings and places
    "dataset description type metric primary_metric labels grad_input train_on_free_atoms eval_on_free_atoms",
    "relaxation_dir targets prediction_type name",
)
SPLITS = frozenset({"train", "val", "test", "relax"})
DATASET = _words(
    "src format key_mapping transforms metadata_path lin_ref seed first_n sample_n no_shuffle max_atoms max_atom",
    "subset_to splits train_split_settings val_split_settings test_split_settings use_train_settings",
    "a2g_args ase_read_args atoms_transform_args connect_args select_args pattern index_file keep_in_memory use_tqdm",
    "include_relaxed_energy shard total_shards data2train oc20_ref train_on_oc20_total_energies",
    # older spellings
    "normalize_labels target_mean target_std grad_target_mean grad_target_std scale_file oc20_ref_total_energy",
)
OUTPUT = _words(
    "level shape irrep_dim train_on_free_atoms eval_on_free_atoms decomposition parent property prediction_dtype",
    "custom_head",
)
EVALUATION = frozenset({"metrics", "primary_metric"})

OWN_DATASET = {"train": _words("fraction rotations"), "val": _words("at_most")}
"""Keys of the data sets' sections that this package's trainer reads."""

OWN_TRAINERS = _words("escaip_forces", EScAIPForcesTrainer.import_path)
STOCK_TRAINERS = OWN_TRAINERS | _words("ocp energy forces equiformerv2_forces equiformerv2_energy equiformerv2_dens")
"""Trainers whose keys are known. Others may read what they like."""
STOCK_FORMATS = _words("lmdb single_point_lmdb trajectory_lmdb oc22_lmdb ase_read ase_read_multi ase_db")


def scheduler_keys() -> set[str]:
    """Parameters of torch's schedulers, which fairchem takes from ``optim`` itself.

    Those of all schedulers, so that another one can be tried without removing the keys of the last.
    """
    classes = [value for value in vars(lr_scheduler).values() if inspect.isclass(value)]
    schedulers = [value for value in classes if issubclass(value, lr_scheduler.LRScheduler)]
    return {name for scheduler in schedulers for name in inspect.signature(scheduler).parameters} - {"optimizer"}
