r"""Fine-tunes a BERT; with a teacher distils, with --pruning=magnitude prunes.

    python -m bert_pruning train --task_name=MRPC --data_dir=glue \
        --init_checkpoint=uncased_L-12_H-768_A-12 --output_dir=runs/mrpc

    python -m bert_pruning train --task_name=MRPC --data_dir=glue \
        --init_checkpoint=uncased_L-12_H-768_A-12 \
        --teacher_checkpoint=runs/mrpc --distill=logits,hidden,attention \
        --pruning=magnitude --sparsity=0.95 --output_dir=runs/mrpc_x20

A killed run is resumed by the same command.
"""

import sys

from absl import flags

from bert_pruning.commands import distillation_flags
from bert_pruning.commands import flags as shared
from bert_pruning.commands import multitask_flags
from bert_pruning.commands import pretraining_flags
from bert_pruning.commands import pruning_flags
from bert_pruning.commands import quantization_flags
from bert_pruning.commands import question_answering_flags
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS

# What defines and checks the flags of a part each.
PARTS = (
    *(distillation_flags, pruning_flags, quantization_flags),
    *(multitask_flags, pretraining_flags, question_answering_flags),
)


def define_flags():
    """Defines the flags of `train`."""
    shared.define_data_flags()
    shared.define_subset_flags()
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
    text(
        "aug_train",
        None,
        "Train on what `augment` wrote to this folder, instead of the task's "
        "training file.",
    )
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
        ["linear", "constant", "official", "rewind"],
        "After the warm-up: linear from the peak to zero; constant; the "
        "official BERT code's, which drops by the warm-up's share first; or "
        "linear, begun anew at each update while the sparsity rises.",
    )
    flags.DEFINE_enum(
        "optimizer",
        "adamw",
        ["adamw", "bert_adam", "adamax"],
        "AdamW, the official BERT optimizer without bias correction, or "
        "MT-DNN's Adamax.",
    )
    real("weight_decay", 0.01, "Not on biases and layer norms.", 0.0)
    real("clip_norm", 1.0, "Largest global gradient norm; 0: none.", 0.0)
    number("seed", 42, "Of data order, new weights and dropout.", 0, 2**31 - 1)
    number("eval_steps", 0, "Steps between evaluations; 0: an epoch.", 0)
    flags.DEFINE_enum(
        "keep",
        "best",
        ["best", "last"],
        "Which evaluation's model is the run's: the best on the dev set, of "
        "those at the final sparsity or size, or the last step's.",
    )
    real(
        "patience",
        None,
        "Stop early after so many epochs without a better evaluation.",
        0.0,
    )
    number("save_steps", 500, "Steps between checkpoints to resume from.", 1)
    number("log_steps", 10, "Steps between TensorBoard scalars.", 1)
    for part in PARTS:
        part.define()
    shared.define_precision_flag(
        "variables stay float32, and float16 scales the loss dynamically."
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
    check_flags()
    # Imports TensorFlow, so a wrong flag is answered before.
    from bert_pruning.commands import assembly
    from bert_pruning.commands import multitask
    from bert_pruning.commands import pretraining
    from bert_pruning.commands import question_answering

    road = assembly
    if multitask_flags.is_asked():
        road = multitask
    elif pretraining_flags.is_asked():
        road = pretraining
    elif question_answering_flags.is_asked():
        road = question_answering
    try:
        run = road.train()
    except assembly.trainer.Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    print(run.path("eval_results.txt").read_text(), end="")
    print(f"Run: {run.directory}")
    return 0


def splits_read():
    """Returns which splits of a task of GLUE are read."""
    return ("dev",) if FLAGS.aug_train else ("train", "dev")


def check_flags():
    """Finds what contradicts itself before anything is loaded."""
    shared.require("task_name", "data_dir", "init_checkpoint", "output_dir")
    shared.check_training_tasks("train on")
    shared.check_finite()
    shared.check_separate(
        FLAGS.output_dir,
        *("init_checkpoint", "teacher_checkpoint", "aug_train", "structure"),
        *("tickets", "data_dir"),
    )
    shared.check_subset()
    if FLAGS.aug_train and FLAGS.train_fraction < 1.0:
        raise UserError(
            "--train_fraction takes a part of the task's training file; "
            "--aug_train is used whole. Leave one out."
        )
    for part in PARTS:
        part.check()
    if FLAGS.lr_schedule == "rewind" and FLAGS.pruning != "magnitude":
        raise UserError(
            "--lr_schedule=rewind begins anew when the sparsity rises, and "
            "needs --pruning=magnitude."
        )
    if FLAGS.lr_schedule == "rewind":
        left = 1.0 - (FLAGS.pruning_end - FLAGS.pruning_begin)
        if left <= FLAGS.warmup_proportion:
            raise UserError(
                "--lr_schedule=rewind falls in the steps that the ramp leaves, "
                "which must be more than the warm-up. Received: "
                f"--pruning_end={FLAGS.pruning_end:g} and "
                f"--warmup_proportion={FLAGS.warmup_proportion:g}."
            )
    if (
        FLAGS.patience is not None
        and FLAGS.pruning == "magnitude"
        and FLAGS.pruning_end == 1.0
        and FLAGS.initial_sparsity != FLAGS.sparsity
    ):
        raise UserError(
            "--patience counts from the first evaluation at the final "
            "sparsity, which --pruning_end=1 reaches in the last step. Give "
            "--pruning_end, such as 0.5."
        )
    if FLAGS.keep == "last" and FLAGS.patience is not None:
        raise UserError(
            "--patience ends a training at its best evaluation, which "
            "--keep=last would not keep. Leave one out."
        )
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
