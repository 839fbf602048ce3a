r"""Fine-tunes a BERT; with a teacher distils, with a sparsity prunes.

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
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS
LOG = shared.LOG


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
    number("seed", 42, "Of the data order, new weights and dropout.", 0)
    number("eval_steps", 0, "Steps between evaluations; 0: an epoch.", 0)
    number("save_steps", 500, "Steps between checkpoints to resume from.", 1)
    number("log_steps", 10, "Steps between TensorBoard scalars.", 1)
    text("teacher_checkpoint", None, "A fine-tuned model of the same task.")
    flags.DEFINE_list(
        "distill",
        [],
        "What to match with the teacher: logits, hidden, attention.",
    )
    real("temperature", 1.0, "Softens the logits of both models.")
    real(
        "hard_label_weight",
        None,
        "Weight of the loss on the true labels; default 1 without a teacher, "
        "0 with one.",
        0.0,
    )
    for feature in ("logits", "hidden", "attention"):
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
        "Gradual magnitude pruning of the encoder's kernels.",
    )
    real("sparsity", None, "Share of zeros in each kernel at the end.")
    real("initial_sparsity", 0.0, "At the start; = --sparsity: one-shot.")
    real("pruning_begin", 0.0, "Where the ramp begins, as a share of steps.")
    real("pruning_end", 1.0, "Where the ramp ends, as a share of steps.")
    number("pruning_frequency", 0, "Steps between updates; 0: ramp / 100.")
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
    _check_flags()
    # Imported here, so that a wrong flag is answered at once.
    import tensorflow as tf
    import tf_keras as keras

    from bert_pruning.compression import sparsity
    from bert_pruning.data import pipeline
    from bert_pruning.modeling import bert
    from bert_pruning.modeling import checkpoints
    from bert_pruning.training import optimization
    from bert_pruning.training import run as runs
    from bert_pruning.training import step
    from bert_pruning.training import summaries
    from bert_pruning.training import trainer
    from bert_pruning.training.evaluation import Evaluator

    strategy = prepare_device()
    task = shared.find_task()
    if "train" not in task.splits:
        raise UserError(
            f"{task.name} has no training data; train on {task.model_task}."
        )
    checkpoint = checkpoints.load_checkpoint(FLAGS.init_checkpoint)
    for note in checkpoint.notes:
        LOG.info("%s: %s", FLAGS.init_checkpoint, note)
    shared.check_length(checkpoint.config)
    tokenizer = shared.find_tokenizer(checkpoint)
    teacher_checkpoint, matches = _load_teacher(checkpoint, task)
    flags_text = shared.flags_as_text()
    run = runs.Run(FLAGS.output_dir, flags_text, FLAGS.overwrite)
    LOG.info("TensorBoard: tensorboard --logdir=%s", run.directory)

    _, train_set = shared.read_encoded(task, "train", tokenizer)
    dev_sets = {
        split.removeprefix("dev").strip("_"): shared.read_encoded(
            task, split, tokenizer
        )[1]
        for split in task.splits
        if split.startswith("dev")
    }
    batches = pipeline.TrainBatches(
        train_set,
        FLAGS.train_batch_size,
        FLAGS.seed,
        # XLA compiles each length anew.
        pad_multiple=32 if FLAGS.jit_compile else 1,
    )
    plan = _plan(batches)
    pruning = _sparsity(plan.num_steps)

    with strategy.scope():
        keras.utils.set_random_seed(FLAGS.seed)
        student = bert.build_model(checkpoint.config, task.num_outputs)
        weights = _initial_weights(checkpoint, task)
        new = bert.set_weights(student, weights, checkpoint.new_layers)
        if new:
            LOG.info("New weights: %s", ", ".join(new))
        teacher = None
        if teacher_checkpoint is not None:
            teacher = shared.restore_classifier(teacher_checkpoint, task)
            _judge_teacher(Evaluator(teacher), task, dev_sets[""])
        pruner = None
        if pruning is not None:
            student = sparsity.wrap(student, pruning)
            pruner = sparsity.Pruner(student, pruning)
        model = step.DistillationModel(
            student,
            teacher,
            matches,
            label_weight=_label_weight(),
            pruner=pruner,
            seed=FLAGS.seed,
            jit_compile=FLAGS.jit_compile,
        )
        schedule = optimization.WarmupSchedule(
            FLAGS.learning_rate,
            plan.num_steps,
            int(plan.num_steps * FLAGS.warmup_proportion),
            FLAGS.lr_schedule,
        )
        model.compile(
            optimization.build_optimizer(
                student,
                FLAGS.optimizer,
                schedule,
                FLAGS.weight_decay,
                FLAGS.clip_norm,
            )
        )

        evaluator = Evaluator(student)

        def evaluate():
            results = {}
            for suffix, dataset in dev_sets.items():
                found = evaluator.evaluate(
                    task, dataset, FLAGS.eval_batch_size
                )
                for name, value in found.items():
                    results[f"{name}_{suffix}" if suffix else name] = value
            return results

        def save_model(directory):
            checkpoints.save_huggingface(
                directory,
                checkpoint.config,
                bert.get_weights(student),
                checkpoint.vocabulary,
                tokenizer.do_lower_case,
                task.to_dict(),
            )

        LOG.info(
            "%d steps of %d examples, %d steps an epoch%s",
            plan.num_steps,
            FLAGS.train_batch_size,
            plan.steps_per_epoch,
            ", resumed" if run.is_resumed else "",
        )
        events = summaries.Summaries(
            run.path("events"), flags_text, _hyperparameters()
        )
        loop = trainer.Trainer(
            model,
            batches,
            plan,
            run,
            events,
            evaluate,
            task.primary_metric,
            save_model,
        )
        try:
            results = loop.train()
        except trainer.Interrupted as stopped:
            print(stopped, file=sys.stderr)
            return 130
        finally:
            events.close()
    run.finish(results)
    print(run.path("eval_results.txt").read_text(), end="")
    print(f"Run: {run.directory}")
    return 0


def prepare_device():
    """Sets precision and GPU memory growth; returns the strategy."""
    import tensorflow as tf
    import tf_keras as keras

    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        # Without it, sums on a GPU change from run to run.
        tf.config.experimental.enable_op_determinism()
    policy = "float32"
    if FLAGS.mixed_precision != "float32":
        policy = f"mixed_{FLAGS.mixed_precision}"
    keras.mixed_precision.set_global_policy(policy)
    if FLAGS.strategy == "mirrored":
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def _hyperparameters():
    names = (
        "task_name",
        "learning_rate",
        "train_batch_size",
        "num_train_epochs",
        "seed",
        "optimizer",
        "pruning",
        "sparsity",
    )
    values = {name: FLAGS[name].value for name in names}
    values["distill"] = ",".join(FLAGS.distill)
    return {name: v for name, v in values.items() if v is not None}


def _check_flags():
    """Finds what contradicts itself before anything is loaded."""
    if FLAGS.distill and not FLAGS.teacher_checkpoint:
        raise UserError("--distill needs --teacher_checkpoint.")
    if FLAGS.teacher_checkpoint and not FLAGS.distill:
        raise UserError(
            "--teacher_checkpoint needs --distill, such as "
            "--distill=logits,hidden,attention."
        )
    if _label_weight() == 0 and not FLAGS.distill:
        raise UserError(
            "--hard_label_weight=0 without a teacher leaves nothing to learn."
        )
    if FLAGS.pruning == "none" and FLAGS.sparsity is not None:
        raise UserError("--sparsity needs --pruning=magnitude.")
    if FLAGS.pruning != "none":
        if FLAGS.sparsity is None:
            raise UserError(
                f"--pruning={FLAGS.pruning} needs --sparsity, such as 0.8."
            )
        _sparsity(num_steps=10**6)
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


def _plan(batches):
    from bert_pruning.training.trainer import Plan

    num_steps = FLAGS.max_steps
    if num_steps is None:
        num_steps = round(batches.num_batches * FLAGS.num_train_epochs)
    num_steps = max(1, num_steps)
    return Plan(
        num_steps=num_steps,
        steps_per_epoch=batches.num_batches,
        eval_steps=FLAGS.eval_steps or batches.num_batches,
        save_steps=FLAGS.save_steps,
        log_steps=FLAGS.log_steps,
        accumulation=FLAGS.gradient_accumulation_steps,
    )


def _sparsity(num_steps):
    from bert_pruning.compression import sparsity

    if FLAGS.pruning == "none":
        return None
    for name in ("pruning_begin", "pruning_end"):
        if not 0.0 <= FLAGS[name].value <= 1.0:
            raise UserError(
                f"--{name} is a share of the training and must lie in "
                f"[0, 1]. Received: {FLAGS[name].value}."
            )
    options = {}
    if FLAGS.prune_targets is not None:
        options["targets"] = tuple(FLAGS.prune_targets)
    if FLAGS.sparsity_m_by_n:
        options["m_by_n"] = _pair("sparsity_m_by_n")
    return sparsity.Sparsity(
        final=FLAGS.sparsity,
        initial=FLAGS.initial_sparsity,
        begin_step=math.floor(num_steps * FLAGS.pruning_begin),
        end_step=math.ceil(num_steps * FLAGS.pruning_end),
        frequency=FLAGS.pruning_frequency,
        block_size=_pair("block_size"),
        block_pooling_type=FLAGS.block_pooling_type,
        **options,
    )


def _pair(name):
    parts = FLAGS[name].value.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise UserError(
            f"--{name} needs two numbers, such as 2x4. Received: "
            f"{FLAGS[name].value}."
        )
    return int(parts[0]), int(parts[1])


def _label_weight():
    if FLAGS.hard_label_weight is not None:
        return FLAGS.hard_label_weight
    return 0.0 if FLAGS.distill else 1.0


def _initial_weights(checkpoint, task):
    """Returns the weights to start from, with a classifier if it fits.

    A run's classifier is taken for its own task alone; a checkpoint that does
    not name its task is taken at its outputs and labels.
    """
    name = (checkpoint.task or {}).get("name", task.model_task)
    if name == task.model_task and "classifier/kernel" in checkpoint.weights:
        try:
            return shared.classifier_weights(checkpoint, task)
        except UserError as error:
            LOG.info("%s A new classifier is trained.", error)
    return {
        name: array
        for name, array in checkpoint.weights.items()
        if not name.startswith("classifier/")
    }


def _load_teacher(checkpoint, task):
    from bert_pruning.modeling import checkpoints
    from bert_pruning.training import distillation

    if not FLAGS.teacher_checkpoint:
        return None, ()
    teacher = checkpoints.load_checkpoint(FLAGS.teacher_checkpoint)
    if teacher.vocabulary != checkpoint.vocabulary:
        raise UserError(
            f"The teacher {FLAGS.teacher_checkpoint} and "
            f"{FLAGS.init_checkpoint} have different vocabularies; they would "
            "read different texts."
        )
    shared.check_length(teacher.config)
    shared.classifier_weights(teacher, task)
    hidden_map = None
    if FLAGS.layer_map is not None:
        if not all(entry.strip().isdigit() for entry in FLAGS.layer_map):
            raise UserError(
                "--layer_map needs numbers, such as 0,2,4. Received: "
                f"{','.join(FLAGS.layer_map)}."
            )
        hidden_map = tuple(int(entry) for entry in FLAGS.layer_map)
    matches = distillation.build_matches(
        FLAGS.distill,
        checkpoint.config,
        teacher.config,
        {
            feature: FLAGS[f"{feature}_weight"].value
            for feature in ("logits", "hidden", "attention")
        },
        FLAGS.temperature,
        hidden_map,
    )
    return teacher, matches


def _judge_teacher(evaluator, task, dataset):
    from bert_pruning.training.evaluation import chance_level

    found = evaluator.evaluate(task, dataset, FLAGS.eval_batch_size)
    value = found[task.primary_metric]
    chance = chance_level(task, dataset.labels)
    LOG.info("Teacher: %s = %.4f", task.primary_metric, value)
    if value <= chance:
        LOG.warning(
            "The teacher is no better than chance (%s = %.4f; always the "
            "commonest answer: %.4f). Was it fine-tuned on %s?",
            task.primary_metric,
            value,
            chance,
            task.name,
        )
