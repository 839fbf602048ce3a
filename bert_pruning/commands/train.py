r"""Fine-tunes a BERT; with a teacher distils, with --pruning=magnitude prunes.

    python -m bert_pruning train --task_name=MRPC --data_dir=glue \
        --init_checkpoint=uncased_L-12_H-768_A-12 --output_dir=runs/mrpc

    python -m bert_pruning train --task_name=MRPC --data_dir=glue \
        --init_checkpoint=uncased_L-12_H-768_A-12 \
        --teacher_checkpoint=runs/mrpc --distill=logits,hidden,attention \
        --pruning=magnitude --sparsity=0.95 --output_dir=runs/mrpc_x20

A killed run is resumed by the same command.
"""

import math
import sys

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import methods
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS


def define_flags():
    """Defines the flags of `train`."""
    shared.define_data_flags()
    text, number, real = (
        flags.DEFINE_string,
        flags.DEFINE_integer,
        flags.DEFINE_float,
    )
    text(
        "init_checkpoint",
        None,
        "Where the weights come from: an official or Hugging Face directory, "
        "a run, or preset:NAME of keras-hub.",
    )
    text("output_dir", None, "The run directory to write.")
    flags.DEFINE_bool("overwrite", False, "Replace the run in --output_dir.")
    number("train_batch_size", 32, "Examples per optimizer step.", 1)
    number(
        "gradient_accumulation_steps",
        1,
        "Micro-batches into which a batch is divided.",
        1,
    )
    real("learning_rate", 5e-5, "Highest learning rate.", 0.0)
    real("num_train_epochs", 3.0, "Epochs; fractions count.", 0.0)
    number("max_steps", None, "Optimizer steps, instead of epochs.", 1)
    real("warmup_proportion", 0.1, "Share of the steps to warm up.", 0.0, 1.0)
    flags.DEFINE_enum(
        "lr_schedule",
        "linear",
        ["linear", "constant", "official"],
        "After the warm-up: linear from the peak to zero, constant, or the "
        "official BERT code's, which drops by the warm-up's share first.",
    )
    flags.DEFINE_enum(
        "optimizer",
        "adamw",
        ["adamw", "bert_adam"],
        "AdamW, or the official BERT optimizer without bias correction.",
    )
    real("weight_decay", 0.01, "Not on biases and layer norms.", 0.0)
    real("clip_norm", 1.0, "Largest global gradient norm; 0: none.", 0.0)
    number("seed", 42, "Of data order, new weights and dropout.", 0, 2**31 - 1)
    number("eval_steps", 0, "Steps between evaluations; 0: an epoch.", 0)
    number("save_steps", 500, "Steps between checkpoints to resume from.", 1)
    number("log_steps", 10, "Steps between TensorBoard scalars.", 1)
    text("teacher_checkpoint", None, "A fine-tuned model of the same task.")
    flags.DEFINE_list(
        "distill",
        [],
        f"What to match with the teacher: {', '.join(shared.FEATURES)}.",
    )
    real("temperature", 1.0, "Softens the logits of both models.")
    real(
        "hard_label_weight",
        None,
        "Weight of the loss on the true labels; default 1 without a teacher, "
        "0 with one.",
        0.0,
    )
    for feature in shared.FEATURES:
        real(f"{feature}_weight", 1.0, f"Weight of the {feature} loss.", 0.0)
    flags.DEFINE_list(
        "layer_map",
        None,
        "For a shallower student: the teacher's index of each hidden state, "
        "0 being the embedding output. Default: evenly spaced.",
    )
    flags.DEFINE_enum(
        "pruning",
        "none",
        ["none", "magnitude"],
        "magnitude: prunes the encoder's kernels gradually, to --sparsity.",
    )
    real(
        "sparsity",
        None,
        "Share of zeros in each kernel at the end; needs --pruning=magnitude.",
    )
    real("initial_sparsity", 0.0, "At the start; = --sparsity: one-shot.")
    real("pruning_begin", 0.0, "Where the ramp begins, as a share of steps.")
    real("pruning_end", 1.0, "Where the ramp ends, as a share of steps.")
    number("pruning_frequency", 0, "Steps between updates; 0: ramp / 100.", 0)
    flags.DEFINE_list(
        "prune_targets",
        None,
        "Shell patterns of Dense layer names; default: the six per layer.",
    )
    text("sparsity_m_by_n", None, "M zeros in N weights, such as 2x4.")
    text("block_size", "1x1", "Blocks that are pruned as one, such as 4x1.")
    flags.DEFINE_enum(
        "block_pooling_type", "AVG", ["AVG", "MAX"], "A block's magnitude."
    )
    flags.DEFINE_enum(
        "mixed_precision",
        "float32",
        ["float32", "bfloat16", "float16"],
        "Precision of the computation; variables stay float32, and float16 "
        "scales the loss dynamically.",
    )
    flags.DEFINE_bool("jit_compile", False, "Compile the model with XLA.")
    flags.DEFINE_enum(
        "strategy",
        "none",
        ["none", "mirrored"],
        "Train on all GPUs of this machine.",
    )


def main():
    """Trains by the flags; returns the exit status."""
    shared.require("task_name", "data_dir", "init_checkpoint", "output_dir")
    check_flags()
    # Imports TensorFlow, so a wrong flag is answered before.
    from bert_pruning.commands import assembly

    try:
        run = assembly.train()
    except assembly.trainer.Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    print(run.path("eval_results.txt").read_text(), end="")
    print(f"Run: {run.directory}")
    return 0


def check_flags():
    """Finds what contradicts itself before anything is loaded."""
    for name in FLAGS:
        value = FLAGS[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name} must be finite. Received: {value}.")
    _check_distillation()
    _check_pruning()
    if FLAGS.max_steps is None and FLAGS.num_train_epochs <= 0:
        raise UserError(
            "--num_train_epochs must be positive. Received: "
            f"{FLAGS.num_train_epochs}."
        )
    if FLAGS.gradient_accumulation_steps > FLAGS.train_batch_size:
        raise UserError(
            "--gradient_accumulation_steps divides the batch and cannot be "
            f"more than --train_batch_size. Received: "
            f"{FLAGS.gradient_accumulation_steps} and "
            f"{FLAGS.train_batch_size}."
        )


def _check_distillation():
    for feature in FLAGS.distill:
        if feature not in shared.FEATURES:
            raise UserError(
                f"--distill takes {', '.join(shared.FEATURES)}. Received: "
                f"{feature!r}."
            )
    if FLAGS.distill and not FLAGS.teacher_checkpoint:
        raise UserError("--distill needs --teacher_checkpoint.")
    if FLAGS.teacher_checkpoint and not FLAGS.distill:
        raise UserError(
            "--teacher_checkpoint needs --distill, such as "
            "--distill=logits,hidden,attention."
        )
    for feature in shared.FEATURES:
        _check_use(f"{feature}_weight", (feature,))
    _check_use("temperature", ("logits",))
    _check_use("layer_map", ("hidden", "attention"))
    if FLAGS.temperature <= 0:
        raise UserError(
            f"--temperature must be positive. Received: {FLAGS.temperature}."
        )
    if not all(entry.strip().isdigit() for entry in FLAGS.layer_map or ()):
        raise UserError(
            "--layer_map needs numbers, such as 0,2,4. Received: "
            f"{','.join(FLAGS.layer_map)}."
        )
    taught = "logits" in FLAGS.distill and FLAGS.logits_weight > 0
    if shared.label_weight() > 0 or taught:
        return
    if not FLAGS.distill:
        raise UserError(
            "--hard_label_weight=0 without a teacher leaves nothing to learn."
        )
    raise UserError(
        "The classifier would learn from neither the teacher nor the labels. "
        "Add logits to --distill, or give --hard_label_weight=1. Received: "
        f"--distill={','.join(FLAGS.distill)} "
        f"--logits_weight={FLAGS.logits_weight:g}."
    )


def _check_use(name, features):
    """A flag of distillation that nothing reads is a mistake."""
    if shared.is_changed(name) and not set(features) & set(FLAGS.distill):
        raise UserError(
            f"--{name} needs {' or '.join(features)} in --distill. Received: "
            f"--distill={','.join(FLAGS.distill)}."
        )


def _check_pruning():
    if FLAGS.pruning == "none":
        for name in PRUNING_FLAGS:
            if shared.is_changed(name):
                raise UserError(f"--{name} needs --pruning=magnitude.")
        return
    if FLAGS.sparsity is None:
        raise UserError(
            f"--pruning={FLAGS.pruning} needs --sparsity, such as 0.8."
        )
    if not 0.0 <= FLAGS.pruning_begin <= FLAGS.pruning_end <= 1.0:
        raise UserError(
            "--pruning_begin and --pruning_end are shares of the training, "
            "from 0 to 1, and the ramp must end after it begins. Received: "
            f"{FLAGS.pruning_begin} and {FLAGS.pruning_end}."
        )
    methods.build_sparsity(FLAGS.max_steps)


# What `--pruning` and `--distill` read.
PRUNING_FLAGS = (
    "sparsity",
    "initial_sparsity",
    "pruning_begin",
    "pruning_end",
    "pruning_frequency",
    "prune_targets",
    "sparsity_m_by_n",
    "block_size",
    "block_pooling_type",
)
DISTILLATION_FLAGS = (
    "hard_label_weight",
    "layer_map",
    "temperature",
    *(f"{feature}_weight" for feature in shared.FEATURES),
)
