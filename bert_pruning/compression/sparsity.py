"""Magnitude pruning of Dense kernels, executed by tfmot's wrappers.

`Sparsity` says which kernels are masked and when. `wrap` puts tfmot's
`prune_low_magnitude` around them and `Pruner` drives it: the masks change
between steps and are re-applied right after every optimizer step, so each
forward pass, evaluation and checkpoint sees sparse weights and a pruned
weight never comes back.

tfmot on its own masks before the forward pass only (after each step the
kernels are dense again until the epoch ends), and sorts every weight at each
update. Here the threshold is selected, not sorted for.
"""

import concurrent.futures
import dataclasses
import fnmatch

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tensorflow_model_optimization.python.core.sparsity.keras import (
    pruning_impl,
)

from bert_pruning.compression import costs
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert

ENCODER_KERNELS = (
    "layer_*_query",
    "layer_*_key",
    "layer_*_value",
    "layer_*_intermediate",
    "layer_*_output",  # of attention too: layer_0_attention_output
)


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """Which kernels are masked, how sparse, and at which steps.

    Sparsity rises from `initial` to `final` along the cubic of Zhu and Gupta,
    `s(t) = final + (initial - final) * (1 - progress)**3`, in updates
    `frequency` steps apart from `begin_step` on, the last at `end_step`.

    Args:
        final: float in [0, 1). Share of zeros in each kernel at the end.
        initial: float in [0, final]. Share of zeros at `begin_step`; with
            `initial == final` pruning is one-shot.
        begin_step: int. Optimizer steps done before the ramp begins.
        end_step: int. Optimizer steps done when the ramp ends.
        frequency: int. Steps between two updates; 0 takes a hundredth of the
            ramp, at least 1.
        targets: tuple of str. Shell patterns of Dense layer names.
        m_by_n: pair of ints or None. Pattern of m zeros in n consecutive
            weights of a column, (2, 4) for sparse tensor cores; applied once,
            at `begin_step`.
        block_size: pair of ints. Rows and columns of the blocks that are kept
            or zeroed as one.
        block_pooling_type: "AVG" or "MAX". Magnitude of a block.

    Raises:
        UserError: if a value is out of range or two contradict each other.

    Example:

    ```python
    sparsity = Sparsity(final=0.95, end_step=1000)
    sparsity.at(500)  # 0.83125
    ```

    Reference: [To prune, or not to prune](https://arxiv.org/abs/1710.01878).
    """

    final: float
    initial: float = 0.0
    begin_step: int = 0
    end_step: int = 0
    frequency: int = 0
    targets: tuple[str, ...] = ENCODER_KERNELS
    m_by_n: tuple[int, int] | None = None
    block_size: tuple[int, int] = (1, 1)
    block_pooling_type: str = "AVG"

    def __post_init__(self):
        for name in ("final", "initial"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                flag = "sparsity" if name == "final" else "initial_sparsity"
                raise UserError(
                    f"--{flag} must lie in [0, 1). Received: {value}."
                )
        if self.initial > self.final:
            raise UserError(
                "--initial_sparsity must not be above --sparsity. Received: "
                f"{self.initial} and {self.final}."
            )
        if not 0 <= self.begin_step <= self.end_step:
            raise UserError(
                "The sparsity ramp must end after it begins. Received: begin "
                f"at step {self.begin_step}, end at step {self.end_step}."
            )
        if self.frequency < 0:
            raise UserError(
                "--pruning_frequency counts steps and cannot be negative. "
                f"Received: {self.frequency}."
            )
        if self.frequency > max(1, self.end_step - self.begin_step):
            raise UserError(
                f"--pruning_frequency={self.frequency} is longer than the "
                f"ramp of {self.end_step - self.begin_step} steps; nothing "
                "would be pruned on the way. Lower it, or leave it out for a "
                "hundredth of the ramp."
            )
        if not self.frequency:
            ramp = self.end_step - self.begin_step
            object.__setattr__(self, "frequency", max(1, round(ramp / 100)))
        if self.m_by_n is not None:
            zeros, group = self.m_by_n
            if not 0 < zeros < group:
                raise UserError(
                    "--sparsity_m_by_n needs m zeros out of n weights, "
                    f"0 < m < n. Received: {zeros}x{group}."
                )
            if abs(zeros / group - self.final) > 1e-3:
                raise UserError(
                    f"--sparsity_m_by_n={zeros}x{group} fixes the sparsity at "
                    f"{zeros / group:g}. Received: --sparsity={self.final:g}."
                )
            object.__setattr__(self, "final", zeros / group)
            if self.block_size != (1, 1):
                raise UserError(
                    "--sparsity_m_by_n and --block_size are two patterns; "
                    "give one of them."
                )
        if min(self.block_size) < 1:
            raise UserError(
                "--block_size needs two positive sizes. Received: "
                f"{self.block_size}."
            )
        if self.block_pooling_type not in ("AVG", "MAX"):
            raise UserError(
                "--block_pooling_type must be AVG or MAX. Received: "
                f"{self.block_pooling_type}."
            )

    def at(self, step):
        """Returns the scheduled sparsity after `step` optimizer steps."""
        if step < self.begin_step:
            return 0.0
        # A pattern of m zeros in n has no ramp.
        if step >= self.end_step or self.m_by_n is not None:
            return self.final
        ramp = self.end_step - self.begin_step
        progress = (step - self.begin_step) / ramp
        return self.final + (self.initial - self.final) * (1 - progress) ** 3

    def updates_at(self, step):
        """Whether the masks change after `step` optimizer steps."""
        if self.m_by_n is not None:
            return step == self.begin_step
        if step == self.end_step:
            return True
        on_ramp = self.begin_step <= step < self.end_step
        return on_ramp and (step - self.begin_step) % self.frequency == 0


def kept_count(size, sparsity):
    """Number of weights that survive: floor(size * (1 - sparsity)), >= 1.

    Args:
        size: int. Weights in the matrix.
        sparsity: float in [0, 1).

    Example:

    ```python
    kept_count(768 * 768, 0.95)  # 29491
    ```
    """
    # 1000 * (1 - 0.9) is 99.99999999999997 in binary; it means 100.
    return max(1, int(round(size * (1.0 - sparsity), 6)))


def magnitude_mask(weights, sparsity, mask=None):
    """Keeps the weights of largest magnitude, exactly `kept_count` of them.

    Among equal magnitudes the first in memory order stays. What `mask` has
    removed stays removed.

    Args:
        weights: float array of any shape.
        sparsity: float in [0, 1). Share of zeros wanted.
        mask: array of 0 and 1 of the same shape, or None. The mask so far.

    Returns:
        A pair: the smallest magnitude kept, and the bool mask.

    Example:

    ```python
    _, mask = magnitude_mask(np.array([0.1, -3.0, 2.0, 0.5]), 0.5)
    mask  # [False, True, True, False]
    ```
    """
    magnitudes = np.abs(weights).ravel()
    alive = magnitudes
    if mask is not None:
        unpruned = np.ravel(mask) != 0
        alive = magnitudes[unpruned]
    kept = min(kept_count(magnitudes.size, sparsity), alive.size)
    if kept == 0:
        return 0.0, np.zeros(weights.shape, bool)
    position = alive.size - kept
    threshold = np.partition(alive, position)[position]
    selected = magnitudes >= threshold
    if mask is not None:
        selected &= unpruned
    surplus = np.count_nonzero(selected) - kept
    if surplus:
        ties = np.flatnonzero((magnitudes == threshold) & selected)
        selected[ties[ties.size - surplus :]] = False
    return float(threshold), selected.reshape(weights.shape)


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


def find_targets(kernels, sparsity):
    """Returns the names of the layers whose kernels are pruned.

    Args:
        kernels: dict from the name of a Dense layer to its kernel's rows and
            columns; None for columns not known yet.
        sparsity: Sparsity.

    Raises:
        UserError: if a target pattern fits no layer, or the blocks do not
            divide a kernel.
    """
    targets = set()
    for pattern in sparsity.targets:
        found = fnmatch.filter(kernels, pattern)
        if not found:
            raise UserError(
                f"--prune_targets: {pattern!r} fits no Dense layer. Layers: "
                f"{', '.join(kernels)}."
            )
        targets.update(found)
    height, width = sparsity.block_size
    for name in sorted(targets):
        rows, columns = kernels[name]
        if rows % height or (columns or 0) % width:
            raise UserError(
                f"--block_size={height}x{width} does not divide the kernel of "
                f"{name}, {rows} x {columns}."
            )
    return targets


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
