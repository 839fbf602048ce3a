"""How sparse, where and when: the schedule, the targets, the pattern.

Plain values. `pruning.py` carries it out in a model.
"""

import dataclasses
import fnmatch

from bert_pruning.compression import costs
from bert_pruning.compression import masks
from bert_pruning.errors import UserError
from bert_pruning.modeling.bitmask import LEAST_PATTERN

ENCODER_KERNELS = (
    "layer_*_query",
    "layer_*_key",
    "layer_*_value",
    "layer_*_intermediate",
    "layer_*_output",  # of attention too: layer_0_attention_output
)


DISTRIBUTIONS = ("uniform", "global", "erdos_renyi")
REGROWTHS = ("none", "shadow", "straight_through")


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """Which kernels are masked, how sparse, and at which steps.

    Sparsity rises from `initial` to `final` along the cubic of Zhu and Gupta,
    `s(t) = final + (initial - final) * (1 - progress)**3`, in updates
    `frequency` steps apart from `begin_step` on, the last of the ramp at
    `end_step`. With a regrowth, later ones choose anew which weights stay.

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
            weights of a column, (2, 4) for sparse tensor cores. On the ramp
            no group has more zeros than that.
        block_size: pair of ints. Rows and columns of the blocks that are kept
            or zeroed as one.
        block_pooling_type: "AVG" or "MAX". Magnitude of a block.
        distribution: "uniform": each kernel has the sparsity. "global": all
            kernels together, by one threshold. "erdos_renyi": small kernels
            keep more of their weights.
        regrowth: "none": a pruned weight is zero for good. "shadow": its
            value is kept beside, and may come back in an update when others
            have become smaller. "straight_through": its gradient moves that
            value on.
        update_end_step: int or None. Optimizer steps done at the last update,
            not before `end_step`; None: `end_step`.
        locked: bool. The masks are the zeros that the kernels have; see
            `find_pattern`.

    Raises:
        UserError: if a value is out of range or two contradict each other.

    Example:

    ```python
    sparsity = Sparsity(final=0.95, end_step=1000)
    sparsity.at(500)  # 0.83125
    ```

    Reference: [To prune, or not to prune](https://arxiv.org/abs/1710.01878),
    [Prune Once for All](https://arxiv.org/abs/2111.05754), [Discovering neural
    wirings](https://arxiv.org/abs/1906.00586).
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
    distribution: str = "uniform"
    regrowth: str = "none"
    update_end_step: int | None = None
    locked: bool = False

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
        self._check_choices()

    def _check_choices(self):
        for name, choices in (
            ("distribution", DISTRIBUTIONS),
            ("regrowth", REGROWTHS),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise UserError(
                    f"--pruning_{name} must be {' or '.join(choices)}. "
                    f"Received: {value}."
                )
        if self.has_pattern and self.distribution != "uniform":
            raise UserError(
                f"--pruning_distribution={self.distribution} is for single "
                "weights, without --sparsity_m_by_n and --block_size."
            )
        if self.update_end_step is None:
            object.__setattr__(self, "update_end_step", self.end_step)
        elif self.update_end_step < self.end_step:
            raise UserError(
                "--pruning_update_end must not be before --pruning_end. "
                f"Received: steps {self.update_end_step} and {self.end_step}."
            )
        elif self.update_end_step > self.end_step and self.regrowth == "none":
            raise UserError(
                "--pruning_update_end needs --pruning_regrowth: without, the "
                "masks of the ramp's end stay."
            )

    @property
    def has_pattern(self):
        """Whether weights are pruned in groups, not one by one."""
        return self.m_by_n is not None or self.block_size != (1, 1)

    def at(self, step):
        """Returns the scheduled sparsity after `step` optimizer steps."""
        if step < self.begin_step:
            return 0.0
        if step >= self.end_step:
            return self.final
        ramp = self.end_step - self.begin_step
        progress = (step - self.begin_step) / ramp
        return self.final + (self.initial - self.final) * (1 - progress) ** 3

    def updates_at(self, step):
        """Whether the masks change after `step` optimizer steps."""
        if self.locked:
            return False
        if step == self.end_step:
            return True
        in_time = self.begin_step <= step <= self.update_end_step
        return in_time and (step - self.begin_step) % self.frequency == 0

    def kept_counts(self, shapes, step):
        """Returns how many weights of each kernel stay after `step` steps.

        Args:
            shapes: list of pairs of ints. Rows and columns of each kernel.
            step: int. Optimizer steps done.

        Returns:
            A list of ints; of the distribution "global" with one, of all
            kernels together.
        """
        sizes = [rows * columns for rows, columns in shapes]
        sparsities = [self.at(step)] * len(sizes)
        if self.distribution == "global":
            sizes, sparsities = [sum(sizes)], sparsities[:1]
        elif self.distribution == "erdos_renyi":
            sparsities = masks.erdos_renyi_sparsities(shapes, self.at(step))
        rounds_up = self.regrowth != "none"
        return [
            masks.kept_count(size, sparsity, rounds_up)
            for size, sparsity in zip(sizes, sparsities, strict=True)
        ]


def find_targets(kernels, sparsity):
    """Returns the names of the layers whose kernels are pruned.

    Args:
        kernels: dict from the name of a Dense layer to its kernel's rows and
            columns; None for columns not known yet.
        sparsity: Sparsity.

    Raises:
        UserError: if a target pattern fits no layer, or blocks or groups do
            not divide a kernel.
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
        if sparsity.m_by_n is not None and rows % sparsity.m_by_n[1]:
            zeros, group = sparsity.m_by_n
            raise UserError(
                f"--sparsity_m_by_n={zeros}x{group} does not divide the "
                f"columns of {name}, of {rows} weights each."
            )
    return targets


def find_pattern(kernels, least=None):
    """Returns the pattern of zeros of a sparse checkpoint, to keep it.

    Args:
        kernels: dict from the name of a Dense layer to its kernel. Those
            without a pattern, less than a percent zeros, stay dense.
        least: float or None. The sparsity of the encoder's kernels that is
            expected, at least.

    Returns:
        A `Sparsity` whose targets are the sparse kernels.

    Raises:
        UserError: if no kernel has a pattern, or too few zeros are there.

    Example:

    ```python
    locked = find_pattern({"layer_0_query": kernel})
    ```

    Reference: [Prune Once for All](https://arxiv.org/abs/2111.05754).
    """
    counts = {name: costs.count(kernel) for name, kernel in kernels.items()}
    targets = tuple(n for n, count in counts.items() if _has_pattern(count))
    if not targets:
        raise UserError(
            "--pruning=lock keeps the zeros of a sparse checkpoint, but this "
            "one is dense. Prune it first, by --pruning=magnitude."
        )
    encoder = _sum(counts, (n for n in counts if n.startswith("layer_")))
    if least is not None and encoder.sparsity < least:
        raise UserError(
            f"--pruning=lock expects --sparsity={least:g}, but only "
            f"{encoder.sparsity:.4f} of the encoder's kernels are zeros, in "
            f"{len(targets)} of {len(counts)}."
        )
    total = _sum(counts, targets)
    return Sparsity(
        final=total.sparsity,
        initial=total.sparsity,
        targets=targets,
        locked=True,
    )


def find_sparse(kernels):
    """Returns the names of those kernels that have a pattern of zeros.

    Args:
        kernels: dict from the name of a Dense layer to its kernel.
    """
    return tuple(
        name
        for name, kernel in kernels.items()
        if _has_pattern(costs.count(kernel))
    )


def _has_pattern(count):
    return count.sparsity >= LEAST_PATTERN


def _sum(counts, names):
    return sum((counts[name] for name in names), start=costs.Count(0, 0))
