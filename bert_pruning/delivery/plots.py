"""Pictures of what is kept of a model, and of what that costs in quality."""

import os

import matplotlib.figure
import matplotlib.ticker


def draw_reports(reports, path):
    """Draws checkpoints side by side.

    Heads and neurons of each layer, and, where all have results of one task,
    its primary metric against the number of parameters.

    Args:
        reports: sequence of `report.Report`.
        path: str. The picture to write; the extension says the format.

    Raises:
        ValueError: if matplotlib does not know the format.
        OSError: if the file cannot be written.
    """
    metric = _common_metric(reports)
    columns = 3 if metric else 2
    figure = matplotlib.figure.Figure(figsize=(4.6 * columns, 4.2), dpi=120)
    axes = figure.subplots(1, columns)
    names = [_short(report.path) for report in reports]
    for axis, title, sizes in (
        (axes[0], "heads", [r.config.num_heads for r in reports]),
        (axes[1], "neurons", [r.config.intermediate_sizes for r in reports]),
    ):
        for name, row in zip(names, sizes, strict=True):
            axis.plot(range(len(row)), row, marker="o", ms=4, label=name)
        axis.set_xlabel("layer")
        axis.set_ylabel(f"{title} kept")
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(
            matplotlib.ticker.MaxNLocator(integer=True)
        )
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    if metric:
        for number, (name, report) in enumerate(
            zip(names, reports, strict=True)
        ):
            point = report.whole.size / 1e6, report.results[metric]
            axes[2].plot(*point, marker="o", color=f"C{number % 10}")
            axes[2].annotate(
                name,
                point,
                xytext=(5, 4),
                textcoords="offset points",
                fontsize="small",
            )
        axes[2].set_xlabel("parameters, millions")
        axes[2].set_ylabel(metric.removeprefix("eval_"))
        axes[2].margins(x=0.25)
        axes[2].grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def _common_metric(reports):
    """The primary metric of the one task that all runs are of, or None."""
    task = reports[0].task
    metric = task.get("primary_metric")
    if any(report.task.get("name") != task.get("name") for report in reports):
        return None
    found = all(metric in report.results for report in reports)
    return metric if found else None


def _short(path):
    parts = os.path.normpath(path).split(os.sep)
    return "/".join(parts[-2:])
