"""Models side by side: how fast, how large, how good."""

import dataclasses
import os

import matplotlib.figure

from bert_pruning.data.task import stored_title
from bert_pruning.delivery import fronts
from bert_pruning.delivery import runners
from bert_pruning.delivery import tables
from bert_pruning.delivery.latency import Measured
from bert_pruning.errors import UserError
from bert_pruning.training.run import read_results


@dataclasses.dataclass(frozen=True)
class Quality:
    """How good a model was when it was last scored.

    Args:
        metric: str. Such as "eval_accuracy".
        value: float.
        task: str or None. Its task, and which data of one's own.
    """

    metric: str
    value: float
    task: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A model.

    Args:
        measured: latency.Measured.
        quality: Quality or None.
    """

    measured: Measured
    quality: Quality | None

    def to_dict(self):
        """Returns plain values, for JSON."""
        return {
            "model": self.measured.name,
            "bytes": self.measured.num_bytes,
            "quality": self.quality and dataclasses.asdict(self.quality),
            "latencies": [each.to_dict() for each in self.measured.latencies],
        }


def read_quality(name):
    """Returns the primary metric of a run or an export, or None.

    Args:
        name: str. See `runners`.
    """
    _, path = runners.split_peer(name)
    exported = runners.read_export(path)
    if exported:
        metric = exported.get("primary_metric")
        value = exported.get(f"{metric}_file")
        if exported.get("split", "dev") != "dev":
            return None
        task = exported.get("task")
        return None if value is None else Quality(metric, value, task)
    try:
        block = runners.read_config(path).get("bert_pruning") or {}
        results = read_results(os.path.join(path, "eval_results.txt"))
    except (ValueError, UserError):
        return None
    task = block.get("task") or {}
    metric = task.get("primary_metric")
    value = results.get(metric)
    return None if value is None else Quality(metric, value, stored_title(task))


def as_markdown(rows):
    """Formats a table: a row for each model, a column for each setting.

    Latencies are medians, with those that 95 % of the batches kept to in
    brackets, how many examples a second that makes, and how much faster than
    the first model that is.
    """
    metrics = list(
        dict.fromkeys(row.quality.metric for row in rows if row.quality)
    )
    settings = [each.setting for each in rows[0].measured.latencies]
    header = [
        "model",
        *(metric.removeprefix("eval_") for metric in metrics),
        "MB",
        *(
            f"{each.batch_size} of {each.length}, ms (95 %), a second"
            for each in settings
        ),
    ]
    lines = []
    first = rows[0].measured
    for row in rows:
        cells = [row.measured.name]
        for metric in metrics:
            has_it = row.quality and row.quality.metric == metric
            cells.append(f"{row.quality.value:.4f}" if has_it else "")
        cells.append(f"{row.measured.num_bytes / 1e6:.1f}")
        for latency, before in zip(
            row.measured.latencies, first.latencies, strict=True
        ):
            cell = (
                f"{latency.milliseconds:.2f} ({latency.milliseconds_95:.2f}), "
                f"{latency.examples_per_second:.0f}"
            )
            if row is not rows[0]:
                ratio = before.milliseconds / latency.milliseconds
                cell += f" x{ratio:.1f}"
            cells.append(cell)
        lines.append(cells)
    return tables.as_markdown(header, lines)


def draw(rows, path):
    """Draws quality against latency and bytes.

    Args:
        rows: sequence of Row. Only those are drawn that are scored on the task
            of the first that is scored at all.
        path: str. The picture to write; the extension says the format.

    Returns:
        A list of str: the models that were left out.

    Raises:
        OSError: if the file cannot be written.
    """
    first = next(row for row in rows if row.quality)
    alike = [row for row in rows if _scored_on(row) == _scored_on(first)]
    others = [row.measured.name for row in rows if row not in alike]
    figure = matplotlib.figure.Figure(figsize=(10, 4.2), dpi=120)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, title, costs in (
        (
            axes[0],
            f"milliseconds, {first.measured.latencies[0].setting.title}",
            [row.measured.latencies[0].milliseconds for row in alike],
        ),
        (axes[1], "MB", [row.measured.num_bytes / 1e6 for row in alike]),
    ):
        qualities = [row.quality.value for row in alike]
        fronts.draw(
            axis,
            list(zip(costs, qualities, strict=True)),
            [row.measured.name for row in alike],
            title,
            first.quality.metric,
        )
        axis.set_xscale("log")
        axis.grid(alpha=0.3, which="both")
    axes[1].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path)
    return others


def _scored_on(row):
    """What may be drawn together: one metric of one task; None: not scored."""
    return row.quality and (row.quality.metric, row.quality.task)
