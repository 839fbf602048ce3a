"""What of a BERT computes in 8 bits: a part of its `BertConfig`.

The layers that do are those of `quantized_layers`. Their weights stay float32
arrays; beside these, and saved like them, are the ranges of each layer's input
and output.
"""

import dataclasses
import fnmatch
from collections.abc import Mapping

import numpy as np

from bert_pruning.errors import UserError

GRANULARITIES = ("per_channel", "per_tensor")

DEFAULT_LAYERS = ("layer_*", "pooler")

# They stay whole: a score of 8 bits would have 256 values.
_HEADS = ("classifier", "classifier_*", "next_sentence", "span")

# Layers before an activation function. In int8 this is a table of 256 values,
# so their outputs have one range; those of all others have one per channel, as
# a few channels of a BERT are far wider than the rest.
_ACTIVATED = ("layer_*_intermediate", "pooler", "mlm_transform")

# Weights are symmetric int8, without -128: zero stands for zero.
LEVELS = 127.0

# The names of the ranges among a layer's weights: the least and the greatest
# input, the same of the output, and the greatest magnitude of each channel.
RANGES = ("input_range", "output_range", "output_limits")


@dataclasses.dataclass(frozen=True)
class Quantization:
    """What of a BERT computes in 8 bits.

    Args:
        weights: str. "per_channel": each column of a kernel has its scale.
            "per_tensor": the kernel has one, as in the paper.
        layers: tuple of str. Shell patterns of the names of Dense layers;
            classifiers and the like stay whole whatever these say.
        embeddings: bool. Whether the table of word embeddings is rounded to
            8 bits too, with one scale.

    Raises:
        UserError: if a value is unknown.

    Example:

    ```python
    config = dataclasses.replace(config, quantization=Quantization())
    model = build_model(config, num_outputs=2)
    ```

    Reference: [Prune Once for All](https://arxiv.org/abs/2111.05754).
    """

    weights: str = GRANULARITIES[0]
    layers: tuple[str, ...] = DEFAULT_LAYERS
    embeddings: bool = False

    def __post_init__(self):
        if self.weights not in GRANULARITIES:
            raise UserError(
                f"Weights are quantised {' or '.join(GRANULARITIES)}. "
                f"Received: {self.weights!r}."
            )
        is_list = isinstance(self.layers, (list, tuple)) and self.layers
        if not is_list or not all(isinstance(x, str) for x in self.layers):
            raise UserError(
                "Quantisation needs patterns of layers' names. Received: "
                f"{self.layers!r}."
            )
        object.__setattr__(self, "layers", tuple(self.layers))

    def covers(self, layer):
        """Returns whether a Dense layer computes in 8 bits.

        Args:
            layer: str. Its name.
        """
        return _matches(layer, self.layers) and not _matches(layer, _HEADS)

    @classmethod
    def from_dict(cls, values: Mapping):
        """Builds it from the values of `dataclasses.asdict`."""
        unknown = sorted(
            set(values) - {f.name for f in dataclasses.fields(cls)}
        )
        if unknown:
            raise UserError(
                f"Unknown field of the quantisation: {', '.join(unknown)}."
            )
        return cls(**values)


def is_range(name):
    """Returns whether a canonical name is that of a range, no parameter."""
    return name.rsplit("/", 1)[-1] in RANGES


def to_int8(name, array, quantization):
    """Returns a weight as the whole numbers that a model computes with.

    Args:
        name: str. Its canonical name.
        array: float32 array.
        quantization: Quantization or None.

    Returns:
        An int8 array and the float32 scale of each column, or of all; None if
        the weight stays whole.

    Example:

    ```python
    to_int8("pooler/kernel", np.float32([[0.5, -1]]), Quantization())
    # [[127, -127]], [[0.5 / 127, 1 / 127]]
    ```
    """
    layer, _, weight = name.rpartition("/")
    if quantization is None:
        return None
    if layer == "word_embeddings" and quantization.embeddings:
        axis = None
    elif weight == "kernel" and quantization.covers(layer):
        axis = 0 if quantization.weights == "per_channel" else None
    else:
        return None
    limit = np.abs(array).max(axis, keepdims=True)
    scale = np.where(limit == 0.0, 1.0, limit) / LEVELS
    return np.rint(array / scale).astype(np.int8), scale


def from_int8(levels, scale, kept=False):
    """Returns weights of which `to_int8` makes the same levels and scale.

    They are the levels times the scale, with two exceptions. The greatest may
    differ in the last bit, as a product that is divided again need not be what
    it was. And a weight that is kept but was rounded to zero becomes a quarter
    of a level, so that it is not taken for one that was pruned.

    Args:
        levels: int8 array.
        scale: float32 array of as many dimensions, of size 1 where a scale is
            shared.
        kept: bool array like `levels`, or one for all. What was not pruned.

    Returns:
        A float32 array.

    Example:

    ```python
    from_int8(np.int8([[127, 0]]), np.float32([[0.01]]), kept=True)
    # [[1.27, 0.0025]]
    ```
    """
    product = LEVELS * scale
    limit = product
    for neighbour in (np.inf, 0.0):
        other = np.nextafter(product, np.float32(neighbour))
        limit = np.where(limit / LEVELS == scale, limit, other)
    magnitudes = np.abs(levels)
    weights = np.where(
        magnitudes == LEVELS, np.sign(levels) * limit, levels * scale
    )
    shared = tuple(np.flatnonzero(np.equal(scale.shape, 1)))
    # Where all is zero a quarter of a level would be the greatest.
    is_filled = magnitudes.any(shared, keepdims=True)
    return np.where(kept & (levels == 0) & is_filled, scale / 4, weights)


def as_stored(name, array, quantization):
    """Returns a weight in the bits that an exported model has it in.

    Args:
        name: str. Its canonical name.
        array: float array.
        quantization: Quantization or None.

    Returns:
        The array, or whole numbers in int8 without their scale.

    Example:

    ```python
    as_stored("pooler/kernel", np.float32([[0.5, -1]]), Quantization())
    # [[127, -127]]
    ```
    """
    found = to_int8(name, array, quantization)
    return array if found is None else found[0]


def new_range(shape):
    """Returns a range that nothing was observed for: NaN.

    Args:
        shape: tuple of ints.
    """
    return np.full(shape, np.nan, np.float32)


def is_activated(layer):
    """Returns whether an activation function follows a Dense layer.

    Args:
        layer: str. Its name.
    """
    return _matches(layer, _ACTIVATED)


def ranges_of(layer):
    """Returns the names of the ranges of a layer that computes in 8 bits.

    Args:
        layer: str. Its name.
    """
    return RANGES[:2] if is_activated(layer) else RANGES[::2]


def _matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def keep_coverage(quantization, before, after):
    """Returns a quantisation that covers the same layers by their new names.

    Args:
        quantization: Quantization.
        before: sequence of str or None. For each Dense layer of a model, its
            name in the one that it was made of; None: it is new.
        after: sequence of str. Their names.

    Returns:
        A `Quantization`, the same where its patterns still say it, or None if
        it covers nothing any more.
    """
    covered = tuple(
        new
        for old, new in zip(before, after, strict=True)
        if old and quantization.covers(old)
    )
    if not covered:
        return None
    if covered == tuple(filter(quantization.covers, after)):
        return quantization
    return dataclasses.replace(quantization, layers=covered)
