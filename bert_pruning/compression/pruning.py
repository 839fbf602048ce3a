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
from bert_pruning.compression import masks
from bert_pruning.compression.sparsity import find_targets
from bert_pruning.modeling import bert


class MagnitudePruning(pruning_impl.Pruning):
    """tfmot's mask of one kernel, selected and driven from outside.

    The pooling of blocks is tfmot's own.
    """

    _kept = 0

    def conditional_mask_update(self):
        # `Pruner.update` changes the masks between steps.
        return tf.no_op()

    def weight_mask_op(self):
        # `Pruner` has masked the kernels after the last step.
        return tf.no_op()

    @property
    def kernel(self):
        return self._pruning_vars[0][0]

    @property
    def mask(self):
        return self._pruning_vars[0][1]

    def assign(self, threshold, selected):
        """Sets the mask."""
        _, mask, limit = self._pruning_vars[0]
        limit.assign(threshold)
        mask.assign(np.asarray(selected, np.float32))

    def select(self, weights, kept, mask):
        """Selects the weights that stay, or the blocks.

        Args:
            weights: array. What they are selected by.
            kept: int. How many weights stay.
            mask: array or None. What is left of them.

        Returns:
            The smallest magnitude kept, and the mask.
        """
        if self._sparsity_m_by_n:
            return masks.m_by_n_mask(weights, kept, self._sparsity_m_by_n, mask)
        if self._block_size == [1, 1]:
            return masks.magnitude_mask(weights, kept, mask)
        self._kept = kept / weights.size
        limit, selected = self._maybe_update_block_mask(
            tf.convert_to_tensor(weights)
        )
        if mask is not None:
            selected = np.logical_and(selected, mask)
        return limit, selected

    def _update_mask(self, weights):
        # Of blocks, one number for each.
        weights = weights.numpy()
        kept = masks.kept_count(weights.size, 1.0 - self._kept)
        threshold, mask = masks.magnitude_mask(weights, kept)
        return threshold, tf.constant(mask, weights.dtype)


class Pruner(keras.callbacks.Callback):
    """Drives the pruning wrappers of one model.

    In a loop of one's own, call it after each optimizer step; in Keras' `fit`,
    pass it as a callback. With a regrowth, `before_update` and `after_update`
    go around each step, as in `DistillationModel`.

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
    model = DistillationModel(model, pruner=pruner)
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
        self.shadows = {}
        if sparsity.regrowth != "none":
            self.shadows = {
                name: tf.Variable(
                    wrapper.layer.kernel, trainable=False, name="shadow"
                )
                for name, wrapper in self.wrappers.items()
            }

    def before_update(self, gradients, variables):
        """Prepares kernels and gradients for the optimizer.

        With a regrowth, the kernels become their shadows; those that are
        pruned do not see gradients, unless these pass straight through. Of a
        locked pattern no gradient counts in the norm either.

        Args:
            gradients: list of tensors.
            variables: list of variables, one for each.

        Returns:
            The gradients that the optimizer is to see.
        """
        for name, shadow in self.shadows.items():
            kernel = self.wrappers[name].layer.kernel
            _update(lambda k, s: k.assign(s), kernel, shadow)
        if self.sparsity.regrowth != "shadow" and not self.sparsity.locked:
            return gradients
        mask_of = {
            wrapper.layer.kernel.ref(): wrapper.pruning_obj.mask
            for wrapper in self.wrappers.values()
        }
        return [
            gradient * mask_of[variable.ref()]
            if variable.ref() in mask_of
            else gradient
            for gradient, variable in zip(gradients, variables, strict=True)
        ]

    def after_update(self):
        """Keeps what the optimizer has made of the shadows, and masks."""
        for name, shadow in self.shadows.items():
            kernel = self.wrappers[name].layer.kernel
            _update(lambda s, k: s.assign(k), shadow, kernel)
        self.apply_masks()

    def apply_masks(self):
        """Zeroes the pruned weights again; may run inside a `tf.function`."""
        for wrapper in self.wrappers.values():
            _update(
                lambda w, m: w.assign(w * m),
                wrapper.layer.kernel,
                wrapper.pruning_obj.mask,
            )

    def update(self, step):
        """Changes the masks if the schedule says so.

        Args:
            step: int. Optimizer steps done.

        Returns:
            Whether the masks were recomputed.
        """
        if not self.sparsity.updates_at(step) or self.sparsity.at(step) == 0.0:
            return False
        objects = [wrapper.pruning_obj for wrapper in self.wrappers.values()]
        kept = self.sparsity.kept_counts(self._shapes(), step)
        if self.shadows:
            weights = [shadow.numpy() for shadow in self.shadows.values()]
            before = [None] * len(objects)
        else:
            weights = [found.kernel.numpy() for found in objects]
            before = [found.mask.numpy() for found in objects]
        if self.sparsity.distribution == "global":
            threshold, selected = masks.global_masks(
                weights, *kept, None if self.shadows else before
            )
            for found, mask in zip(objects, selected, strict=True):
                found.assign(threshold, mask)
        else:
            # Selection runs outside Python's lock, one matrix per core.
            with concurrent.futures.ThreadPoolExecutor() as executor:
                selected = executor.map(
                    MagnitudePruning.select, objects, weights, kept, before
                )
                for found, limit_and_mask in zip(
                    objects, selected, strict=True
                ):
                    found.assign(*limit_and_mask)
        for name, shadow in self.shadows.items():
            self.wrappers[name].layer.kernel.assign(shadow)
        self.apply_masks()
        return True

    def _shapes(self):
        return [tuple(w.layer.kernel.shape) for w in self.wrappers.values()]

    def on_train_begin(self, logs=None):
        if self.shadows and getattr(self.model, "pruner", None) is not self:
            raise ValueError(
                "A regrowth needs DistillationModel(student, pruner=pruner), "
                "which calls before_update and after_update in each step."
            )
        self.update(int(self.model.optimizer.iterations.numpy()))

    def on_train_batch_end(self, batch, logs=None):
        self.apply_masks()
        self.update(int(self.model.optimizer.iterations.numpy()))

    def measured(self):
        """Returns a `costs.Count` of each target kernel, by layer name."""
        return self._count(lambda kernel, mask: kernel)

    def _count(self, choose):
        found = {}
        for name, wrapper in self.wrappers.items():
            kernel, mask, _ = wrapper.pruning_vars[0]
            found[name] = costs.count(choose(kernel, mask).numpy())
        return found

    def check_reached(self):
        """Fails loudly if the final sparsity was missed.

        What is kept may be zero, too, as where heads were filled up.

        Raises:
            RuntimeError: if a kernel has fewer zeros, or its mask more, than
                the target, by more than half a percent.
        """
        counts = self.measured()
        masked = self._count(lambda kernel, mask: mask)
        kept = self.sparsity.kept_counts(
            self._shapes(), self.sparsity.update_end_step
        )
        if self.sparsity.locked or self.sparsity.distribution == "global":
            counts, masked = (
                {"The model": sum(each.values(), costs.Count(0, 0))}
                for each in (counts, masked)
            )
            size = counts["The model"].size
            kept = [size * (1.0 - self.sparsity.final)]
        for (name, count), number in zip(counts.items(), kept, strict=True):
            # Few, large blocks cannot hit every percentage.
            block = np.prod(self.sparsity.block_size) / count.size
            expected = 1.0 - number / count.size
            tolerance = 0.005 + block
            if (
                count.sparsity < expected - tolerance
                or masked[name].sparsity > expected + tolerance
            ):
                raise RuntimeError(
                    f"{name} ended at sparsity {count.sparsity:.4f}, of which "
                    f"{masked[name].sparsity:.4f} by its mask, instead of "
                    f"{expected:.4f}. The run is not finished."
                )


def _update(function, variable, other):
    """Changes a variable by another, on each replica."""

    def change(strategy):
        strategy.extended.update(variable, function, args=(other,))

    if tf.distribute.in_cross_replica_context():
        change(tf.distribute.get_strategy())
    else:
        tf.distribute.get_replica_context().merge_call(change)


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
    if sparsity.locked:
        for wrapper in wrappers_of(wrapped):
            kernel = wrapper.layer.kernel.numpy()
            wrapper.pruning_obj.assign(0.0, kernel != 0.0)
    return wrapped
