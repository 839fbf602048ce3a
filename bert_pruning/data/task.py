"""What a task is: files, columns, labels and metrics, as plain values.

The rows are in `tasks.py`. Columns are found by name and labels by their
strings, because GLUE's test files have other columns than its training files,
and other programs number the same labels otherwise.
"""

import dataclasses
from collections.abc import Mapping

from bert_pruning.errors import UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """One file of a task and the names of the columns it is read by.

    Args:
        file: str. Name in the task's folder, or an absolute path; without an
            extension, `.tsv` and `.csv` are looked for.
        text_a: str. Column of the first text.
        text_b: str or None. Column of the second text.
        label: str or None. Column of the label; None if there is none.
        index: str or None. Column of the row's id; None: the row's number.
        header: tuple of str or None. All columns, if the file has no header.
        tfds: str. Name of the split in TensorFlow Datasets.
        submission: str. Name of the GLUE submission file, without `.tsv`.
        num_rows: int. Rows that GLUE expects in the submission; 0: not known.
    """

    file: str
    text_a: str
    text_b: str | None = None
    label: str | None = None
    index: str | None = None
    header: tuple[str, ...] | None = None
    tfds: str = ""
    submission: str = ""
    num_rows: int = 0


@dataclasses.dataclass(frozen=True)
class Task:
    """What to read, what to predict, and how to score it.

    Args:
        name: str. As GLUE spells it.
        folder: str. Folder below `--data_dir`.
        splits: dict of `Split`. By "train", "dev", "test", and for MNLI also
            "dev_mismatched" and "test_mismatched".
        labels: tuple of str. The classes as the files spell them, in the
            order of the logits. Empty: a regression.
        metrics: tuple of str. Keys that `metrics.compute_metrics` returns.
        primary_metric: str. The one that chooses the best checkpoint.
        label_names: tuple of str. Other spellings of `labels`, in the same
            order, as in TensorFlow Datasets and Hugging Face checkpoints.
        tf1_labels: tuple of str. The order in which the TF1 code has `labels`,
            if another: its checkpoints do not name them.
        score_range: tuple of two floats or None. Limits of a regression's
            labels and submitted predictions.
        skip_malformed: bool. The official training files are known to have
            broken rows: leave them out and count them.
        trained_as: str. The task whose models serve this one too, if another.
        tfds: tuple of str. Name in TensorFlow Datasets, then the features
            that hold the texts.
        data_name: str. The folder that a person's own data came from.

    Example:

    >>> from bert_pruning.data.tasks import get_task
    >>> task = get_task("sts-b")
    >>> task.name, task.num_outputs, task.primary_metric
    ('STS-B', 1, 'eval_spearman')
    >>> Task.from_dict(task.to_dict()) == task
    True
    """

    name: str
    folder: str
    splits: Mapping[str, Split]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    primary_metric: str
    label_names: tuple[str, ...] = ()
    tf1_labels: tuple[str, ...] = ()
    score_range: tuple[float, float] | None = None
    skip_malformed: bool = False
    trained_as: str = ""
    tfds: tuple[str, ...] = ()
    data_name: str = ""

    @property
    def title(self) -> str:
        """What a person calls it; every task of one's own is "custom"."""
        return self.data_name or self.name

    @property
    def is_regression(self) -> bool:
        """True if the labels are scores."""
        return not self.labels

    @property
    def num_outputs(self) -> int:
        """Width of the logits: the number of classes, or 1."""
        return len(self.labels) or 1

    @property
    def model_task(self) -> str:
        """Name of the task that a model for this one was trained on."""
        return self.trained_as or self.name

    def label_id(self, label: str) -> int | None:
        """The class of a label, by any of its spellings; None if unknown."""
        for names in (self.labels, self.label_names):
            if label in names:
                return names.index(label)
        return None

    def to_dict(self) -> dict:
        """Plain values that JSON can hold; `from_dict` reads them."""
        return _replace(dataclasses.asdict(self), tuple, list)

    @classmethod
    def from_dict(cls, values: Mapping) -> "Task":
        """Makes the task that `to_dict` described.

        Args:
            values: dict. Field names and values.

        Returns:
            A `Task`.

        Raises:
            UserError: a field is missing or unknown.
        """
        try:
            fields = _replace(values, list, tuple)
            splits = {k: Split(**v) for k, v in fields["splits"].items()}
            return cls(**{**fields, "splits": splits})
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"This does not describe a task: {error}. Received: {values}"
            ) from error


def _replace(values, old: type, new: type):
    """Changes the type of every sequence in nested dicts."""
    if isinstance(values, Mapping):
        return {key: _replace(v, old, new) for key, v in values.items()}
    if isinstance(values, old):
        return new(_replace(value, old, new) for value in values)
    return values


def stored_title(values):
    """Names the task that a checkpoint stores, and which data of one's own.

    Args:
        values: mapping. See `Task.to_dict`; it may lack anything.

    Returns:
        str, or None without a name.
    """
    parts = (values.get(name) for name in ("name", "data_name"))
    return " ".join(filter(None, parts)) or None
