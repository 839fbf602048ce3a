"""The table of a sweep: every task, every learning rate, dense and sparse.

    print(summarize([TaskResults("MRPC", ("eval_f1",), "eval_f1", ...)]))

Plain values in, Markdown out; where they come from is not known here.
"""

import dataclasses
import statistics
from collections.abc import Mapping
from collections.abc import Sequence

from bert_pruning.delivery import tables

Results = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class TaskResults:
    """What a sweep found on one task.

    Args:
        name: str. The task.
        metrics: tuple of str. The keys of a result to show.
        primary_metric: str. The key that chooses the best learning rate.
        finetuned: dict from learning rate, as given, to the results of its
            runs, one per seed. A run that failed is left out.
        pruned: sequence of results, one per seed.
    """

    name: str
    metrics: tuple[str, ...]
    primary_metric: str
    finetuned: Mapping[str, Sequence[Results]]
    pruned: Sequence[Results] = ()

    @property
    def treatment(self) -> str:
        """What was done to the models in `pruned`."""
        if any(result["sparsity"] for result in self.pruned):
            return "pruned, distilled"
        return "distilled"

    @property
    def best_learning_rate(self) -> str | None:
        """The one with the highest mean, the first of equals.

        Learning rates that failed with one seed only beat those that failed
        with more, so that luck counts less. None: all failed.
        """
        done = {k: v for k, v in self.finetuned.items() if v}
        if not done:
            return None
        most = max(len(results) for results in done.values())
        done = {k: v for k, v in done.items() if len(v) == most}
        return max(
            done, key=lambda rate: _mean(done[rate], self.primary_metric)
        )


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that ended with an error.

    Args:
        title: str. The run.
        error: str. What went wrong.
        log: str. Path of its full output.
    """

    title: str
    error: str
    log: str = ""


def summarize(
    tasks: Sequence[TaskResults], failures: Sequence[Failure] = ()
) -> str:
    """Writes the results of a sweep as Markdown.

    Args:
        tasks: sequence of `TaskResults`.
        failures: sequence of `Failure`.

    Returns:
        A table of dense and sparse models side by side, one of all learning
        rates, and the list of failures.

    Example:

    >>> run = {
    ...     "eval_accuracy": 0.9,
    ...     "eval_loss": 0.25,
    ...     "sparsity": 0.0,
    ...     "train_time": 90.0,
    ... }
    >>> task = TaskResults(
    ...     "SST-2", ("eval_accuracy",), "eval_accuracy", {"5e-5": [run]}
    ... )
    >>> print(summarize([task]).splitlines()[4])
    | SST-2 | fine-tuned, 5e-5 | 0.0 | 90.00 | 0.2500 | 1.5 |
    """
    sections = [_side_by_side(tasks), _by_learning_rate(tasks)]
    if failures:
        lines = [
            f"- {failure.title}: {failure.error}"
            + (f" (log: {failure.log})" if failure.log else "")
            for failure in failures
        ]
        sections.append("### Failed\n\n" + "\n".join(lines))
    return "\n\n".join(sections) + "\n"


def _side_by_side(tasks):
    used = {metric for task in tasks for metric in task.metrics}
    metrics = [metric for metric in METRIC_NAMES if metric in used]
    rows = []
    for task in tasks:
        rate = task.best_learning_rate
        if rate is None:
            rows.append([task.name, "no result"])
            continue
        models = [(f"fine-tuned, {rate}", task.finetuned[rate])]
        if task.pruned:
            models.append((task.treatment, task.pruned))
        for model, results in models:
            cells = [
                _percent(results, metric) if metric in task.metrics else ""
                for metric in metrics
            ]
            rows.append(
                [
                    task.name,
                    model,
                    f"{100 * _mean(results, 'sparsity'):.1f}",
                    *cells,
                    f"{_mean(results, 'eval_loss'):.4f}",
                    _minutes(results),
                ]
            )
    header = [
        *("Task", "Model", "Sparsity %"),
        *(METRIC_NAMES[metric] for metric in metrics),
        *("Loss", "Training min"),
    ]
    return (
        "### Fine-tuned and pruned, side by side\n\n"
        + tables.as_markdown(header, rows, num_labels=2)
        + "\n\nMetrics are of the dev set, in percent; it also chose the "
        "learning rate and the checkpoint.\nSparsity: the share of zeros in "
        "the encoder's kernels."
    )


def _by_learning_rate(tasks):
    rates = list(dict.fromkeys(r for task in tasks for r in task.finetuned))
    rows = []
    for rate in rates:
        cells = []
        for task in tasks:
            results = task.finetuned.get(rate, ())
            cell = _percent(results, task.primary_metric) or "-"
            best = rate == task.best_learning_rate
            cells.append(f"**{cell}**" if best else cell)
        rows.append([rate, *cells])
    every = [
        [run for results in task.finetuned.values() for run in results]
        for task in tasks
    ]
    rows.append(["training min", *(_minutes(runs) for runs in every)])
    pruned = [_percent(task.pruned, task.primary_metric) for task in tasks]
    if any(pruned):
        treated = dict.fromkeys(task.treatment for task in tasks if task.pruned)
        treatment = " or ".join(treated)
        rows.append([treatment, *pruned])
        minutes = [_minutes(task.pruned) for task in tasks]
        rows.append([f"{treatment}, min", *minutes])
    header = [
        "Learning rate",
        *(f"{task.name} {METRIC_NAMES[task.primary_metric]}" for task in tasks),
    ]
    return "### All learning rates\n\n" + tables.as_markdown(header, rows)


def _mean(results, key):
    return statistics.fmean(result[key] for result in results)


def _percent(results, key):
    """The mean over seeds, with its deviation; MNLI has two dev sets."""
    cells = []
    for split in ("", "_mismatched"):
        values = [100 * r[key + split] for r in results if key + split in r]
        if not values:
            continue
        cell = f"{statistics.fmean(values):.2f}"
        if len(values) > 1:
            cell += f" ± {statistics.stdev(values):.2f}"
        cells.append(cell)
    return " / ".join(cells)


def _minutes(results):
    if not any("train_time" in result for result in results):
        return ""
    return f"{_mean(results, 'train_time') / 60:.1f}"


# In the order of the columns.
METRIC_NAMES = {
    "eval_accuracy": "Accuracy",
    "eval_f1": "F1",
    "eval_mcc": "Matthews",
    "eval_pearson": "Pearson",
    "eval_spearman": "Spearman",
}
