"""Sparse matrices as files keep them: a bit for each weight, and few weights.

The layout is the `sparse-bitmask` of the compressed-tensors library. In place
of `x.weight` of `rows` by `columns` there are

    x.compressed   the weights that are not zero, row after row
    x.bitmask      uint8 (rows, ceil(columns / 8)), lowest bit first: which
    x.row_offsets  int64 (rows,): where each row begins in `x.compressed`
    x.shape        int64 (2,)

A float32 matrix of 95 % zeros takes 0.081 of its bytes: 0.05 for the weights
and 1/32 for the bits.
"""

from collections.abc import Mapping

import numpy as np

from bert_pruning.errors import UserError

FORMAT = "sparse-bitmask"

_SUFFIX = ".weight"
_PARTS = ("compressed", "bitmask", "row_offsets", "shape")


def pack(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Packs the matrices that become smaller by it; the others stay.

    Args:
        arrays: dict from name in a Hugging Face file to array.

    Returns:
        A dict of arrays in the same order.

    Example:

    ```python
    pack({"x.weight": np.eye(8, dtype=np.float32)})["x.compressed"]  # 8 ones
    ```

    Reference:
        - [compressed-tensors](https://github.com/neuralmagic/compressed-tensors)
    """
    packed = {}
    for name, array in arrays.items():
        parts = None
        if name.endswith(_SUFFIX) and array.ndim == 2:
            parts = _pack(array)
        if parts is None or _bytes(parts.values()) >= array.nbytes:
            packed[name] = array
            continue
        stem = name.removesuffix(_SUFFIX)
        packed.update({f"{stem}.{part}": parts[part] for part in _PARTS})
    return packed


def unpack(
    arrays: Mapping[str, np.ndarray], path: str
) -> dict[str, np.ndarray]:
    """Undoes `pack`.

    Args:
        arrays: dict from name to array.
        path: str. The file, for messages.

    Returns:
        A dict of arrays in the same order.

    Raises:
        UserError: if parts of a matrix are missing or do not fit each other.
    """
    whole = {}
    for name, array in arrays.items():
        stem, _, part = name.rpartition(".")
        if part == _PARTS[0]:
            whole[stem + _SUFFIX] = _unpack(arrays, stem, path)
        elif part not in _PARTS or f"{stem}.{_PARTS[0]}" not in arrays:
            whole[name] = array
    return whole


def packed_layers(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the layers whose matrices are packed."""
    end = f".{_PARTS[0]}"
    return [name.removesuffix(end) for name in arrays if name.endswith(end)]


def _pack(array):
    mask = array != 0
    counts = mask.sum(axis=1, dtype=np.int64)
    return {
        "compressed": array[mask],
        "bitmask": np.packbits(mask, axis=1, bitorder="little"),
        "row_offsets": np.cumsum(counts) - counts,
        "shape": np.array(array.shape, np.int64),
    }


def _unpack(arrays, stem, path):
    missing = [part for part in _PARTS if f"{stem}.{part}" not in arrays]
    # Without the offsets a matrix is whole: the bits say where rows begin.
    if set(missing) - {"row_offsets"}:
        raise UserError(
            f"{path} has {stem}.{_PARTS[0]}, but no {stem}.{missing[0]}. Copy "
            "or download it again."
        )
    values, bits, shape = (
        arrays[f"{stem}.{part}"] for part in ("compressed", "bitmask", "shape")
    )
    shape = tuple(int(size) for size in shape)
    fits = len(shape) == 2 and bits.shape == (shape[0], -(-shape[1] // 8))
    if fits:
        mask = np.unpackbits(bits, axis=1, count=shape[1], bitorder="little")
        mask = mask.astype(bool)
        fits = np.count_nonzero(mask) == len(values)
    if not fits:
        raise UserError(
            f"The parts of {stem}.weight in {path} do not belong together: "
            f"{len(values)} weights, bits of shape {list(bits.shape)}, a "
            f"matrix of shape {list(shape)}. Copy or download it again."
        )
    array = np.zeros(shape, values.dtype)
    array[mask] = values
    return array


def _bytes(arrays):
    return sum(array.nbytes for array in arrays)
