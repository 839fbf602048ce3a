"""Pictures of what is kept of models, and of what that costs in quality."""

import base64
import html
import io
import os

import matplotlib.figure
import matplotlib.ticker

from bert_pruning.data.task import stored_title
from bert_pruning.delivery import curves
from bert_pruning.delivery import fronts
from bert_pruning.delivery import report as reports_

PAGE = ".html"

_COLUMNS = 3

_STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:76em}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}"
    "th,td{border:1px solid #ccc;padding:.25em .6em;text-align:right}"
    "th:first-child,td:first-child{text-align:left}"
    "img{max-width:100%}pre{overflow-x:auto;background:#f6f6f6;padding:1em}"
)


def draw_reports(reports, path):
    """Draws checkpoints side by side.

    Heads and neurons of each layer; where all have results of one task, its
    primary metric against size, operations, zeros and, if measured, latency,
    with the Pareto front; and the loss of those that are runs.

    Args:
        reports: sequence of `report.Report`.
        path: str. What to write: a picture, or a page of HTML in one file, with
            the table and all that is known of each checkpoint. The extension
            says which.

    Raises:
        ValueError: if matplotlib does not know the format.
        OSError: if the file cannot be written.
    """
    figure = _draw(reports)
    if not path.endswith(PAGE):
        figure.savefig(path)
        return
    with open(path, "w", encoding="utf-8") as file:
        file.write(_page(reports, figure))


def _draw(reports):
    panels = [
        lambda axis: _draw_units(
            axis, reports, "heads", lambda config: config.num_heads
        ),
        lambda axis: _draw_units(
            axis, reports, "neurons", lambda config: config.intermediate_sizes
        ),
    ]
    metric = _common_metric(reports)
    if metric:
        panels += [
            lambda axis, cost=cost: _draw_quality(axis, reports, metric, *cost)
            for cost in _costs(reports)
        ]
    losses = [curves.read_losses(report.path) for report in reports]
    if any(losses):
        panels.append(lambda axis: _draw_losses(axis, losses))
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    lines = -(-len(reports) // columns)
    figure = matplotlib.figure.Figure(
        figsize=(4.6 * columns, 4.0 * rows + 0.25 * lines),
        dpi=120,
        layout="constrained",
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, draw in zip(axes, panels, strict=False):
        draw(axis)
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        fontsize="small",
    )
    return figure


def _costs(reports):
    """Yields a title and the values of all reports."""
    yield "parameters, millions", [r.whole.size / 1e6 for r in reports]
    yield (
        f"encoder operations on {reports_.LENGTH} tokens, millions",
        [r.macs / 1e6 for r in reports],
    )
    if any(report.pruned.size for report in reports):
        yield (
            "zeros in the encoder's kernels, %",
            [100 * r.encoder.sparsity for r in reports],
        )
        yield "MB gzipped", [r.compressed_bytes / 1e6 for r in reports]
    for number, latency in enumerate(reports[0].latencies):
        yield (
            f"milliseconds, {latency.setting.title}",
            [r.latencies[number].milliseconds for r in reports],
        )


def _draw_units(axis, reports, title, sizes_of):
    for number, report in enumerate(reports):
        row = sizes_of(report.config)
        label = _short(report.path)
        axis.plot(range(len(row)), row, label=label, **fronts.style(number))
    axis.set_xlabel("layer")
    axis.set_ylabel(f"{title} kept")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))


def _draw_quality(axis, reports, metric, title, values):
    qualities = [report.results[metric] for report in reports]
    fronts.draw(
        axis,
        list(zip(values, qualities, strict=True)),
        [_short(report.path) for report in reports],
        title,
        metric,
        more_is_better=title.startswith("zeros"),
    )


def _draw_losses(axis, losses):
    for number, found in enumerate(losses):
        if found:
            axis.plot(*found, color=f"C{number % 10}", linewidth=1)
    axis.set_xlabel("step")
    axis.set_ylabel("training loss")


def _page(reports, figure):
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    encoded = base64.b64encode(picture.getvalue()).decode()
    header, rows = reports_.table(reports)
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>bert_pruning</title><style>{_STYLE}</style></head><body>",
        f"<h1>{len(reports)} model{'s' * (len(reports) > 1)}</h1>",
        "<table>",
        _row("th", header),
        *(_row("td", row) for row in rows),
        "</table>",
        f'<p><img alt="Units kept, quality and costs, losses" '
        f'src="data:image/png;base64,{encoded}"></p>',
    ]
    for report in reports:
        text = reports_.as_text([report])
        lines += [
            f"<details><summary>{html.escape(report.path)}</summary>",
            f"<pre>{html.escape(text)}</pre></details>",
        ]
    return "\n".join([*lines, "</body></html>", ""])


def _row(kind, cells):
    inner = "".join(f"<{kind}>{html.escape(x)}</{kind}>" for x in cells)
    return f"<tr>{inner}</tr>"


def _common_metric(reports):
    """The primary metric of the one task that all runs are of, or None."""
    task = reports[0].task
    metric = task.get("primary_metric")
    titles = {stored_title(report.task) for report in reports}
    if len(titles) > 1:
        return None
    found = all(metric in report.results for report in reports)
    return metric if found else None


def _short(path):
    parts = os.path.normpath(path).split(os.sep)
    return "/".join(parts[-2:])
