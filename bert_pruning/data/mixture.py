"""Batches of several tasks, one task each."""

from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from bert_pruning.errors import UserError


class Mixture:
    """The batches of several tasks in a random order, anew in every epoch.

    Each is a batch of one task, with that task's number as `task`. With the
    temperature T, a task of n batches has a share in proportion to n^(1/T) of
    an epoch, which is as long as all of them together: at 1 every batch comes
    once, the higher, the more alike are the shares. What comes when is a
    function of the seed and the epoch.

    Args:
        tasks: sequence of `pipeline.TrainBatches`.
        seed: int. Not negative.
        temperature: float. At least 1.

    Raises:
        UserError: if the temperature is lower.

    Example:

    ```python
    for batch in Mixture([cola, stsb], seed=1).epoch(0):
        batch["task"]  # 0 or 1
    ```

    Reference: [MT-DNN](https://arxiv.org/abs/1901.11504).
    """

    # Scores are read as they are, classes turned back into integers.
    label_dtype = np.dtype(np.float32)

    def __init__(
        self, tasks: Sequence, seed: int, temperature: float = 1.0
    ) -> None:
        if not temperature >= 1.0:
            raise UserError(
                "--sampling_temperature must be 1 or more. Received: "
                f"{temperature}."
            )
        self.tasks = tuple(tasks)
        self.seed = seed
        self.counts = _shares([t.num_batches for t in tasks], temperature)
        self.num_batches = sum(self.counts)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict]:
        """Yields the batches of one epoch.

        Args:
            epoch: int. Number of the epoch, from 0.
            start: int. Number of the first batch to yield.

        Returns:
            Iterator over the dicts of `EncodedDataset.batch` with `task`.
        """
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(
            np.repeat(np.arange(len(self.tasks)), self.counts)
        )
        streams = [
            _stream(batches, epoch * count + np.sum(order[:start] == number))
            for number, (batches, count) in enumerate(
                zip(self.tasks, self.counts, strict=True)
            )
        ]
        for number in order[start:]:
            batch = next(streams[number])
            label = batch["label"].astype(self.label_dtype)
            yield {**batch, "label": label, "task": int(number)}


def _stream(batches, position):
    """A task's batches of all epochs one after the other, from a position."""
    epoch, start = divmod(int(position), batches.num_batches)
    while True:
        yield from batches.epoch(epoch, start)
        epoch, start = epoch + 1, 0


def _shares(sizes, temperature):
    """Divides the batches of an epoch, at least one for each task."""
    weights = np.power(np.array(sizes, np.float64), 1.0 / temperature)
    exact = sum(sizes) * weights / weights.sum()
    counts = np.maximum(np.floor(exact + 1e-9).astype(int), 1)
    # What rounding left over goes to those that lost most by it.
    for place in np.argsort(counts - exact, kind="stable"):
        if counts.sum() >= sum(sizes):
            break
        counts[place] += 1
    return counts.tolist()
