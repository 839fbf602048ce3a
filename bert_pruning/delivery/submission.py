"""Writes predictions as the files that gluebenchmark.com accepts.

    path = write_submission(task, "test", logits, examples.ids, "predictions")

One file per test set (`CoLA.tsv`, `MNLI-m.tsv`, `MNLI-mm.tsv`, `AX.tsv`, ...)
with the columns `index` and `prediction`: the label as the task's files spell
it, or a score cut to the range of the labels with three decimals. Zip the
files of all tasks, without a folder, to submit them.
"""

import collections
import logging
import os
from collections.abc import Sequence

import numpy as np

from bert_pruning.data.task import Task
from bert_pruning.errors import UserError
from bert_pruning.outputs import cannot_write
from bert_pruning.outputs import check_writable

LOG = logging.getLogger("bert_pruning")


def check_submission(
    task: Task, split: str, ids: Sequence[str], output_dir: str
) -> None:
    """Checks all that can be checked before the predictions are made.

    Args:
        task: `Task`.
        split: str. A key of `task.splits`.
        ids: sequence of str. `Examples.ids`.
        output_dir: str. Folder, made if need be.

    Raises:
        UserError: an id repeats, or the folder cannot be written to.
    """
    counts = collections.Counter(ids)
    if len(counts) < len(ids):
        name, count = counts.most_common(1)[0]
        raise UserError(
            f"The {split} file of {task.title} has the id {name!r} {count} "
            f"times in column {task.splits[split].index!r}. Give each row an "
            "id of its own."
        )
    check_writable(output_dir)


def write_submission(
    task: Task,
    split: str,
    logits: np.ndarray,
    ids: Sequence[str],
    output_dir: str,
) -> str:
    """Writes the predictions of one split.

    Args:
        task: `Task`.
        split: str. A key of `task.splits`. A split that GLUE takes no
            predictions of is written to `<TASK>-<split>.tsv`.
        logits: array [examples, task.num_outputs]. In the order of the file.
        ids: sequence of str. `Examples.ids`.
        output_dir: str. Folder, made if need be.

    Returns:
        str. The path of the file.

    Raises:
        UserError: a logit is not finite, an id repeats, or the folder cannot
            be written to.
        ValueError: the numbers of logits and ids differ.
    """
    check_submission(task, split, ids, output_dir)
    logits = np.asarray(logits).astype(np.float64).reshape(len(logits), -1)
    if logits.shape != (len(ids), task.num_outputs):
        raise ValueError(
            f"Expected {task.num_outputs} logits for each of {len(ids)} ids. "
            f"Received: {list(logits.shape)} logits."
        )
    if not np.isfinite(logits).all():
        raise UserError(
            f"A prediction for {task.name} is not finite. The model is "
            "broken; did its training diverge?"
        )
    expected = task.splits[split].num_rows
    if expected and expected != len(ids):
        LOG.warning(
            "GLUE expects %d predictions for %s, not %d: the test file is "
            "not the official one.",
            expected,
            task.splits[split].submission,
            len(ids),
        )
    name = task.splits[split].submission or f"{task.name}-{split}"
    path = os.path.join(output_dir, f"{name}.tsv")
    rows = zip(ids, _format(task, logits), strict=True)
    text = "".join(f"{index}\t{prediction}\n" for index, prediction in rows)
    try:
        with open(f"{path}.tmp", "w", encoding="utf-8", newline="\n") as file:
            file.write("index\tprediction\n" + text)
        os.replace(f"{path}.tmp", path)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def _format(task: Task, logits: np.ndarray) -> list[str]:
    if not task.is_regression:
        return [task.labels[i] for i in logits.argmax(-1)]
    scores = logits[:, 0]
    if task.score_range:
        scores = np.clip(scores, *task.score_range)
    return [f"{score:.3f}" for score in scores]
