"""What a killed run resumes from: weights, masks, slots and progress."""

import json

import tensorflow as tf

from bert_pruning.errors import UserError
from bert_pruning.modeling.official import READER_ERRORS


class Snapshots:
    """The checkpoints in a run's `checkpoint/`, of which the last is kept.

    Args:
        run: run.Run.

    Example:

    ```python
    snapshots = Snapshots(run)
    snapshots.track(model)
    snapshots.save(step, {"train_time": 1.5})
    progress = snapshots.restore()
    ```
    """

    def __init__(self, run):
        self.run = run
        self.manager = None
        self._progress = tf.Variable("", dtype=tf.string)

    def track(self, model):
        """Makes a `DistillationModel` the one that is saved and restored."""
        parts = {
            "student": model.student,
            "optimizer": model.optimizer,
            "steps_done": model.steps_done,
            "progress": self._progress,
        }
        if model.magnitudes is not None:
            parts["magnitudes"] = model.magnitudes
        if model.pruner is not None and model.pruner.shadows:
            parts["shadows"] = model.pruner.shadows
        self.manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(**parts),
            str(self.run.path("checkpoint")),
            max_to_keep=1,
        )

    @property
    def latest(self):
        """The path of the last checkpoint, or None."""
        return tf.train.latest_checkpoint(str(self.run.path("checkpoint")))

    @property
    def latest_step(self):
        """The step of the last checkpoint, 0 without one."""
        return int(self.latest.rpartition("-")[2]) if self.latest else 0

    def save(self, step, progress):
        """Saves the tracked model after a step.

        Args:
            step: int. Optimizer steps done.
            progress: dict. Anything else to restore, as JSON.

        Raises:
            UserError: if there is no space; the one before is unchanged.
        """
        self._progress.assign(json.dumps(progress))
        try:
            self.manager.save(checkpoint_number=step)
        except (OSError, tf.errors.OpError) as error:
            raise UserError(
                f"Cannot save a checkpoint to {self.run.directory}: {error}. "
                "Free some space; the checkpoint before is unchanged, and "
                "the same command resumes from it."
            ) from error

    def restore(self):
        """Puts the last checkpoint into the tracked model.

        Returns:
            The `progress` saved with it, or None: there is no checkpoint.

        Raises:
            UserError: if it is damaged.
        """
        if not self.latest:
            return None
        try:
            checkpoint = self.manager.checkpoint
            checkpoint.restore(self.latest).assert_consumed()
        except (AssertionError, *READER_ERRORS) as error:
            raise UserError(
                f"The checkpoint to resume from, {self.latest}, is damaged: "
                f"{error}. Start anew with --overwrite."
            ) from error
        return json.loads(self._progress.numpy())
