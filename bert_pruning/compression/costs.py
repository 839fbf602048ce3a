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
        if counts(row)
    )
