"""Runs optimizer steps: traced once, micro-batched, spread over replicas."""

import numpy as np
import tensorflow as tf


class Stepper:
    """Runs the steps of one `DistillationModel` in the current strategy.

    Args:
        model: step.DistillationModel, compiled.
        label_dtype: NumPy dtype. Of the labels of the batches.
        accumulation: int. Micro-batches per step.

    Example:

    ```python
    losses = Stepper(model, np.int32).run(batch)
    ```
    """

    def __init__(self, model, label_dtype, accumulation=1):
        self.model = model
        self.accumulation = accumulation
        self.strategy = strategy = tf.distribute.get_strategy()
        self._specs = batch = model.specs(label_dtype)
        # Per-replica values have no public spec; batches of other lengths
        # must not each be a trace of their own.
        signature = None
        if strategy.num_replicas_in_sync == 1:
            share = tf.TensorSpec((), tf.float32)
            index = tf.TensorSpec((), tf.int64)
            signature = [batch, share, index]

        def reduce(losses):
            return {
                name: strategy.reduce(tf.distribute.ReduceOp.SUM, value, None)
                for name, value in losses.items()
            }

        @tf.function(input_signature=signature, reduce_retracing=True)
        def step(batch, share, index):
            del index
            return reduce(strategy.run(model.train_step, (batch, share)))

        @tf.function(input_signature=signature, reduce_retracing=True)
        def accumulate(batch, share, index):
            arguments = (batch, share, index)
            return reduce(strategy.run(model.accumulate_step, arguments))

        @tf.function
        def apply():
            strategy.run(model.apply_step)

        self._step, self._accumulate, self._apply = step, accumulate, apply

    def run(self, batch):
        """Runs one optimizer step.

        Args:
            batch: dict of arrays, the three inputs and `label`.

        Returns:
            A dict of float32 scalars, the losses of the whole batch.
        """
        self.model.begin_step(batch)
        size = len(batch["label"])
        pieces = np.array_split(np.arange(size), self.accumulation)
        pieces = [piece for piece in pieces if len(piece)]
        if len(pieces) == 1:
            return self._step(*self._distribute(batch, pieces[0], size, 0))
        losses = [
            self._accumulate(*self._distribute(batch, piece, size, index))
            for index, piece in enumerate(pieces)
        ]
        self._apply()
        return {name: sum(loss[name] for loss in losses) for name in losses[0]}

    def _distribute(self, batch, rows, size, index):
        """Divides the rows of a batch over the replicas, with their share."""
        names = tuple(self._specs)
        index = tf.constant(index, tf.int64)
        replicas = self.strategy.num_replicas_in_sync
        if replicas == 1:
            values = {name: tf.constant(batch[name][rows]) for name in names}
            return values, tf.constant(len(rows) / size, tf.float32), index
        # A replica without rows repeats one, with no say in the result.
        parts = [
            (part, len(part) / size) if len(part) else (rows[:1], 0.0)
            for part in np.array_split(rows, replicas)
        ]
        spread = self.strategy.experimental_distribute_values_from_function

        def part_of(name):
            return spread(
                lambda context: tf.constant(
                    batch[name][parts[context.replica_id_in_sync_group][0]]
                )
            )

        share = spread(
            lambda context: tf.constant(
                parts[context.replica_id_in_sync_group][1], tf.float32
            )
        )
        return {name: part_of(name) for name in names}, share, index
