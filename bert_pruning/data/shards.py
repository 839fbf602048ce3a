"""Training files in shards: written one by one, read one by one.

A folder of `augment` holds `train_aug-00000-of-00003.tsv` and so on, files
like the task's own training file, and `augment.json`, which says what is in
them. However large the whole is, one shard is in memory.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from bert_pruning.data.pipeline import EncodedDataset
from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.data.pipeline import count_batches
from bert_pruning.data.reading import Examples
from bert_pruning.data.reading import read_examples
from bert_pruning.data.task import Task
from bert_pruning.errors import UserError
from bert_pruning.modeling.files import read_json

INDEX_FILE = "augment.json"


@dataclasses.dataclass(frozen=True)
class Shards:
    """The shards of a folder.

    Args:
        folder: str.
        files: tuple of str. Names in the folder.
        rows: tuple of ints. Rows in each.
        digests: tuple of str. SHA-256 of each.
    """

    folder: str
    files: tuple[str, ...]
    rows: tuple[int, ...]
    digests: tuple[str, ...]

    def check(self):
        """Checks that every shard is as it was written.

        Raises:
            UserError: if one is missing or changed.
        """
        for name, digest in zip(self.files, self.digests, strict=True):
            path = os.path.join(self.folder, name)
            try:
                with open(path, "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UserError(
                    f"Cannot read {path}: {error.strerror}. Copy it, or run "
                    "`augment` again, with --overwrite."
                ) from error
            if found != digest:
                raise UserError(
                    f"{path} is not what was written: it is truncated or was "
                    "changed. Run `augment` again, with --overwrite."
                )

    def read(self, task: Task, number: int) -> Examples:
        """Reads one shard as a task's training set."""
        path = os.path.abspath(os.path.join(self.folder, self.files[number]))
        split = dataclasses.replace(task.splits["train"], file=path)
        one = dataclasses.replace(task, splits={"train": split})
        return read_examples(one, self.folder, "train")


def describe(task: Task) -> dict:
    """Returns what tells a task's training data from another's."""
    split = task.splits["train"]
    return {
        "task": task.name,
        "data": task.data_name,
        "columns": [split.text_a, split.text_b, split.label],
        "labels": list(task.labels),
    }


def find_shards(folder: str, task: Task) -> Shards:
    """Finds the augmented training set of a task.

    Args:
        folder: str. What `augment` wrote.
        task: `Task`.

    Raises:
        UserError: if the folder is none of `augment`, not finished, or of
            another task or data set.
    """
    path = os.path.join(folder, INDEX_FILE)
    if not os.path.exists(path) or not os.path.exists(
        os.path.join(folder, "DONE")
    ):
        raise UserError(
            f"--aug_train={folder} holds no finished augmentation. Run "
            f"`augment --task_name={task.name} --output_dir={folder}` first."
        )
    index = read_json(path)
    try:
        found = index["shards"]
        shards = Shards(
            folder,
            tuple(found),
            tuple(each["rows"] for each in found.values()),
            tuple(each["sha256"] for each in found.values()),
        )
        theirs = {name: index[name] for name in describe(task)}
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} lacks {error}. Was it edited?") from error
    differing = [
        f"{name} {theirs[name]!r} instead of {value!r}"
        for name, value in describe(task).items()
        if theirs[name] != value
    ]
    if differing:
        raise UserError(
            f"--aug_train={folder} was made for other data: "
            f"{', '.join(differing)}."
        )
    return shards


class ShardedBatches:
    """The batches of every epoch, shard after shard in a random order.

    Within a shard rows are shuffled and bucketed by `TrainBatches`.

    Args:
        rows: sequence of ints. Rows in each shard.
        load: function of a shard's number that returns its `EncodedDataset`.
        label_dtype: NumPy dtype. Of the labels: int32 classes or float32
            scores.
        batch_size: int. Rows per batch. Rows that do not fill one are left
            out, others in each epoch.
        seed: int. Not negative.
        pad_multiple: int. See `EncodedDataset.batch`.
    """

    def __init__(
        self,
        rows: Sequence[int],
        load: Callable[[int], EncodedDataset],
        label_dtype: np.dtype,
        batch_size: int,
        seed: int,
        pad_multiple: int = 8,
    ):
        self.load = load
        self.label_dtype = np.dtype(label_dtype)
        self.batch_size = batch_size
        self.seed = seed
        self.pad_multiple = pad_multiple
        self._counts = [count_batches(size, batch_size) for size in rows]

    @property
    def num_batches(self) -> int:
        """Batches in an epoch."""
        return sum(self._counts)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict]:
        """Yields the batches of one epoch; see `TrainBatches.epoch`."""
        random = np.random.default_rng([self.seed, epoch])
        for shard in random.permutation(len(self._counts)).tolist():
            if start >= self._counts[shard]:
                start -= self._counts[shard]
                continue
            batches = TrainBatches(
                self.load(shard),
                self.batch_size,
                # Of its own: shards of a size are not shuffled alike.
                int(np.random.default_rng([self.seed, shard]).integers(2**31)),
                pad_multiple=self.pad_multiple,
            )
            yield from batches.epoch(epoch, start)
            start = 0
