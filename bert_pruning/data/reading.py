"""Reads a task's split into texts and labels.

Labels are mapped by their strings, never by position. Every malformed row is
an error that names file and line, except where the official file is known to
have them (`Task.skip_malformed`).

    examples = read_examples(get_task("MRPC"), "glue_data", "dev")
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np
from absl import logging

from bert_pruning.data.tables import Table
from bert_pruning.data.tables import find_file
from bert_pruning.data.tables import read_table
from bert_pruning.data.task import Task
from bert_pruning.errors import UserError

_WHOLE_NUMBER = re.compile(r"[+-]?\d+")


@dataclasses.dataclass
class Examples:
    """The rows of one split, in the order of the file.

    Args:
        text_a: list of str. First texts.
        text_b: list of str or None. Second texts, if the task has them.
        labels: array or None. int32 classes, float32 scores, or None where
            the file has no labels.
        ids: list of str. The file's own ids, or the row numbers from 0.
        skipped: int. Malformed rows that were left out.
    """

    text_a: list[str]
    text_b: list[str] | None
    labels: np.ndarray | None
    ids: list[str]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.text_a)


def read_examples(task: Task, data_dir: str, split: str) -> Examples:
    """Reads the texts and labels of one split.

    Args:
        task: `Task`.
        data_dir: str. The folder that holds one folder per task, or the
            task's own folder, or "tfds" for TensorFlow Datasets.
        split: str. A key of `task.splits`.

    Returns:
        `Examples`.

    Raises:
        UserError: the split, its file or a column is missing, or a row has a
            wrong number of fields, an unknown label, a score that is no
            number or out of range, or no text; with file and line.

    Example:

    ```
    examples = read_examples(get_task("CoLA"), "glue_data", "dev")
    print(examples.text_a[0], examples.labels[0])
    ```
    """
    if split not in task.splits:
        raise UserError(
            f"{task.name} has no split {split!r}. "
            f"Choose one of {', '.join(task.splits)}."
        )
    if data_dir == "tfds":
        return _read_tfds_examples(task, split)
    wanted = task.splits[split]
    is_test = split.startswith("test")
    texts = [name for name in (wanted.text_a, wanted.text_b) if name]
    ids = [wanted.index] if wanted.index else []
    labels = [wanted.label] if wanted.label else []
    table = read_table(
        find_file(data_dir, task.folder, wanted.file),
        columns=[*texts, *ids, *([] if is_test else labels)],
        # One's own test file may come with the answers or without.
        optional=labels if is_test else [],
        header=wanted.header,
        skip_malformed=task.skip_malformed and not is_test,
    )
    if table.malformed:
        logging.warning(
            "%s: skipped %d malformed rows, the first at line %d.",
            table.path,
            len(table.malformed),
            table.malformed[0],
        )
    if not task.skip_malformed:
        _check_texts(table, texts)
    return Examples(
        text_a=table.columns[wanted.text_a],
        text_b=table.columns[wanted.text_b] if wanted.text_b else None,
        labels=_parse_labels(task, table, wanted.label),
        ids=table.columns[wanted.index]
        if wanted.index
        else [str(row) for row in range(len(table.lines))],
        skipped=len(table.malformed),
    )


def find_classes(table: Table, column: str) -> tuple[str, ...]:
    """Finds the classes of a column of labels.

    Args:
        table: `Table`.
        column: str. The column of the labels.

    Returns:
        tuple of str. The different labels: whole numbers by size, others in
        alphabetical order.

    Raises:
        UserError: a label is empty, there is only one label, or so many that
            they cannot be classes.
    """
    texts = [text.strip() for text in table.columns[column]]
    if "" in texts:
        line = table.lines[texts.index("")]
        raise UserError(f"{table.path}:{line}: no label in column {column!r}.")
    labels = set(texts)
    if len(labels) < 2:
        raise UserError(
            f"{table.path}: every label in column {column!r} is {texts[0]!r}: "
            "there is nothing to learn."
        )
    if len(labels) > max(10, len(texts) // 2):
        raise UserError(
            f"{table.path}: column {column!r} has {len(labels)} different "
            f"labels in {len(texts)} rows. Is it another column, or are the "
            "labels scores (--regression)?"
        )
    if all(_WHOLE_NUMBER.fullmatch(label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def has_scores(table: Table, column: str) -> bool:
    """Tells scores (`3.5`) from classes (words or whole numbers).

    Args:
        table: `Table`.
        column: str. The column of the labels.

    Returns:
        bool. True if every label is a number and not all of them are whole.

    Raises:
        UserError: the column holds such numbers and something else.
    """
    texts = [text.strip() for text in table.columns[column]]
    numbers = [_parse_score(text) for text in texts]
    fraction = next(
        (
            text
            for text, number in zip(texts, numbers, strict=True)
            if number is not None and not _WHOLE_NUMBER.fullmatch(text)
        ),
        None,
    )
    if fraction is None:
        return False
    if None in numbers:
        row = numbers.index(None)
        raise UserError(
            f"{table.path}:{table.lines[row]}: column {column!r} holds scores "
            f"such as {fraction}, but here {texts[row]!r}. Mend the row, or "
            "say that the labels are classes (--noregression)."
        )
    return True


def read_tfds(config: str, split: str) -> tuple[dict[str, list], list | None]:
    """Reads one split of GLUE through TensorFlow Datasets.

    TFDS shuffles the examples when it prepares a data set. They are put back
    into the order of the official file, which a GLUE submission needs.

    Args:
        config: str. The name of the task in TFDS, such as "sst2".
        split: str. The name of the split in TFDS, such as "validation".

    Returns:
        The features as a dict of lists, "label" and "idx" among them, and the
        names of the labels in the order of their ids (None for scores).

    Raises:
        UserError: TFDS is not installed, or cannot prepare the data set.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            "--data_dir=tfds needs TensorFlow Datasets: "
            "pip install tensorflow-datasets"
        ) from error
    builder = tfds.builder(f"glue/{config}")
    try:
        builder.download_and_prepare()
    except Exception as error:  # Each way of lacking a network has its own.
        raise UserError(
            f"TensorFlow Datasets could not prepare glue/{config}: {error}"
        ) from error
    dataset = builder.as_dataset(split=split, batch_size=4096)
    batches = list(tfds.as_numpy(dataset))
    order = np.argsort(np.concatenate([batch["idx"] for batch in batches]))
    features = {}
    for name in batches[0]:
        values = np.concatenate([batch[name] for batch in batches])[order]
        features[name] = [
            value.decode("utf-8") if isinstance(value, bytes) else value
            for value in values.tolist()
        ]
    return features, getattr(builder.info.features["label"], "names", None)


def _read_tfds_examples(task: Task, split: str) -> Examples:
    if not task.tfds:
        raise UserError(f"{task.name} is not in TensorFlow Datasets.")
    config, *texts = task.tfds
    features, names = read_tfds(config, task.splits[split].tfds)
    if task.splits[split].label is None:
        labels = None  # TFDS writes -1.
    elif task.is_regression:
        labels = np.asarray(features["label"], np.float32)
    else:
        ids = [task.label_id(name) for name in names]
        if None in ids:
            raise UserError(
                f"TensorFlow Datasets has other labels for {task.name}. "
                f"Received: {names}"
            )
        labels = np.asarray(ids, np.int32)[features["label"]]
    return Examples(
        text_a=features[texts[0]],
        text_b=features[texts[1]] if len(texts) > 1 else None,
        labels=labels,
        ids=[str(index) for index in features["idx"]],
    )


def _check_texts(table: Table, columns: Sequence[str]) -> None:
    blank = [
        [not text.strip() for text in table.columns[name]] for name in columns
    ]
    lines = []
    for row, blanks in enumerate(zip(*blank, strict=True)):
        if all(blanks):
            raise UserError(
                f"{table.path}:{table.lines[row]}: no text in "
                f"{' and '.join(columns)}."
            )
        if any(blanks):
            lines.append(table.lines[row])
    if lines:
        logging.warning(
            "%s: %d pairs lack one of their texts, the first at line %d.",
            table.path,
            len(lines),
            lines[0],
        )


def _parse_labels(
    task: Task, table: Table, column: str | None
) -> np.ndarray | None:
    if column not in table.columns:
        return None
    ids = {label: i for i, label in enumerate(task.labels)}
    low, high = task.score_range or (-math.inf, math.inf)
    limits = f" from {low:g} to {high:g}" if task.score_range else ""
    labels = []
    for row, text in enumerate(table.columns[column]):
        text = text.strip()
        if task.is_regression:
            label = _parse_score(text)
            expected = f"a score{limits}"
            if label is not None and not low <= label <= high:
                label = None
        else:
            label = ids.get(text)
            expected = f"one of {', '.join(ids)}"
        if label is None:
            raise UserError(
                f"{table.path}:{table.lines[row]}: expected {expected} in "
                f"column {column!r}. Received: {text!r}"
            )
        labels.append(label)
    return np.asarray(labels, np.float32 if task.is_regression else np.int32)


def _parse_score(text: str) -> float | None:
    try:
        score = float(text)
    except ValueError:
        return None
    return score if math.isfinite(score) else None
