"""Cuts a BERT smaller: heads, neurons and layers, and the embeddings' rank.

Pure functions on a shape and its arrays. The model that comes out is an
ordinary one with a smaller `BertConfig`; its hidden states keep their width.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from bert_pruning.compression.structure import Structure
from bert_pruning.errors import UserError
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.names import weight_table
from bert_pruning.modeling.quantization import RANGES
from bert_pruning.modeling.quantization import is_range
from bert_pruning.modeling.quantization import keep_coverage

Arrays = Mapping[str, np.ndarray]

_LAYER_NAME = re.compile(r"layer_(\d+)_(\w+)/(\w+)")

# The axis of a layer's array that its heads or neurons lie along; what is not
# here has the width of the hidden states.
UNIT_AXES = {
    ("query", "kernel"): ("heads", 1),
    ("query", "bias"): ("heads", 0),
    ("key", "kernel"): ("heads", 1),
    ("key", "bias"): ("heads", 0),
    ("value", "kernel"): ("heads", 1),
    ("value", "bias"): ("heads", 0),
    ("query", "output_limits"): ("heads", 0),
    ("key", "output_limits"): ("heads", 0),
    ("value", "output_limits"): ("heads", 0),
    ("attention_output", "kernel"): ("heads", 0),
    ("intermediate", "kernel"): ("neurons", 1),
    ("intermediate", "bias"): ("neurons", 0),
    ("output", "kernel"): ("neurons", 0),
}

# With the last neuron goes the output's bias too: the whole block.
FEED_FORWARD = ("intermediate", "output")


def split_name(name: str) -> tuple[int | None, str, str]:
    """Splits the name of a weight into encoder layer, part and weight.

    Args:
        name: str. Canonical. Of a weight outside the layers: None and itself.

    Example:

    ```python
    split_name("layer_3_query/kernel")  # 3, "query", "kernel"
    ```
    """
    match = _LAYER_NAME.fullmatch(name)
    if match is None:
        return None, name, ""
    return int(match[1]), match[2], match[3]


def shrink(
    config: BertConfig, weights: Arrays, structure: Structure
) -> tuple[BertConfig, dict[str, np.ndarray]]:
    """Cuts everything out that a structure does not keep.

    The logits are those of the whole model with the outgoing weights of the
    other units at zero, and the output biases of layers that keep no neuron;
    a dropped layer is skipped altogether.

    Args:
        config: BertConfig. The shape of the whole model.
        weights: dict from canonical name to array. Its weights, or anything
            of the same names and shapes, such as an optimizer's slots.
        structure: Structure. The units kept.

    Returns:
        The smaller shape and arrays.

    Raises:
        UserError: if the structure is one of another shape.

    Example:

    ```python
    structure = keep_top(config, scores, num_heads=2, num_neurons=512)
    config, weights = shrink(config, weights, structure)
    ```

    Reference: [ROSITA](https://arxiv.org/abs/2103.11367).
    """
    smaller = _keep_quantization(structure.shrink(config), structure)
    new_layer = {old: new for new, old in enumerate(structure.layers)}
    within = np.arange(config.head_size)
    arrays = {}
    for name, array in weights.items():
        layer, part, weight = split_name(name)
        if layer is None:
            arrays[name] = array
            continue
        if layer not in new_layer:
            continue
        if part in FEED_FORWARD and not structure.neurons[layer]:
            continue
        unit, axis = UNIT_AXES.get((part, weight), (None, None))
        if unit is not None:
            kept = np.array(getattr(structure, unit)[layer])
            if unit == "heads":
                kept = (kept[:, np.newaxis] * config.head_size + within).ravel()
            array = np.take(array, kept, axis)
        arrays[f"layer_{new_layer[layer]}_{part}/{weight}"] = array
    return smaller, arrays


def expand(
    config: BertConfig, weights: Arrays
) -> tuple[BertConfig, dict[str, np.ndarray]]:
    """Puts a cut model back into a shape that other programs can build.

    Every layer gets as many heads as fit its width and as many neurons as the
    widest, the new ones all zeros; factors of the word embeddings are
    multiplied. Dropped layers stay dropped. The logits are those of the cut
    model.

    Args:
        config: BertConfig.
        weights: dict from canonical name to array.

    Returns:
        A uniform shape, and its arrays. What computed in 8 bits is float32.

    Raises:
        UserError: if the heads' width does not divide that of the model.

    Example:

    ```python
    config, weights = expand(checkpoint.config, checkpoint.weights)
    ```
    """
    if config.hidden_size % config.head_size:
        raise UserError(
            f"Heads of width {config.head_size} do not fill a model of width "
            f"{config.hidden_size}: no other program can build it."
        )
    num_layers = config.num_layers
    neurons = max(config.intermediate_sizes) or 4 * config.hidden_size
    whole = dataclasses.replace(
        config,
        num_heads=(config.hidden_size // config.head_size,) * num_layers,
        intermediate_sizes=(neurons,) * num_layers,
        embedding_rank=None,
        quantization=None,
    )
    arrays = {n: array for n, array in weights.items() if not is_range(n)}
    if config.embedding_rank:
        left = arrays["word_embeddings/embeddings"].astype(np.float64)
        right = arrays.pop("embedding_projection/kernel")
        arrays["word_embeddings/embeddings"] = (left @ right).astype(np.float32)
    for row in weight_table(whole, "huggingface"):
        if row.group is None:
            array = arrays.get(row.name, np.zeros((0,) * len(row.shape)))
            if array.shape != row.shape:
                arrays[row.name] = np.zeros(row.shape, np.float32)
                arrays[row.name][tuple(map(slice, array.shape))] = array
    return whole, arrays


def _keep_quantization(config, structure):
    """Lets the same layers compute in 8 bits after they are renumbered."""
    if config.quantization is None:
        return config
    after = _dense_layers(config)
    before = []
    for name in after:
        layer, part, _ = split_name(f"{name}/kernel")
        before.append(
            name if layer is None else f"layer_{structure.layers[layer]}_{part}"
        )
    return dataclasses.replace(
        config, quantization=keep_coverage(config.quantization, before, after)
    )


def factorize_embeddings(
    config: BertConfig, weights: Arrays, rank: int
) -> tuple[BertConfig, dict[str, np.ndarray]]:
    """Replaces the word embeddings by their best product of a lower rank.

    The table E becomes E1 of shape `(vocab_size, rank)` times E2 of shape
    `(rank, hidden_size)`, from the singular value decomposition of E, the
    singular values in E1. Factors that were trained since are decomposed
    anew: cutting their columns would not be the best approximation.

    Args:
        config: BertConfig.
        weights: dict from canonical name to array.
        rank: int in [1, current rank]; of a table that is not factorised yet,
            up to `hidden_size`.

    Returns:
        The new shape and arrays.

    Raises:
        UserError: if the rank is out of range.

    Example:

    ```python
    config, weights = factorize_embeddings(config, weights, 128)
    ```

    Reference: [ROSITA](https://arxiv.org/abs/2103.11367).
    """
    current = config.embedding_rank or config.hidden_size
    limit = min(current, config.vocab_size)
    if not 0 < rank <= limit:
        raise UserError(
            f"--emb_hidden_dim must lie in 1 to {limit}, the rank of the "
            f"model's embeddings. Received: {rank}."
        )
    arrays = dict(weights)
    # The right singular vectors are the eigenvectors of a small matrix; the
    # table times them is the left factor. In float64 nothing is lost by it.
    table = arrays["word_embeddings/embeddings"].astype(np.float64)
    gram = table.T @ table
    projection = np.eye(config.hidden_size)
    if config.embedding_rank:
        projection = arrays["embedding_projection/kernel"].astype(np.float64)
    _, vectors = np.linalg.eigh(projection.T @ gram @ projection)
    basis = vectors[:, ::-1][:, :rank]
    left = table @ (projection @ basis)
    arrays["word_embeddings/embeddings"] = left.astype(np.float32)
    arrays["embedding_projection/kernel"] = basis.T.astype(np.float32)
    # The input of a new projection was never observed.
    name = "embedding_projection"
    for part in RANGES:
        arrays.pop(f"{name}/{part}", None)
    smaller = dataclasses.replace(config, embedding_rank=rank)
    if config.quantization is not None:
        layers = _dense_layers(smaller)
        before = [None if layer == name else layer for layer in layers]
        quantization = keep_coverage(config.quantization, before, layers)
        smaller = dataclasses.replace(smaller, quantization=quantization)
    return smaller, arrays


def _dense_layers(config):
    return [
        row.name.removesuffix("/kernel")
        for row in weight_table(config, "huggingface")
        if row.name.endswith("/kernel")
    ]
