"""Which weights stay: selection by magnitude, in a matrix or across them.

NumPy alone. `pruning.py` carries it out in a model.
"""

import math

import numpy as np


def kept_count(size, sparsity, rounds_up=False):
    """Number of weights that survive; at least 1.

    Args:
        size: int. Weights in the matrix.
        sparsity: float in [0, 1).
        rounds_up: bool. Where `size * sparsity` is no whole number, keeps the
            one more, as Prune Once for All does; SparseBERT does not.

    Example:

    ```python
    kept_count(768 * 768, 0.95)  # 29491
    ```
    """
    # 1000 * (1 - 0.9) is 99.99999999999997 in binary; it means 100.
    kept = round(size * (1.0 - sparsity), 6)
    return max(1, math.ceil(kept) if rounds_up else int(kept))


def magnitude_mask(weights, kept, mask=None):
    """Keeps the weights of largest magnitude, exactly so many of them.

    Among equal magnitudes the first in memory order stays. What `mask` has
    removed stays removed.

    Args:
        weights: float array of any shape.
        kept: int. How many stay, if the mask has left as many.
        mask: array of 0 and 1 of the same shape, or None. The mask so far.

    Returns:
        A pair: the smallest magnitude kept, and the bool mask.

    Example:

    ```python
    _, mask = magnitude_mask(np.array([0.1, -3.0, 2.0, 0.5]), kept=2)
    mask  # [False, True, True, False]
    ```
    """
    magnitudes = np.abs(weights).ravel()
    alive = magnitudes
    if mask is not None:
        unpruned = np.ravel(mask) != 0
        alive = magnitudes[unpruned]
    kept = min(kept, alive.size)
    if kept == 0:
        return 0.0, np.zeros(weights.shape, bool)
    position = alive.size - kept
    threshold = np.partition(alive, position)[position]
    selected = magnitudes >= threshold
    if mask is not None:
        selected &= unpruned
    surplus = np.count_nonzero(selected) - kept
    if surplus:
        ties = np.flatnonzero((magnitudes == threshold) & selected)
        selected[ties[ties.size - surplus :]] = False
    return float(threshold), selected.reshape(weights.shape)


def m_by_n_mask(weights, kept, m_by_n, mask=None):
    """Keeps the largest weights, and of each group at least so many.

    A group is n weights that follow one another in a column; the m smallest of
    each may go. Of all these the smallest go, exactly so many.

    Args:
        weights: float array `(rows, columns)`; n divides the rows.
        kept: int. How many stay, at least `size * (1 - m / n)`.
        m_by_n: pair of ints.
        mask: array of 0 and 1 of the same shape, or None. The mask so far.

    Returns:
        A pair: the smallest magnitude kept, and the bool mask.

    Example:

    ```python
    _, mask = m_by_n_mask(np.array([[4.0], [3.0], [2.0], [1.0]]), 3, (2, 4))
    mask.ravel()  # [True, True, True, False]
    ```

    Reference: [Accelerating sparse deep neural
    networks](https://arxiv.org/abs/2104.08378).
    """
    zeros, group = m_by_n
    magnitudes = np.abs(weights)
    if mask is not None:
        # What is gone is the first to go, also before other zeros.
        magnitudes = np.where(mask, magnitudes, -1.0)
    groups = magnitudes.T.reshape(-1, group)
    order = np.argsort(groups, axis=1, kind="stable")
    stays = np.ones(groups.shape, bool)
    np.put_along_axis(stays, order[:, :zeros], False, axis=1)
    stays = stays.reshape(weights.T.shape).T
    candidates = ~stays & (magnitudes >= 0.0)
    kept -= np.count_nonzero(stays)
    selected = stays | magnitude_mask(weights, kept, candidates)[1]
    return float(np.abs(weights)[selected].min()), selected


def global_masks(weights, kept, masks=None):
    """Keeps the largest weights of all matrices together.

    Args:
        weights: list of float arrays.
        kept: int. How many stay in all of them.
        masks: list of arrays of 0 and 1, or None. The masks so far.

    Returns:
        A pair: the smallest magnitude kept, and the list of bool masks.

    Example:

    ```python
    _, masks = global_masks([np.array([3.0, 1.0]), np.array([0.5, 2.0])], 2)
    masks  # [[True, False], [False, True]]
    ```
    """

    def join(arrays):
        return np.concatenate([np.ravel(array) for array in arrays])

    threshold, selected = magnitude_mask(
        join(weights), kept, None if masks is None else join(masks)
    )
    ends = np.cumsum([array.size for array in weights])[:-1]
    parts = np.split(selected, ends)
    return threshold, [
        part.reshape(array.shape)
        for part, array in zip(parts, weights, strict=True)
    ]


def erdos_renyi_sparsities(shapes, sparsity):
    """Leaves more of small matrices: density by (rows + columns) / size.

    A matrix that would need more weights than it has stays dense, and the
    others make up for it. (For matrices, ERK is the same.)

    Args:
        shapes: list of pairs of ints. Rows and columns.
        sparsity: float in [0, 1). Of all matrices together.

    Returns:
        A list of floats in [0, 1), one for each matrix.

    Example:

    ```python
    erdos_renyi_sparsities([(10, 10), (10, 90)], 0.8)  # [0.663, 0.815]
    ```

    Reference: [Rigging the lottery](https://arxiv.org/abs/1911.11134).
    """
    sizes = np.array([rows * columns for rows, columns in shapes], float)
    raw = np.array([rows + columns for rows, columns in shapes], float) / sizes
    dense = np.zeros(len(shapes), bool)
    while True:
        wanted = sizes.sum() * (1.0 - sparsity) - sizes[dense].sum()
        scale = wanted / (raw * sizes)[~dense].sum()
        densities = np.where(dense, 1.0, scale * raw)
        if (densities <= 1.0).all():
            return [float(1.0 - density) for density in densities]
        dense |= densities > 1.0
