"""Magnitude pruning of Dense kernels, executed by tfmot's wrappers.

`wrap` puts tfmot's `prune_low_magnitude` around the kernels that a `Sparsity`
names, and `Pruner` drives it: the masks change between steps and are re-applied
right after every optimizer step, so each forward pass, evaluation and
checkpoint sees sparse weights and a pruned weight never comes back.

tfmot on its own masks before the forward pass only (after each step the
kernels are dense again until the epoch ends), and sorts every weight at each
update. Here the threshold is selected, not sorted for.
"""

import concurrent.futures

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tensorflow_model_optimization.python.core.sparsity.keras import (
    pruning_impl,
)

from bert_pruning.compression import costs
from bert_pruning.compression.sparsity import find_targets
from bert_pruning.compression.sparsity import magnitude_mask
from bert_pruning.modeling import bert


class MagnitudePruning(pruning_impl.Pruning):
    """tfmot's mask logic with a selected threshold, driven from outside.

    The block and m-by-n patterns are tfmot's own.
    """

    sparsity = 0.0

    def conditional_mask_update(self):
        # `Pruner.update` changes the masks between steps.
        return tf.no_op()

    def weight_mask_op(self):
        # `Pruner.apply_masks` has masked the kernels after the last step.
        return tf.no_op()

    def update(self, sparsity):
        """Computes and assigns the masks for one sparsity."""
        self.sparsity = sparsity
        for weight, mask, threshold in self._pruning_vars:
            if self._block_size == [1, 1] and not self._sparsity_m_by_n:
                limit, selected = magnitude_mask(
                    weight.numpy(), sparsity, mask.numpy()
                )
            else:
                limit, selected = self._maybe_update_block_mask(
                    tf.convert_to_tensor(weight.numpy())
                )
                selected = np.logical_and(selected, mask.numpy())
            threshold.assign(limit)
            mask.assign(np.asarray(selected, np.float32))

    def _update_mask(self, weights):
        threshold, mask = magnitude_mask(weights.numpy(), self.sparsity)
        return threshold, tf.constant(mask, weights.dtype)


class Pruner(keras.callbacks.Callback):
    """Drives the pruning wrappers of one model.

    In a loop of one's own, call it after each optimizer step; in Keras' `fit`,
    pass it as a callback.

    Args:
        model: a model from `wrap`.
        sparsity: Sparsity. What to prune and when.

    Example:

    ```python
    model = wrap(build_model(config, num_outputs=2), sparsity)
    pruner = Pruner(model, sparsity)
    for step, batch in enumerate(batches, start=1):
        ...  # forward, backward, optimizer step
        pruner.apply_masks()
        pruner.update(step)
    ```

    ```python
    model.fit(dataset, callbacks=[pruner])
    pruner.check_reached()
    ```
    """

    def __init__(self, model, sparsity):
        super().__init__()
        self.sparsity = sparsity
        self.wrappers = {
            wrapper.layer.name: wrapper for wrapper in wrappers_of(model)
        }

    def apply_masks(self):
        """Zeroes the pruned weights again; may run inside a `tf.function`."""

        def mask_all(strategy):
            for wrapper in self.wrappers.values():
                for weight, mask, _ in wrapper.pruning_vars:
                    strategy.extended.update(
                        weight, lambda w, m: w.assign(w * m), args=(mask,)
                    )

        if tf.distribute.in_cross_replica_context():
            mask_all(tf.distribute.get_strategy())
        else:
            tf.distribute.get_replica_context().merge_call(mask_all)

    def update(self, step):
        """Changes the masks if the schedule says so.

        Args:
            step: int. Optimizer steps done.

        Returns:
            Whether the masks were recomputed.
        """
        if not self.sparsity.updates_at(step):
            return False
        target = self.sparsity.at(step)
        if target == 0.0:
            return False
        # Selection runs outside Python's lock, one matrix per core.
        with concurrent.futures.ThreadPoolExecutor() as executor:
            list(
                executor.map(
                    lambda wrapper: wrapper.pruning_obj.update(target),
                    self.wrappers.values(),
                )
            )
        self.apply_masks()
        return True

    def on_train_begin(self, logs=None):
        self.update(int(self.model.optimizer.iterations.numpy()))

    def on_train_batch_end(self, batch, logs=None):
        self.apply_masks()
        self.update(int(self.model.optimizer.iterations.numpy()))

    def measured(self):
        """Returns a `costs.Count` of each target kernel, by layer name."""
        return {
            name: costs.count(wrapper.pruning_vars[0][0].numpy())
            for name, wrapper in self.wrappers.items()
        }

    def check_reached(self):
        """Fails loudly if the final sparsity was missed.

        Raises:
            RuntimeError: if a kernel's sparsity is more than half a percent
                off the target.
        """
        for name, count in self.measured().items():
            # Few, large blocks cannot hit every percentage.
            block = np.prod(self.sparsity.block_size) / count.size
            if abs(count.sparsity - self.sparsity.final) > 0.005 + block:
                raise RuntimeError(
                    f"{name} ended at sparsity {count.sparsity:.4f} instead "
                    f"of {self.sparsity.final:.4f}. The run is not finished."
                )


def wrappers_of(model):
    """Returns the tfmot pruning wrappers of a model, in graph order."""
    return [layer for layer in model.layers if hasattr(layer, "pruning_obj")]


def wrap(model, sparsity):
    """Wraps the target Dense layers with tfmot's `prune_low_magnitude`.

    Args:
        model: a model from `build_model`. It is left as it is.
        sparsity: Sparsity. Its `targets` choose the layers.

    Returns:
        A new model with its own copy of the weights.

    Raises:
        UserError: if a target pattern fits no Dense layer, or the blocks do
            not divide a kernel.

    Example:

    ```python
    sparsity = Sparsity(final=0.8, end_step=100)
    wrapped = wrap(build_model(config, num_outputs=2), sparsity)
    ```
    """
    targets = find_targets(
        {
            layer.name: tuple(layer.kernel.shape)
            for layer in model.layers
            if isinstance(layer, keras.layers.Dense)
        },
        sparsity,
    )
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=sparsity.initial,
        final_sparsity=sparsity.final,
        begin_step=sparsity.begin_step,
        end_step=max(sparsity.end_step, sparsity.begin_step + 1),
        power=3,
        frequency=sparsity.frequency,
    )

    def clone(layer):
        copy = layer.__class__.from_config(layer.get_config())
        if layer.name not in targets:
            return copy
        options = {}
        if sparsity.m_by_n is not None:
            options["sparsity_m_by_n"] = sparsity.m_by_n
        return tfmot.sparsity.keras.prune_low_magnitude(
            copy,
            pruning_schedule=schedule,
            block_size=sparsity.block_size,
            block_pooling_type=sparsity.block_pooling_type,
            **options,
        )

    wrapped = keras.models.clone_model(model, clone_function=clone)
    for wrapper in wrappers_of(wrapped):
        wrapper.pruning_obj = MagnitudePruning(
            training_step_fn=lambda wrapper=wrapper: wrapper.pruning_step,
            pruning_vars=wrapper.pruning_vars,
            pruning_schedule=wrapper.pruning_schedule,
            block_size=wrapper.block_size,
            block_pooling_type=wrapper.block_pooling_type,
            sparsity_m_by_n=wrapper.sparsity_m_by_n,
        )
        # tfmot refuses to train until its own callback has set this.
        wrapper.pruning_step.assign(1)
    bert.set_weights(wrapped, bert.get_weights(model))
    return wrapped
