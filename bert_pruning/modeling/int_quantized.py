"""Weights of 8 bits as files keep them: whole numbers, and their scales.

The layout is the `int-quantized` of the compressed-tensors library: beside an
int8 `x.weight` of `rows` by `columns` there is

    x.weight_scale   float32 (rows, 1), or (1,): one for the whole matrix

and the weights are their product, but for what `quantization.from_int8` says of
the greatest and of those that are rounded to zero. Rows are the outputs of a
layer.
"""

from collections.abc import Mapping

import numpy as np

from bert_pruning.errors import UserError
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.names import find_tasks
from bert_pruning.modeling.names import weight_table
from bert_pruning.modeling.quantization import from_int8
from bert_pruning.modeling.quantization import to_int8

FORMAT = "int-quantized"

_WEIGHT, _SCALE = ".weight", "_scale"

# NumPy counts bfloat16 to the kind of void.
_FLOATS = "fV"


def quantize(
    config: BertConfig, weights: Mapping, stored: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Puts whole numbers and scales in the place of what computes in 8 bits.

    Args:
        config: BertConfig. Its `quantization` says what does.
        weights: dict from canonical name to float32 array.
        stored: dict from name in a Hugging Face file to array, the same.

    Returns:
        A dict like `stored`, and the scales.

    Reference:
        - [compressed-tensors](https://github.com/neuralmagic/compressed-tensors)
    """
    arrays = dict(stored)
    for row in weight_table(config, "huggingface", find_tasks(weights)):
        found = None
        if row.name in weights:
            found = to_int8(row.name, weights[row.name], config.quantization)
        if found is not None:
            levels, scale = found
            arrays[row.stored_name] = row.convert(levels).astype(np.int8)
            arrays[row.stored_name + _SCALE] = (
                scale.reshape(-1) if scale.size == 1 else scale.reshape(-1, 1)
            )
    return arrays


def dequantize(
    arrays: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray],
    path: str,
    is_dense: bool = False,
) -> dict[str, np.ndarray]:
    """Undoes `quantize`; the weights are in float32 again.

    Args:
        arrays: dict from name in a Hugging Face file to array.
        kept: dict from name to bool array. Of some, which weights were not
            pruned; see `from_int8`.
        path: str. What is read, for messages.
        is_dense: bool. Whether of the others all were kept; if not, what is
            zero was pruned.

    Returns:
        A dict like `arrays`, without the scales.

    Raises:
        UserError: if scales and weights do not belong together.
    """
    whole = dict(arrays)
    for scale_name in [n for n in arrays if n.endswith(_WEIGHT + _SCALE)]:
        name, scale = scale_name.removesuffix(_SCALE), whole.pop(scale_name)
        levels = arrays.get(name)
        if (
            levels is None
            or levels.dtype != np.int8
            or levels.ndim != 2
            or scale.dtype.kind not in _FLOATS
            or scale.shape not in ((1,), (len(levels), 1))
        ):
            found = "is not there" if levels is None else _describe(levels)
            raise UserError(
                f"{scale_name} in {path} is {_describe(scale)}, and {name} "
                f"{found}: an int8 matrix and a float scale, or one for each "
                "row, can be read. Copy or download it again, or use a float "
                "checkpoint."
            )
        scale = scale.astype(np.float32).reshape(-1, 1)
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise UserError(
                f"{scale_name} in {path} has scales that are no positive "
                "numbers. Copy or download it again."
            )
        whole[name] = from_int8(levels, scale, kept.get(name, is_dense))
    return whole


def quantized_layers(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Finds what has a scale.

    Args:
        arrays: dict from name in a Hugging Face file to array.

    Returns:
        A dict from layer to "channel", a scale for each row, or "tensor".
    """
    end = _WEIGHT + _SCALE
    return {
        name.removesuffix(end): "channel" if array.ndim == 2 else "tensor"
        for name, array in arrays.items()
        if name.endswith(end)
    }


def _describe(array):
    return f"{array.dtype} of shape {list(array.shape)}"
