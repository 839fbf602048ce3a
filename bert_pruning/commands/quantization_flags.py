"""What of a model computes in 8 bits while it trains, by flags.

checkpoint = quantize(checkpoint)
"""

import dataclasses

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import pruning_flags
from bert_pruning.errors import UserError
from bert_pruning.modeling import names
from bert_pruning.modeling.quantization import DEFAULT_LAYERS
from bert_pruning.modeling.quantization import GRANULARITIES
from bert_pruning.modeling.quantization import Quantization

FLAGS = flags.FLAGS

# What `--quantize` reads.
_NAMES = ("quantize_weights", "quantize_layers", "quantize_embeddings")


def define():
    """Defines the flags of quantisation."""
    flags.DEFINE_enum(
        "quantize",
        "none",
        ["none", "int8"],
        "int8: quantization-aware training. Dense layers compute as in 8 bits, "
        "zeros stay zeros, and `export` writes them so.",
    )
    flags.DEFINE_enum(
        "quantize_weights",
        GRANULARITIES[0],
        GRANULARITIES,
        "Each column of a kernel has its own scale, or the kernel has one.",
    )
    flags.DEFINE_list(
        "quantize_layers",
        list(DEFAULT_LAYERS),
        "Shell patterns of Dense layer names.",
    )
    flags.DEFINE_bool(
        "quantize_embeddings", False, "The table of word embeddings too."
    )


def check():
    """Finds what contradicts itself before anything is loaded.

    Raises:
        UserError: saying what.
    """
    if FLAGS.quantize == "none":
        for name in _NAMES:
            if shared.is_changed(name):
                raise UserError(f"--{name} needs --quantize=int8.")
        return
    if FLAGS.mixed_precision != "float32":
        raise UserError(
            "--quantize=int8 rounds float32 numbers to 8 bits. Received: "
            f"--mixed_precision={FLAGS.mixed_precision}."
        )
    if FLAGS.strategy == "mirrored" and FLAGS.jit_compile:
        raise UserError(
            "--quantize=int8 observes ranges on all devices together, which "
            "XLA cannot: leave out --jit_compile or --strategy=mirrored."
        )


def quantize(checkpoint, heads=("pooler",)):
    """Returns a checkpoint that computes as the flags say.

    Ranges that it has are gone on with; without --quantize they are left out.

    Args:
        checkpoint: Checkpoint.
        heads: tuple of str. Of the model, as `names.Weight.group` has them.

    Raises:
        UserError: if a pattern of --quantize_layers fits no layer.
    """
    quantization = None
    if FLAGS.quantize != "none":
        quantization = Quantization(
            FLAGS.quantize_weights,
            tuple(FLAGS.quantize_layers),
            FLAGS.quantize_embeddings,
        )
    elif checkpoint.config.quantization is not None:
        shared.LOG.info(
            "%s computes in 8 bits; this training does not, without "
            "--quantize=int8.",
            checkpoint.path,
        )
    # It imports TensorFlow.
    from bert_pruning.modeling.checkpoints import requantize

    found = requantize(checkpoint, quantization)
    if quantization is not None and shared.is_changed("quantize_layers"):
        # What stays to the end.
        shape = pruning_flags.shapes_of(found.config)[-1]
        table = names.weight_table(shape, "huggingface")
        _check_patterns(
            quantization, [row for row in table if row.group in (None, *heads)]
        )
    return found


def _check_patterns(quantization, table):
    whole = dataclasses.replace(quantization, layers=("*",))
    layers = [
        row.name.removesuffix("/kernel")
        for row in table
        if row.name.endswith("/kernel")
    ]
    layers = sorted(filter(whole.covers, layers))
    for pattern in quantization.layers:
        single = dataclasses.replace(quantization, layers=(pattern,))
        if not any(map(single.covers, layers)):
            raise UserError(
                f"No Dense layer that may be in 8 bits is called {pattern}; "
                "classifiers and the like stay float32. The model has "
                f"{', '.join(layers)}."
            )
