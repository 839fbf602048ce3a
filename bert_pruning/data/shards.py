"""Training files in shards: written one by one, read one by one.

A folder of `augment` holds `train_aug-00000-of-00003.tsv` and so on, files
like the task's own training file, and `augment.json`, which says what is in
them. However large the whole is, one shard is in memory.
"""

import dataclasses
import os
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from bert_pruning.data.pipeline import EncodedDataset
from bert_pruning.data.pipeline import TrainBatches
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
    """

    folder: str
    files: tuple[str, ...]
    rows: tuple[int, ...]

    def read(self, task: Task, number: int) -> Examples:
        """Reads one shard as a task's training set.

        Raises:
            UserError: if its rows are not those that were written.
        """
        path = os.path.abspath(os.path.join(self.folder, self.files[number]))
        split = dataclasses.replace(task.splits["train"], file=path)
        one = dataclasses.replace(task, splits={"train": split})
        examples = read_examples(one, self.folder, "train")
        if len(examples) != self.rows[number]:
            raise UserError(
                f"{path} has {len(examples)} rows, but {self.rows[number]} "
                "were written. Run `augment` again, with --overwrite."
            )
        return examples


def find_shards(folder: str, task: Task) -> Shards:
    """Finds the augmented training set of a task.

    Args:
        folder: str. What `augment` wrote.
        task: `Task`.

    Raises:
        UserError: if the folder is none of `augment`, not finished, or of
            another task, or a shard is missing.
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
        name, rows = index["task"], index["rows"]
        shards = Shards(folder, tuple(rows), tuple(rows.values()))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} lacks {error}. Was it edited?") from error
    if name != task.name:
        raise UserError(
            f"--aug_train={folder} was made for {name}, not for {task.name}."
        )
    missing = [
        name
        for name in shards.files
        if not os.path.exists(os.path.join(folder, name))
    ]
    if missing:
        raise UserError(
            f"--aug_train={folder} lacks {', '.join(missing)}. Copy them, or "
            "run `augment` again, with --overwrite."
        )
    return shards


class ShardedBatches:
    """The batches of every epoch, shard after shard in a random order.

    Within a shard rows are shuffled and bucketed by `TrainBatches`.

    Args:
        rows: sequence of ints. Rows in each shard.
        load: function of a shard's number that returns its `EncodedDataset`.
        batch_size: int. Rows per batch. Rows that do not fill one are left
            out, others in each epoch.
        seed: int. Not negative.
        pad_multiple: int. See `EncodedDataset.batch`.
    """

    def __init__(
        self,
        rows: Sequence[int],
        load: Callable[[int], EncodedDataset],
        batch_size: int,
        seed: int,
        pad_multiple: int = 8,
    ):
        self.load = load
        self.batch_size = batch_size
        self.seed = seed
        self.pad_multiple = pad_multiple
        self._counts = [max(size // batch_size, 1) for size in rows]
        self._loaded = None, None

    @property
    def num_batches(self) -> int:
        """Batches in an epoch."""
        return sum(self._counts)

    @property
    def label_dtype(self) -> np.dtype:
        """Of the labels: int32 classes or float32 scores."""
        return self._dataset(0).labels.dtype

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict]:
        """Yields the batches of one epoch; see `TrainBatches.epoch`."""
        random = np.random.default_rng([self.seed, epoch])
        for shard in random.permutation(len(self._counts)).tolist():
            if start >= self._counts[shard]:
                start -= self._counts[shard]
                continue
            batches = TrainBatches(
                self._dataset(shard),
                self.batch_size,
                # Of its own: shards of a size are not shuffled alike.
                int(np.random.default_rng([self.seed, shard]).integers(2**31)),
                pad_multiple=self.pad_multiple,
            )
            yield from batches.epoch(epoch, start)
            start = 0

    def _dataset(self, shard):
        if self._loaded[0] != shard:
            self._loaded = None, None  # Not two at a time.
            self._loaded = shard, self.load(shard)
        return self._loaded[1]
