"""What a model costs: parameters, zeros, operations and bytes. Plain NumPy.

Every ratio says what it is over. 95 % of the encoder's kernels at zero is
only 73.7 % of BERT-base, because embeddings, pooler, biases and norms stay
dense.
"""

import dataclasses
import math
import zlib

import numpy as np

from bert_pruning.modeling import names
from bert_pruning.modeling.quantization import is_range


@dataclasses.dataclass(frozen=True)
class Count:
    """Size and number of zeros of one array, or of several together.

    Args:
        size: int. Number of parameters.
        zeros: int. How many of them are exactly zero.
    """

    size: int
    zeros: int

    @property
    def kept(self):
        """Number of parameters that are not zero."""
        return self.size - self.zeros

    @property
    def sparsity(self):
        """Share of zeros, in [0, 1]."""
        return self.zeros / self.size if self.size else 0.0

    @property
    def ratio(self):
        """Size over what is kept: 20 for a sparsity of 0.95."""
        return self.size / self.kept if self.kept else float("inf")

    def __add__(self, other):
        return Count(self.size + other.size, self.zeros + other.zeros)


def count(array):
    """Counts the parameters and zeros of one array.

    Args:
        array: array of any shape.

    Example:

    ```python
    count(np.array([0.0, 1.0, 2.0, 0.0])).sparsity  # 0.5
    ```
    """
    array = np.asarray(array)
    return Count(array.size, array.size - int(np.count_nonzero(array)))


def total(arrays):
    """Counts the parameters and zeros of several arrays together."""
    return sum(map(count, arrays), Count(0, 0))


def stored_bytes(arrays, level=6):
    """Bytes of the arrays as stored, and after gzip's compression.

    Args:
        arrays: iterable of arrays.
        level: int. Effort of the compressor, 1 to 9.

    Returns:
        A pair of ints, raw and compressed bytes.
    """
    compressor = zlib.compressobj(level)
    raw = compressed = 0
    for array in arrays:
        data = np.ascontiguousarray(array).view(np.uint8).data
        raw += array.nbytes
        compressed += len(compressor.compress(data))
    return raw, compressed + len(compressor.flush())


def packed_bytes(arrays, stored):
    """Bytes of the arrays, without the zeros of those with many.

    Such an array is what is not zero, and one bit for each element that says
    whether it is.

    Args:
        arrays: iterable of arrays.
        stored: iterable of the same arrays in the bits that they are stored
            in, where some that are not zero may be rounded to it.

    Example:

    ```python
    weights = np.float32([0, 0, 0, 0, 0, 0, 0, 5])
    packed_bytes([weights], [weights.astype(np.int8)])  # 2
    ```
    """
    return sum(
        min(
            rounded.nbytes,
            count(array).kept * rounded.itemsize + math.ceil(array.size / 8),
        )
        for array, rounded in zip(arrays, stored, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Compression:
    """How many times smaller than the dense float32 model, counted five ways.

    The first is the figure of papers: of the encoder's kernels alone, as if
    nothing had to be stored but the values of the weights that are kept. The
    others add, one after the other, what is stored besides. Heads and the
    pooler are left out of all; `packed_bytes` counts everything.

    Args:
        kernels: float. Of the encoder's kernels, without their index.
        layers: float. With the biases and norms of the layers, in float32.
        indexed: float. With one bit for each weight, kept or not.
        model: float. As `layers`, with the embeddings in float32.
        model_int8: float. As `layers`, with all embeddings in 8 bits.

    Reference: [Prune Once for All](https://arxiv.org/abs/2111.05754).
    """

    kernels: float
    layers: float
    indexed: float
    model: float
    model_int8: float


def compression(config, kept, bits):
    """Returns the `Compression` of an encoder.

    Args:
        config: BertConfig.
        kept: int. Weights of the encoder's kernels that are not zero.
        bits: int. Of each of them as stored.

    Example:

    ```python
    compression(bert_base, kept=8_493_466, bits=8).kernels  # 40.0
    ```
    """
    size = _count_weights(
        config,
        lambda row: (
            row.name.startswith("layer_") and row.name.endswith("/kernel")
        ),
    )
    layers = encoder_parameters(config)
    whole = _count_weights(config, lambda row: row.group is None)
    tables = _count_weights(config, lambda row: row.name.endswith("embeddings"))
    stored = kept * bits / 8
    with_norms = stored + 4 * (layers - size)
    with_tables = with_norms + 4 * (whole - layers)

    def ratio(weights, stored_bytes):
        return 4 * weights / stored_bytes if stored_bytes else math.inf

    return Compression(
        kernels=ratio(size, stored),
        layers=ratio(layers, with_norms),
        indexed=ratio(layers, with_norms + size / 8),
        model=ratio(whole, with_tables),
        model_int8=ratio(whole, with_tables - 3 * tables),
    )


def parameters(config, num_outputs=None):
    """Number of parameters of a model, from its shape alone.

    Args:
        config: BertConfig.
        num_outputs: int or None. Of the classifier; None: there is none.

    Example:

    ```python
    parameters(bert_base, num_outputs=2)  # 109483778
    ```
    """
    groups = {None, "pooler"}
    if num_outputs is not None:
        groups.add("classifier")
    return _count_weights(config, lambda row: row.group in groups, num_outputs)


def percent_left(part, whole, count=parameters):
    """Returns how much of a model a part of it has, in percent.

    Args:
        part: BertConfig.
        whole: BertConfig.
        count: function of a BertConfig. What is compared.
    """
    return 100 * count(part) / count(whole)


def encoder_parameters(config):
    """Number of parameters of the encoder's layers, from the shape alone.

    Args:
        config: BertConfig.
    """
    return _count_weights(config, lambda row: row.name.startswith("layer_"))


def encoder_macs(config, length):
    """Multiply-accumulate operations of the encoder's layers on one sequence.

    Args:
        config: BertConfig.
        length: int. Tokens, padding included.

    Returns:
        int. Of the products of matrices alone: kernels, scores and context.

    Example:

    ```python
    encoder_macs(bert_base, 128) / 128  # 87.3 million a token
    ```
    """
    per_head, per_neuron, fixed = unit_costs(config, "macs", length)
    heads, neurons = sum(config.num_heads), sum(config.intermediate_sizes)
    return fixed + heads * per_head + neurons * per_neuron


def unit_costs(config, cost, length=0):
    """What one head and one neuron cost, and the layers without any.

    Args:
        config: BertConfig.
        cost: str. "macs" or "parameters".
        length: int. Tokens, for "macs".

    Returns:
        Three ints: of a head, of a neuron, and what the layers cost besides.
    """
    hidden, size = config.hidden_size, config.head_size
    if cost == "macs":
        per_head = length * 4 * hidden * size + 2 * length**2 * size
        return per_head, length * 2 * hidden, 0
    # Kernels and biases; the output biases and two norms a layer remain.
    fixed = sum(
        (6 if neurons else 5) * hidden for neurons in config.intermediate_sizes
    )
    return 4 * hidden * size + 3 * size, 2 * hidden + 1, fixed


def _count_weights(config, counts, num_outputs=None):
    return sum(
        math.prod(num_outputs if size is None else size for size in row.shape)
        for row in names.weight_table(config, "huggingface")
        if counts(row) and not is_range(row.name)
    )
