"""Metric files and progress display of a training run.

A *row* is a flat mapping with one measurement: `step` (updates made), `epoch` (float,
`step / steps_per_epoch`), `split` ("train" or "test"), and scalars: `loss`, its parts,
`online_top1` and `online_top5` (fractions from 0 to 1), `feature_spread`, `grad_norm`,
`skipped`, `learning_rate`, `images_per_second` and others; `docs/run_directory.md`
lists them.
"""

from duet_jax.loggers.jsonl import JsonLines, read_rows
from duet_jax.loggers.progress import NoProgress, Progress, shown
from duet_jax.loggers.tensorboard import TensorBoard
from duet_jax.loggers.wandb_run import WandB, check_wandb
from duet_jax.loggers.writers import MetricWriter, Writers, open_writers

__all__ = [
    "JsonLines",
    "MetricWriter",
    "NoProgress",
    "Progress",
    "TensorBoard",
    "WandB",
    "Writers",
    "check_wandb",
    "open_writers",
    "read_rows",
    "shown",
]
