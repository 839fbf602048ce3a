"""How sparse, where and when: the schedule, the targets and the masks.

Plain values and NumPy. `pruning.py` carries it out in a model.
"""

import dataclasses
import fnmatch

import numpy as np

from bert_pruning.errors import UserError

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
