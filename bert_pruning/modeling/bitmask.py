"""Sparse matrices as files keep them: a bit for each weight, and few weights.

The layout is the `sparse-bitmask` of the compressed-tensors library. In place
of `x.weight` of `rows` by `columns` there are

    x.compressed   the weights that are kept, row after row
    x.bitmask      uint8 (rows, ceil(columns / 8)), lowest bit first: which
    x.row_offsets  int64 (rows,): where each row begins in `x.compressed`
    x.shape        int64 (2,)

A float32 matrix of 95 % zeros takes 0.081 of its bytes: 0.05 for the weights
and 1/32 for the bits.
"""

import types
from collections.abc import Container
from collections.abc import Mapping

import numpy as np

from bert_pruning.errors import UserError

FORMAT = "sparse-bitmask"

_SUFFIX = ".weight"
_PARTS = ("compressed", "bitmask", "row_offsets", "shape")


# Fewer zeros than this share are no pattern of a pruned matrix, but chance.
LEAST_PATTERN = 0.01


def pack(
    arrays: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray] = types.MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """Packs the matrices that become smaller by it; the others stay.

    Rounded ones that were pruned are packed even if they grow by it, so that
    what was pruned is told apart from what was rounded to zero.

    Args:
        arrays: dict from name in a Hugging Face file to array.
        kept: dict from name to bool array. Of rounded matrices, which weights
            were not pruned; some of them may be zero. Of all others those are
            kept that are not zero.

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
        if not name.endswith(_SUFFIX) or array.ndim != 2:
            packed[name] = array
            continue
        mask = kept.get(name, array != 0)
        parts = _pack(array, mask)
        is_pruned = name in kept and 1.0 - mask.mean() >= LEAST_PATTERN
        if _bytes(parts.values()) >= array.nbytes and not is_pruned:
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


def find_kept(
    arrays: Mapping[str, np.ndarray], layers: Container[str]
) -> dict[str, np.ndarray]:
    """Returns which weights of packed matrices are kept.

    Args:
        arrays: dict from name to array, such that `unpack` accepts.
        layers: set of str. Those whose matrices are asked for.

    Returns:
        A dict from the name of each that is packed to a bool array like it.
    """
    return {
        layer + _SUFFIX: _mask(
            arrays[f"{layer}.bitmask"], int(arrays[f"{layer}.shape"][1])
        )
        for layer in packed_layers(arrays)
        if layer in layers
    }


def packed_layers(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the layers whose matrices are packed."""
    end = f".{_PARTS[0]}"
    return [name.removesuffix(end) for name in arrays if name.endswith(end)]


def _pack(array, mask):
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
    fits = shape.shape == (2,) and shape.dtype.kind in "iu"
    if fits:
        rows, columns = (int(size) for size in shape)
        fits = bits.shape == (rows, -(-columns // 8)) and bits.dtype == np.uint8
    if fits:
        mask = _mask(bits, columns)
        fits = values.shape == (np.count_nonzero(mask),)
    if not fits:
        raise UserError(
            f"The parts of {stem}.weight in {path} do not belong together: "
            f"weights of shape {list(values.shape)}, {bits.dtype} bits of "
            f"shape {list(bits.shape)}, a matrix of shape {shape.tolist()}. "
            "Copy or download it again."
        )
    array = np.zeros((rows, columns), values.dtype)
    array[mask] = values
    return array


def _mask(bits, columns):
    unpacked = np.unpackbits(bits, axis=1, count=columns, bitorder="little")
    return unpacked.astype(bool)


def _bytes(arrays):
    return sum(array.nbytes for array in arrays)
