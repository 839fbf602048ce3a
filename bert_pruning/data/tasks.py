"""The tasks: GLUE and a person's own, each one row of plain values.

    task = get_task("MRPC")
    examples = read_examples(task, "glue_data", "dev")

MNLI's labels stand in the order of the official BERT code (contradiction,
entailment, neutral), QNLI's and RTE's in GLUE's (entailment, not_entailment;
the TF1 code turns them round: `tf1_labels`). A model stores its labels: compare
names, not numbers.

Left out: SNLI, XNLI, and the `-` labels of the original MNLI files.
"""

import os
import re
from collections.abc import Mapping

from absl import logging

from bert_pruning.data.reading import Examples
from bert_pruning.data.reading import find_classes
from bert_pruning.data.reading import has_scores
from bert_pruning.data.reading import read_examples
from bert_pruning.data.tables import find_file
from bert_pruning.data.tables import read_table
from bert_pruning.data.task import Split
from bert_pruning.data.task import Task
from bert_pruning.errors import UserError

__all__ = (
    "TASKS",
    "Examples",
    "Split",
    "Task",
    "custom_splits",
    "custom_task",
    "get_task",
    "read_examples",
)


def get_task(name: str, **custom) -> Task:
    """Finds a task by its name, whatever its case and dashes.

    Args:
        name: str. A key of `TASKS`, or "custom".
        **custom: The arguments of `custom_task`, for "custom" only.

    Returns:
        A `Task`.

    Raises:
        UserError: there is no such task.
    """
    key = _plain(name)
    if key == "custom":
        return custom_task(**custom)
    if key == "sstb":
        logging.warning("Taking the task %r for STS-B.", name)
        key = "stsb"
    for task in TASKS.values():
        if _plain(task.name) == key:
            return task
    raise UserError(
        f"Unknown task. Choose one of {', '.join(TASKS)}, or custom, SQuAD, "
        f"SQuAD2, pretraining. Received: --task_name={name}"
    )


def custom_task(
    data_dir: str,
    text_a: str = "text_a",
    text_b: str | None = None,
    label: str = "label",
    regression: bool | None = None,
    files: Mapping[str, str] | None = None,
) -> Task:
    """Describes a person's own data after a look at the training file.

    The folder holds `train`, `dev` and `test`, each a `.tsv` (tabs, no
    quoting) or a `.csv` (RFC 4180) with a header line. Scores such as `3.5`
    make a regression; words or whole numbers make classes, numbered in sorted
    order. The test file needs no label column.

    Args:
        data_dir: str. The folder.
        text_a: str. Column of the first text.
        text_b: str or None. Column of the second text.
        label: str. Column of the label.
        regression: bool or None. Says what the labels are; None: see above.
        files: dict of str or None. Paths by split name, where they are not
            named as above; relative ones are looked for in `data_dir`.

    Returns:
        A `Task` named "custom". Keep its `to_dict()` beside the model: it
        holds the classes, so that the training file is needed no more.

    Raises:
        UserError: a file or column is missing, or the labels make no sense.
    """
    splits = custom_splits(text_a, text_b, label, files)
    columns = [column for column in (text_a, text_b, label) if column]
    table = read_table(find_file(data_dir, "", splits["train"].file), columns)
    if regression is None:
        regression = has_scores(table, label)
    labels = () if regression else find_classes(table, label)
    if regression:
        metrics = ("eval_spearman", "eval_pearson")
    elif len(labels) == 2:
        metrics = ("eval_accuracy", "eval_f1")
    else:
        metrics = ("eval_accuracy",)
    return Task(
        name="custom",
        folder="",
        splits=splits,
        labels=labels,
        metrics=metrics,
        primary_metric=metrics[0],
        data_name=os.path.basename(os.path.abspath(data_dir)),
    )


def custom_splits(
    text_a: str,
    text_b: str | None,
    label: str,
    files: Mapping[str, str] | None = None,
) -> dict[str, Split]:
    """Describes the files of a person's own data; see `custom_task`.

    Raises:
        UserError: a column that is needed has no name.
    """
    for flag, column in (("text_a_column", text_a), ("label_column", label)):
        if not column:
            raise UserError(f"--{flag} needs the name of a column.")
    files = {"train": "train", "dev": "dev", "test": "test", **(files or {})}
    return {
        name: Split(file, text_a, text_b or None, label)
        for name, file in files.items()
    }


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name).lower()


def _glue_splits(
    submission: str,
    num_rows: int,
    text_a: str,
    text_b: str | None = None,
    label: str = "label",
    index: str = "index",
    header: tuple[str, ...] | None = None,
) -> dict[str, Split]:
    """The files of most GLUE tasks; `header`: of train and dev only."""
    texts = (text_a, text_b)
    return {
        "train": Split("train.tsv", *texts, label, header=header, tfds="train"),
        "dev": Split(
            "dev.tsv", *texts, label, header=header, tfds="validation"
        ),
        "test": Split(
            "test.tsv",
            *texts,
            index=index,
            tfds="test",
            submission=submission,
            num_rows=num_rows,
        ),
    }


def _mnli_test(suffix: str, submission: str, num_rows: int) -> Split:
    return Split(
        f"test_{suffix}.tsv",
        "sentence1",
        "sentence2",
        index="index",
        tfds=f"test_{suffix}",
        submission=submission,
        num_rows=num_rows,
    )


def _mnli_labelled(file: str, tfds: str) -> Split:
    return Split(file, "sentence1", "sentence2", "gold_label", tfds=tfds)


_ENTAILMENT_2 = ("entailment", "not_entailment")
_ENTAILMENT_3 = ("contradiction", "entailment", "neutral")
_MRPC_COLUMNS = ("#1 String", "#2 String", "Quality")

_ROWS = (
    Task(
        name="CoLA",
        folder="CoLA",
        splits=_glue_splits(
            "CoLA",
            1063,
            "sentence",
            header=("source", "label", "original", "sentence"),
        ),
        labels=("0", "1"),
        label_names=("unacceptable", "acceptable"),
        metrics=("eval_mcc", "eval_accuracy"),
        primary_metric="eval_mcc",
        tfds=("cola", "sentence"),
    ),
    Task(
        name="SST-2",
        folder="SST-2",
        splits=_glue_splits("SST-2", 1821, "sentence"),
        labels=("0", "1"),
        label_names=("negative", "positive"),
        metrics=("eval_accuracy",),
        primary_metric="eval_accuracy",
        tfds=("sst2", "sentence"),
    ),
    Task(
        name="MRPC",
        folder="MRPC",
        splits=_glue_splits("MRPC", 1725, *_MRPC_COLUMNS),
        labels=("0", "1"),
        label_names=("not_equivalent", "equivalent"),
        metrics=("eval_f1", "eval_accuracy"),
        primary_metric="eval_f1",
        tfds=("mrpc", "sentence1", "sentence2"),
    ),
    # The original files, as the TF1 BERT-Pruning repository reads them: its
    # training set is GLUE's train and dev, its "dev" GLUE's test. Scores of
    # the two tasks cannot be compared.
    Task(
        name="MRPC-MSR",
        folder="MRPC",
        splits={
            "train": Split("msr_paraphrase_train.txt", *_MRPC_COLUMNS),
            "dev": Split("msr_paraphrase_test.txt", *_MRPC_COLUMNS),
        },
        labels=("0", "1"),
        label_names=("not_equivalent", "equivalent"),
        metrics=("eval_f1", "eval_accuracy"),
        primary_metric="eval_f1",
        trained_as="MRPC",
    ),
    Task(
        name="STS-B",
        folder="STS-B",
        splits=_glue_splits("STS-B", 1379, "sentence1", "sentence2", "score"),
        labels=(),
        metrics=("eval_spearman", "eval_pearson"),
        primary_metric="eval_spearman",
        score_range=(0.0, 5.0),
        tfds=("stsb", "sentence1", "sentence2"),
    ),
    Task(
        name="QQP",
        folder="QQP",
        splits=_glue_splits(
            "QQP",
            390965,
            "question1",
            "question2",
            label="is_duplicate",
            index="id",
        ),
        labels=("0", "1"),
        label_names=("not_duplicate", "duplicate"),
        metrics=("eval_f1", "eval_accuracy"),
        primary_metric="eval_f1",
        skip_malformed=True,
        tfds=("qqp", "question1", "question2"),
    ),
    Task(
        name="MNLI",
        folder="MNLI",
        splits={
            "train": _mnli_labelled("train.tsv", "train"),
            "dev": _mnli_labelled("dev_matched.tsv", "validation_matched"),
            "dev_mismatched": _mnli_labelled(
                "dev_mismatched.tsv", "validation_mismatched"
            ),
            "test": _mnli_test("matched", "MNLI-m", 9796),
            "test_mismatched": _mnli_test("mismatched", "MNLI-mm", 9847),
        },
        labels=_ENTAILMENT_3,
        metrics=("eval_accuracy",),
        primary_metric="eval_accuracy",
        tfds=("mnli", "premise", "hypothesis"),
    ),
    Task(
        name="QNLI",
        folder="QNLI",
        splits=_glue_splits("QNLI", 5463, "question", "sentence"),
        labels=_ENTAILMENT_2,
        tf1_labels=_ENTAILMENT_2[::-1],
        metrics=("eval_accuracy",),
        primary_metric="eval_accuracy",
        tfds=("qnli", "question", "sentence"),
    ),
    Task(
        name="RTE",
        folder="RTE",
        splits=_glue_splits("RTE", 3000, "sentence1", "sentence2"),
        labels=_ENTAILMENT_2,
        tf1_labels=_ENTAILMENT_2[::-1],
        metrics=("eval_accuracy",),
        primary_metric="eval_accuracy",
        tfds=("rte", "sentence1", "sentence2"),
    ),
    Task(
        name="WNLI",
        folder="WNLI",
        splits=_glue_splits("WNLI", 146, "sentence1", "sentence2"),
        labels=("0", "1"),
        label_names=("not_entailment", "entailment"),
        metrics=("eval_accuracy",),
        primary_metric="eval_accuracy",
        tfds=("wnli", "sentence1", "sentence2"),
    ),
    # The diagnostic set has neither training nor labelled rows.
    Task(
        name="AX",
        folder="diagnostic",
        splits={
            "test": Split(
                "diagnostic.tsv",
                "sentence1",
                "sentence2",
                index="index",
                tfds="test",
                submission="AX",
                num_rows=1104,
            ),
        },
        labels=_ENTAILMENT_3,
        metrics=("eval_mcc",),
        primary_metric="eval_mcc",
        trained_as="MNLI",
        tfds=("ax", "premise", "hypothesis"),
    ),
)

TASKS = {task.name: task for task in _ROWS}
