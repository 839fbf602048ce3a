"""The one table of weight names: ours, official, Hugging Face, keras-hub.

Readers and writers of every format use the same rows, in either direction,
through `mapping`.
"""

import dataclasses
import fnmatch

import numpy as np

from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.quantization import ranges_of

# Columns of _LAYERS and _PARTS after the first ones that describe the weight.
_FORMATS = ("official", "huggingface", "keras_hub")

# One row per layer: our name, kind, dimensions (in, out), and the layer's name
# in each format. `{i}` is the encoder layer; a name of None means that the
# format has no such layer. Dimensions are resolved by `_dimensions`.
_LAYERS = (
    (
        "word_embeddings",
        "table",
        ("vocab", "embedding"),
        "bert/embeddings/word_embeddings",
        "bert.embeddings.word_embeddings",
        "token_embedding",
    ),
    (
        "embedding_projection",
        "projection",
        ("embedding", "hidden"),
        None,
        "bert.embeddings.word_embeddings_projection",
        None,
    ),
    (
        "token_type_embeddings",
        "table",
        ("types", "hidden"),
        "bert/embeddings/token_type_embeddings",
        "bert.embeddings.token_type_embeddings",
        "segment_embedding",
    ),
    (
        "position_embeddings",
        "table",
        ("positions", "hidden"),
        "bert/embeddings/position_embeddings",
        "bert.embeddings.position_embeddings",
        "position_embedding",
    ),
    (
        "embeddings_norm",
        "norm",
        (None, "hidden"),
        "bert/embeddings/LayerNorm",
        "bert.embeddings.LayerNorm",
        "embeddings_layer_norm",
    ),
    (
        "layer_{i}_query",
        "dense",
        ("hidden", "heads"),
        "bert/encoder/layer_{i}/attention/self/query",
        "bert.encoder.layer.{i}.attention.self.query",
        "transformer_layer_{i}/self_attention_layer/query",
    ),
    (
        "layer_{i}_key",
        "dense",
        ("hidden", "heads"),
        "bert/encoder/layer_{i}/attention/self/key",
        "bert.encoder.layer.{i}.attention.self.key",
        "transformer_layer_{i}/self_attention_layer/key",
    ),
    (
        "layer_{i}_value",
        "dense",
        ("hidden", "heads"),
        "bert/encoder/layer_{i}/attention/self/value",
        "bert.encoder.layer.{i}.attention.self.value",
        "transformer_layer_{i}/self_attention_layer/value",
    ),
    (
        "layer_{i}_attention_output",
        "dense",
        ("heads", "hidden"),
        "bert/encoder/layer_{i}/attention/output/dense",
        "bert.encoder.layer.{i}.attention.output.dense",
        "transformer_layer_{i}/self_attention_layer/attention_output",
    ),
    (
        "layer_{i}_attention_norm",
        "norm",
        (None, "hidden"),
        "bert/encoder/layer_{i}/attention/output/LayerNorm",
        "bert.encoder.layer.{i}.attention.output.LayerNorm",
        "transformer_layer_{i}/self_attention_layer_norm",
    ),
    (
        "layer_{i}_intermediate",
        "dense",
        ("hidden", "intermediate"),
        "bert/encoder/layer_{i}/intermediate/dense",
        "bert.encoder.layer.{i}.intermediate.dense",
        "transformer_layer_{i}/feedforward_intermediate_dense",
    ),
    (
        "layer_{i}_output",
        "dense",
        ("intermediate", "hidden"),
        "bert/encoder/layer_{i}/output/dense",
        "bert.encoder.layer.{i}.output.dense",
        "transformer_layer_{i}/feedforward_output_dense",
    ),
    (
        "layer_{i}_output_norm",
        "norm",
        (None, "hidden"),
        "bert/encoder/layer_{i}/output/LayerNorm",
        "bert.encoder.layer.{i}.output.LayerNorm",
        "transformer_layer_{i}/feedforward_layer_norm",
    ),
    (
        "pooler",
        "dense",
        ("hidden", "hidden"),
        "bert/pooler/dense",
        "bert.pooler.dense",
        "pooled_dense",
    ),
    ("classifier", "head", ("hidden", "any"), "", "classifier", None),
    (
        "mlm_transform",
        "dense",
        ("hidden", "hidden"),
        "cls/predictions/transform/dense",
        "cls.predictions.transform.dense",
        None,
    ),
    (
        "mlm_norm",
        "norm",
        (None, "hidden"),
        "cls/predictions/transform/LayerNorm",
        "cls.predictions.transform.LayerNorm",
        None,
    ),
    # The decoder's kernel is the word embedding table.
    (
        "mlm_output",
        "bias",
        (None, "vocab"),
        "cls/predictions",
        "cls.predictions",
        None,
    ),
    (
        "next_sentence",
        "head",
        ("hidden", "two"),
        "cls/seq_relationship",
        "cls.seq_relationship",
        None,
    ),
    ("span", "head", ("hidden", "two"), "cls/squad", "qa_outputs", None),
)

# The weights of a layer of each kind: our name, the name in each format, and
# the formats that store it transposed. Our kernels are [in, out].
_PARTS = {
    "table": (("embeddings", "", "weight", "embeddings", ()),),
    "norm": (
        ("gamma", "gamma", "weight", "gamma", ()),
        ("beta", "beta", "bias", "beta", ()),
    ),
    "dense": (
        ("kernel", "kernel", "weight", "kernel", ("huggingface",)),
        ("bias", "bias", "bias", "bias", ()),
    ),
    "head": (
        (
            "kernel",
            "output_weights",
            "weight",
            None,
            ("official", "huggingface"),
        ),
        ("bias", "output_bias", "bias", None, ()),
    ),
    "projection": (("kernel", None, "weight", None, ("huggingface",)),),
    "bias": (("bias", "output_bias", "bias", None, ()),),
}

# Layers that a checkpoint may lack, all of a group or none.
_OPTIONAL_GROUPS = {
    "pooler": "pooler",
    "classifier": "classifier",
    "mlm_transform": "mlm",
    "mlm_norm": "mlm",
    "mlm_output": "mlm",
    "next_sentence": "next_sentence",
    "span": "span",
}

# A model of several tasks has a classifier for each.
_TASK_PREFIX = "classifier_"

# What checkpoints are known to hold beside the weights of a BERT: optimizer
# slots, counters, buffers that repeat a constant, and the tied decoder.
HARMLESS_EXTRAS = {
    "official": (
        "global_step",
        "*/adam_[mv]",
        "*/Adam",
        "*/Adam_1",
        "beta[12]_power",
        "lambda_[12]",
    ),
    "huggingface": (
        "bert.embeddings.position_ids",
        "bert.embeddings.token_type_ids",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    ),
    "keras_hub": (),
}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight and where a file format keeps it.

    Args:
        name: str. Our canonical name, `layer name/weight name`.
        stored_name: str. The name in the file.
        shape: tuple of ints. Our shape; None is an unknown dimension.
        transposed: bool. Whether the file stores the transpose.
        group: str or None. The head it belongs to; None for the encoder,
            without which nothing works.
    """

    name: str
    stored_name: str
    shape: tuple[int | None, ...]
    transposed: bool
    group: str | None

    @property
    def stored_shape(self):
        """The shape in the file."""
        return self.shape[::-1] if self.transposed else self.shape

    def convert(self, array):
        """Converts an array of the file to ours, or back; to float32."""
        array = np.asarray(array)
        if self.transposed:
            array = array.T
        return np.ascontiguousarray(array, np.float32)


def weight_table(config: BertConfig, file_format: str, tasks=()):
    """Returns the rows of the table for one model and one file format.

    Args:
        config: BertConfig. Says how many layers there are, and their shapes.
        file_format: str. "official", "huggingface" or "keras_hub".
        tasks: sequence of str. Those that have a classifier each.

    Returns:
        A tuple of `Weight`, those of all possible heads included.
    """
    column = _FORMATS.index(file_format)
    separator = "." if file_format == "huggingface" else "/"
    rows = []
    for i, template in _layer_templates(config, tasks):
        ours, kind, dimensions, *names = template
        layer_name = names[column]
        if ours == "embedding_projection" and not config.embedding_rank:
            continue
        sizes = _dimensions(config, i)
        if 0 in (sizes[dimension] for dimension in dimensions):
            continue  # The layer has no feed-forward block.
        parts = _PARTS[kind]
        if "kernel" in (part for part, *_ in parts) and config.is_quantized(
            ours.format(i=i)
        ):
            # No other program knows them.
            parts += tuple(
                (part, None, part, None, ())
                for part in ranges_of(ours.format(i=i))
            )
        for part, *part_names, transposed_in in parts:
            part_name = part_names[column]
            if layer_name is None or part_name is None:
                continue
            shape = tuple(sizes[dimension] for dimension in dimensions)
            if part.endswith("_range"):
                shape = (2,)
            elif part not in ("kernel", "embeddings"):
                shape = shape[1:]
            rows.append(
                Weight(
                    name=f"{ours}/{part}".format(i=i),
                    stored_name=separator.join(
                        filter(None, (layer_name, part_name))
                    ).format(i=i),
                    shape=shape,
                    transposed=file_format in transposed_in,
                    group=ours
                    if ours.startswith(_TASK_PREFIX)
                    else _OPTIONAL_GROUPS.get(ours),
                )
            )
    return tuple(rows)


def is_harmless_extra(name, file_format):
    """Returns whether a checkpoint may hold `name` without our using it."""
    return any(
        fnmatch.fnmatchcase(name, pattern)
        for pattern in HARMLESS_EXTRAS[file_format]
    )


def find_tasks(names, file_format=None):
    """Returns the tasks whose classifiers are among some weights, in order.

    Args:
        names: iterable of str. Names of weights.
        file_format: str or None. Whose names they are; None: ours.
    """
    start, end = _TASK_PREFIX, "/kernel"
    if file_format is not None:
        if file_format != "huggingface":
            return ()
        start, end = "classifiers.", ".weight"
    return tuple(
        name[len(start) : -len(end)]
        for name in names
        if name.startswith(start) and name.endswith(end)
    )


def _layer_templates(config, tasks):
    """Yields (encoder layer or None, row of _LAYERS) in graph order."""
    per_layer = [row for row in _LAYERS if "{i}" in row[0]]
    for row in _LAYERS:
        if row == per_layer[0]:
            for i in range(config.num_layers):
                for template in per_layer:
                    yield i, template
        elif "{i}" not in row[0]:
            yield None, row
    for task in tasks:
        dimensions = ("hidden", "any")
        names = (None, f"classifiers.{task}", None)
        yield None, (f"{_TASK_PREFIX}{task}", "head", dimensions, *names)


def _dimensions(config, layer):
    sizes = {
        None: None,
        "vocab": config.vocab_size,
        "embedding": config.embedding_rank or config.hidden_size,
        "hidden": config.hidden_size,
        "positions": config.max_position_embeddings,
        "types": config.type_vocab_size,
        "two": 2,
        "any": None,
    }
    if layer is not None:
        sizes["heads"] = config.num_heads[layer] * config.head_size
        sizes["intermediate"] = config.intermediate_sizes[layer]
    return sizes
