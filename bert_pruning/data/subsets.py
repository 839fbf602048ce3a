"""A part of a training set, for experiments with few data."""

import numpy as np
from sklearn.model_selection import train_test_split

from bert_pruning.data.pipeline import EncodedDataset
from bert_pruning.errors import UserError


def draw_subset(
    dataset: EncodedDataset, fraction: float, seed: int
) -> EncodedDataset:
    """Draws a part of the rows; classes keep their shares.

    Args:
        dataset: EncodedDataset. Labelled; scores are drawn from alike.
        fraction: float in (0, 1]. Of the rows; 1: all of them.
        seed: int. The same seed and fraction draw the same rows.

    Returns:
        An `EncodedDataset` of the drawn rows, in their order.

    Raises:
        UserError: if too few rows or a class of one row make it impossible.

    Example:

    ```python
    tenth = draw_subset(train_set, 0.1, seed=1)
    ```
    """
    if fraction == 1.0:
        return dataset
    return dataset.take(draw_labelled_rows(dataset.labels, fraction, seed))


def draw_labelled_rows(
    labels: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Draws a part of some rows; classes keep their shares.

    Args:
        labels: int or float array. Of the rows.
        fraction: float in (0, 1).
        seed: int.

    Returns:
        The drawn numbers of rows, rising.

    Raises:
        UserError: if too few rows or a class of one row make it impossible.
    """
    count = _count(len(labels), fraction)
    is_class = labels.dtype.kind == "i"
    try:
        rows, _ = train_test_split(
            np.arange(len(labels)),
            train_size=count,
            random_state=seed,
            stratify=labels if is_class else None,
        )
    except ValueError as error:
        raise UserError(
            f"--train_fraction={fraction} of {len(labels)} rows cannot be "
            f"drawn: {error}"
        ) from error
    return np.sort(rows)


def draw_rows(number: int, fraction: float, seed: int) -> np.ndarray:
    """Draws a part of some rows that have no classes.

    Args:
        number: int. Of the rows.
        fraction: float in (0, 1].
        seed: int.

    Returns:
        The drawn numbers of rows, rising.

    Raises:
        UserError: if not even one is drawn.
    """
    count = _count(number, fraction)
    return np.sort(np.random.default_rng(seed).permutation(number)[:count])


def _count(number, fraction):
    count = round(number * fraction)
    if not count:
        raise UserError(
            f"--train_fraction={fraction} of {number} rows cannot be drawn: "
            "it is not one."
        )
    return count
