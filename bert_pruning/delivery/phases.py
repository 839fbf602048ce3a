"""The phase transition: how good tickets are, by what they leave.

Rows are plain values, one for each trained ticket or whole model; they become
a CSV file, a picture, and the choice of the super ticket.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence

import matplotlib.figure
import numpy as np

from bert_pruning.delivery import tables
from bert_pruning.errors import UserError

# The kinds of tickets, as columns and curves; "full" is the whole model.
_MARKERS = {"winning": "o", "random": "s", "losing": "v"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One trained ticket.

    Args:
        task: str.
        kind: str. "full", "winning", "random" or "losing".
        level: str. Heads and blocks left out, such as "28/2".
        percent_left: float. Of the model's parameters.
        seed: int.
        metric: str. The task's primary metric.
        dev: float. It, on the whole dev set.
        selection: float. It, on the half of the dev set that chooses.
        reported: float. It, on the other half.
        settings: str. Runs of one name were trained alike.
    """

    task: str
    kind: str
    level: str
    percent_left: float
    seed: int
    metric: str
    dev: float
    selection: float
    reported: float
    settings: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """The super ticket of a task: the best winning level, fairly compared.

    Args:
        task: str.
        level: str.
        percent_left: float.
        reported: float. Mean over seeds on the half that did not choose.
        full: float. The whole model's mean on the same half.
    """

    task: str
    level: str
    percent_left: float
    reported: float
    full: float


def split_halves(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides a dev set: rows that choose the level, rows it is reported on.

    Args:
        size: int. Rows. The division is always the same.
    """
    order = np.random.default_rng(0).permutation(size)
    return np.sort(order[: size // 2]), np.sort(order[size // 2 :])


def to_csv(rows: Sequence[Row]) -> str:
    """Returns the rows as the text of a CSV file."""
    stream = io.StringIO()
    fields = [field.name for field in dataclasses.fields(Row)]
    writer = csv.DictWriter(stream, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(dataclasses.asdict, rows))
    return stream.getvalue()


def read_csv(path: str) -> list[Row]:
    """Reads the rows that `to_csv` wrote.

    Raises:
        UserError: if the file is missing or holds something else.
    """
    types = {field.name: field.type for field in dataclasses.fields(Row)}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != list(types):
                raise ValueError(f"its columns are {reader.fieldnames}")
            return [
                Row(**{name: kind(row[name]) for name, kind in types.items()})
                for row in reader
            ]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"Cannot read {path} as a phases.csv: {error}."
        ) from error


def find_levels(rows: Sequence) -> dict[str, list[str]]:
    """Returns each task's levels that can be compared with its whole model.

    Those whose winning tickets have the seeds of the whole model's runs: a
    level of which seeds are missing may have been lucky.

    Args:
        rows: sequence of what has a `task`, `kind`, `level`, `seed` and
            `settings`.

    Raises:
        UserError: if a task has no such level, runs of different settings, or
            something twice that is no random draw.
    """
    found, settings = {}, {}
    for row in rows:
        if settings.setdefault(row.task, row.settings) != row.settings:
            raise UserError(
                f"The runs of {row.task} in the tables were not trained alike: "
                "they differ in more than --seed and --structure."
            )
        seeds = found.setdefault(row.task, {}).setdefault(
            (row.kind, row.level), set()
        )
        if row.seed in seeds and row.kind != "random":
            raise UserError(
                f"{row.task} has the {row.kind} model of level {row.level} and "
                f"seed {row.seed} twice."
            )
        seeds.add(row.seed)
    levels = {}
    for task, groups in found.items():
        full = groups.get(("full", "0/0"), set())
        winning = {
            level: seeds
            for (kind, level), seeds in groups.items()
            if kind == "winning"
        }
        if not full or not winning:
            raise UserError(
                f"Of {task} there are runs of the whole model: {len(full)}; "
                f"of winning tickets: {sum(map(len, winning.values()))}. Both "
                "are needed to compare them."
            )
        levels[task] = [level for level in winning if winning[level] == full]
        if not levels[task]:
            raise UserError(
                f"No level of {task}'s winning tickets has the seeds of its "
                f"whole models, {', '.join(map(str, sorted(full)))}."
            )
    return levels


def find_incomplete(rows: Sequence, levels: dict) -> list[tuple[str, str]]:
    """Returns the task and level of winning tickets that `levels` lacks.

    Args:
        rows: sequence. As `find_levels` takes it.
        levels: dict. As `find_levels` returns it.
    """
    return sorted(
        {
            (row.task, row.level)
            for row in rows
            if row.kind == "winning" and row.level not in levels[row.task]
        }
    )


def choose(rows: Sequence[Row]) -> list[Choice]:
    """Chooses each task's super ticket on one half of its dev set.

    Args:
        rows: sequence of `Row`. With the whole model's and winning tickets'.

    Raises:
        UserError: if a task lacks one of them.
    """
    choices = []
    for task, levels in find_levels(rows).items():
        groups = {}
        for row in rows:
            if row.task == task and row.kind in ("full", "winning"):
                groups.setdefault((row.kind, row.level), []).append(row)
        best = max(
            (groups["winning", level] for level in levels),
            key=lambda group: _mean(group, "selection"),
        )
        choices.append(
            Choice(
                task,
                best[0].level,
                _mean(best, "percent_left"),
                _mean(best, "reported"),
                _mean(groups["full", "0/0"], "reported"),
            )
        )
    return choices


def to_markdown(rows: Sequence[Row]) -> str:
    """Returns a table of means and deviations over the seeds."""
    lines = []
    for task in dict.fromkeys(row.task for row in rows):
        ours = [row for row in rows if row.task == task]
        full = [row.dev for row in ours if row.kind == "full"]
        if lines:
            lines.append("")
        lines += [
            f"{task}, {ours[0].metric}; the whole model {_spread(full)}",
            "",
        ]
        table = []
        levels = {
            row.level: row.percent_left
            for row in sorted(ours, key=lambda row: -row.percent_left)
            if row.kind != "full"
        }
        for level, left in levels.items():
            cells = [
                _spread(
                    [
                        row.dev
                        for row in ours
                        if (row.kind, row.level) == (kind, level)
                    ]
                )
                for kind in _MARKERS
            ]
            table.append([level, f"{left:.1f}", *cells])
        header = ["out", "% left", *_MARKERS]
        lines.append(tables.as_markdown(header, table))
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path) -> None:
    """Draws a panel for each task: the mean and deviation of each kind.

    Args:
        rows: sequence of `Row`.
        path: str. The picture to write; the extension says the format.

    Raises:
        ValueError: if matplotlib does not know the format.
        OSError: if the file cannot be written.
    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    figure = matplotlib.figure.Figure(figsize=(5.2 * len(tasks), 4.2), dpi=120)
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axis, task in zip(axes, tasks, strict=True):
        ours = [row for row in rows if row.task == task]
        full = [row.dev for row in ours if row.kind == "full"]
        if full:
            axis.axhline(np.mean(full), color="gray", ls=":", label="full")
            low, high = _band(full)
            axis.axhspan(low, high, color="gray", alpha=0.12)
        for number, (kind, marker) in enumerate(_MARKERS.items()):
            groups = {}
            for row in ours:
                if row.kind == kind:
                    groups.setdefault(row.level, []).append(row)
            points = sorted(
                (_mean(group, "percent_left"), [row.dev for row in group])
                for group in groups.values()
            )
            if not points:
                continue
            left = [point[0] for point in points]
            color = f"C{number}"
            axis.plot(
                left,
                [np.mean(values) for _, values in points],
                marker=marker,
                color=color,
                label=kind,
            )
            bands = np.array([_band(values) for _, values in points])
            axis.fill_between(left, *bands.T, color=color, alpha=0.15)
        axis.set_xlabel("parameters left, %")
        axis.set_ylabel(ours[0].metric.removeprefix("eval_"))
        axis.set_title(task)
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path)


def _mean(rows, field):
    return float(np.mean([getattr(row, field) for row in rows]))


def _band(values):
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return np.mean(values) - deviation, np.mean(values) + deviation


def _spread(values):
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
