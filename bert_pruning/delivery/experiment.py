"""What TensorBoard's HParams tab shows of a sweep: its axes and metrics.

    write_experiment("fine_tune_outputs", ["MRPC"], [5e-5, 2e-5], [42],
                     ["eval_f1"])

The runs below the directory write their own values; this names the columns.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams


def write_experiment(
    directory: str | os.PathLike,
    tasks: Sequence[str],
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    metrics: Sequence[str],
) -> None:
    """Describes a sweep to TensorBoard, in place of an earlier description.

    Args:
        directory: path. The folder that holds all runs.
        tasks: sequence of str. Names as the runs log them, `task_name`.
        learning_rates: sequence of float.
        seeds: sequence of int.
        metrics: sequence of str. Keys of the runs' results.
    """
    directory = Path(directory)
    for earlier in directory.glob("events.out.tfevents.*"):
        earlier.unlink()
    with tf.summary.create_file_writer(str(directory)).as_default():
        hparams.hparams_config(
            hparams=[
                hparams.HParam("task_name", hparams.Discrete(tasks)),
                hparams.HParam(
                    "learning_rate", hparams.Discrete(learning_rates)
                ),
                hparams.HParam("seed", hparams.Discrete(seeds)),
            ],
            metrics=[
                hparams.Metric(f"eval/{metric}", display_name=metric)
                for metric in metrics
            ],
        )
