"""Builds what the flags of `train` describe, and trains it.

Imports TensorFlow, so `train` imports it late, after the flags are read.
"""

import dataclasses
import functools
import math

import numpy as np
import tensorflow as tf
from absl import flags

from bert_pruning.commands import distillation_flags
from bert_pruning.commands import flags as shared
from bert_pruning.commands import inputs
from bert_pruning.commands import multitask_flags
from bert_pruning.commands import parts
from bert_pruning.commands import pruning_flags
from bert_pruning.commands import quantization_flags
from bert_pruning.compression import costs
from bert_pruning.compression import pruning
from bert_pruning.compression.structure import Structure
from bert_pruning.compression.tickets import KINDS
from bert_pruning.data import pipeline
from bert_pruning.data import shards
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling import checkpoints
from bert_pruning.training import evaluation
from bert_pruning.training import optimization
from bert_pruning.training import scoring
from bert_pruning.training import step
from bert_pruning.training import trainer
from bert_pruning.training.run import Run
from bert_pruning.training.shrinking import IterativeShrinking
from bert_pruning.training.summaries import Summaries

FLAGS = flags.FLAGS
LOG = shared.LOG


def train():
    """Trains by the flags.

    Returns:
        The finished `Run`.

    Raises:
        UserError: for wrong input, before any long work.
        trainer.Interrupted: after Ctrl-C, with the state saved.
    """
    strategy = prepare_device()
    run = Run(FLAGS.output_dir, shared.flags_as_text(), FLAGS.overwrite)
    task = shared.find_training_task("train on")
    checkpoint = inputs.load_checkpoint(FLAGS.init_checkpoint)
    tokenizer = inputs.find_tokenizer(checkpoint)
    structure, sizes = None, {}
    if FLAGS.structure:
        structure = Structure.load(FLAGS.structure)
        checkpoint, sizes = _cut(checkpoint, structure)
    checkpoint = quantization_flags.quantize(checkpoint)
    dropout, of_tasks = multitask_flags.classifier_dropouts()
    dropout = of_tasks.get(task.name, dropout)
    if dropout is not None:
        config = dataclasses.replace(
            checkpoint.config, classifier_dropout=dropout
        )
        checkpoint = dataclasses.replace(checkpoint, config=config)
    pruning_flags.check_model(checkpoint, num_outputs=task.num_outputs)
    teacher = inputs.load_teacher(checkpoint, task)
    if teacher is not None:
        pruning_flags.check_teacher(checkpoint.config, teacher[0])
        if task.is_regression:
            distillation_flags.note_regression(task.title)
    dev_sets, batches = _read_data(task, tokenizer)
    plan = plan_for(batches.num_batches)
    builder = _ModelBuilder(
        task,
        plan.num_steps,
        pruning_flags.build_sparsity(checkpoint, plan.num_steps),
        pruning_flags.build_shrinkage(checkpoint.config, plan.num_steps),
    )
    # Whatever could be wrong has been looked at; now replace what was there.
    run.begin()
    if structure is not None:
        parts.keep_structure(run, "structure.json", structure, FLAGS.structure)
    LOG.info("TensorBoard: tensorboard --logdir=%s", run.directory)

    with strategy.scope():
        if teacher is not None:
            builder.set_teacher(*teacher)
            _judge_teacher(builder.teacher, task, dev_sets[""])
        weights = _initial_weights(checkpoint, task)

        log_plan(plan, run)
        results = run_training(
            run,
            task.title,
            functools.partial(
                builder.build,
                checkpoint.config,
                weights,
                new_layers=checkpoint.new_layers,
            ),
            batches,
            plan,
            evaluate=_evaluation(task, dev_sets),
            primary_metric=task.primary_metric,
            save_model=saver(
                checkpoint, tokenizer.do_lower_case, task.to_dict()
            ),
            shrinking=builder.shrinking,
        )
    run.finish({**results, **sizes})
    return run


def _cut(checkpoint, structure):
    """Cuts a checkpoint to a structure; returns it and how much it is."""
    if structure.about.get("kind") in KINDS and not all(structure.heads):
        raise UserError(
            f"{FLAGS.structure} keeps no head of layer "
            f"{structure.heads.index(())}, but a ticket keeps one in every "
            "layer."
        )
    whole = checkpoint.config
    try:
        checkpoint = parts.cut(checkpoint, structure)
    except UserError as error:
        raise UserError(f"{FLAGS.structure}: {error}") from error
    part = checkpoint.config
    left = costs.percent_left(part, whole)
    LOG.info(
        "%s: %d of %d layers, %d of %d heads, %d of %d neurons, %.2f %% of the "
        "parameters",
        *(FLAGS.structure, part.num_layers, whole.num_layers),
        *(sum(part.num_heads), sum(whole.num_heads)),
        *(sum(part.intermediate_sizes), sum(whole.intermediate_sizes), left),
    )
    return checkpoint, {"percent_left": round(left, 4)}


def log_plan(plan, run, parts=""):
    """Says how much is to be done.

    Args:
        plan: `trainer.Plan`.
        run: Run.
        parts: str. Of what an epoch is made.
    """
    LOG.info(
        "%d steps of %d examples, %d steps an epoch%s%s",
        plan.num_steps,
        FLAGS.train_batch_size,
        plan.steps_per_epoch,
        parts and f": {parts}",
        ", resumed" if run.is_resumed else "",
    )


def run_training(run, title, build, batches, plan, **options):
    """Trains a model, with TensorBoard's scalars beside it.

    Args:
        run: Run. Begun.
        title: str. The tasks'.
        build: function that returns the model. Called for the trainer alone:
            a model that is cut is to go.
        batches: what has `epoch`.
        plan: `trainer.Plan`.
        **options: The other arguments of `Trainer`.

    Returns:
        dict. The results of the evaluation whose model is kept.
    """
    with Summaries(
        run.path("events"), shared.flags_as_text(), hyperparameters(title)
    ) as summaries:
        return trainer.Trainer(
            build(), batches, plan, run, summaries, **options
        ).train()


class _ModelBuilder:
    """Builds the models of a training: one, or one for each shape."""

    def __init__(self, task, num_steps, sparsity, shrinkage):
        self.task = task
        self.num_steps = num_steps
        self.sparsity = sparsity
        self.shrinking = None
        self.teacher = self.teacher_config = None
        if shrinkage is not None:
            self.shrinking = IterativeShrinking(
                shrinkage, self.build, FLAGS.carry_optimizer
            )

    def set_teacher(self, config, weights):
        self.teacher_config = config
        self.teacher = inputs.build_classifier(config, weights, self.task)

    def build(self, config, weights, start=0, new_layers=()):
        """Returns a compiled model.

        Args:
            config: BertConfig.
            weights: dict of arrays, or None: new ones.
            start: int. Optimizer steps done before this model's first.
            new_layers: tuple of str. What `weights` may lack.
        """
        student = bert.build_model(config, self.task.num_outputs)
        if weights is not None:
            start_weights(student, config, weights, new_layers)
        matches, magnitudes = (), None
        if self.teacher is not None:
            matches = distillation_flags.build_matches(
                config, self.teacher_config
            )
        student, pruner = wrap_for_pruning(student, self.sparsity)
        if FLAGS.pruning == "width":
            magnitudes = scoring.GradientMagnitudes(student)
        model = step.DistillationModel(
            student,
            self.teacher,
            matches,
            label_weight=distillation_flags.label_weight(),
            pruner=pruner,
            magnitudes=magnitudes,
            seed=FLAGS.seed,
            jit_compile=FLAGS.jit_compile,
            config=config,
        )
        model.compile(
            build_optimizer(student, self.num_steps, start, self.sparsity)
        )
        return model


def _read_data(task, tokenizer):
    """Returns the dev sets, by the suffix of their metrics, and the batches."""
    # The small sets first: a missing one is noticed before the long work.
    dev_sets = read_dev_sets(task, tokenizer)
    shared_options = batch_options()
    if FLAGS.aug_train is None:
        train_set = inputs.read_train_set(task, tokenizer)
        return dev_sets, pipeline.TrainBatches(train_set, **shared_options)
    found = shards.find_shards(FLAGS.aug_train, task)
    found.check()
    LOG.info(
        "%s augmented: %d examples in %d shards",
        task.title,
        sum(found.rows),
        len(found.rows),
    )

    def load(number):
        # Not cached on disk: tokenising a shard takes seconds.
        return pipeline.encode_examples(
            found.read(task, number), tokenizer, FLAGS.max_seq_length
        )

    label_dtype = np.float32 if task.is_regression else np.int32
    batches = shards.ShardedBatches(
        found.rows, load, label_dtype, **shared_options
    )
    return dev_sets, batches


def read_dev_sets(task, tokenizer):
    """Returns the encoded dev sets, by the suffix of their metrics."""
    return {
        split.removeprefix("dev").strip("_"): inputs.read_encoded(
            task, split, tokenizer
        )[1]
        for split in task.splits
        if split.startswith("dev")
    }


def batch_options():
    """Returns how the flags make batches of training examples."""
    return {
        "batch_size": FLAGS.train_batch_size,
        "seed": FLAGS.seed,
        "pad_multiple": _pad_multiple(),
    }


def _pad_multiple():
    if FLAGS.jit_compile:
        return 32  # XLA compiles each length anew.
    gpus = tf.config.list_physical_devices("GPU")
    # What tensor cores want.
    return 8 if gpus or FLAGS.mixed_precision != "float32" else 1


def start_weights(student, config, weights, new_layers):
    """Copies weights into a student and draws those that may be new."""
    new = bert.set_weights(student, weights, new_layers)
    bert.draw_weights(student, new, config.initializer_range, FLAGS.seed)
    if new:
        LOG.info("New weights: %s", ", ".join(new))


def wrap_for_pruning(student, sparsity):
    """Returns a student wrapped for pruning by magnitude, and its pruner.

    Without a sparsity it is the student itself, and None.
    """
    if sparsity is None:
        return student, None
    student = pruning.wrap(student, sparsity)
    return student, pruning.Pruner(student, sparsity)


def build_trained(student, model_class, sparsity, num_steps, **options):
    """Returns a compiled model that trains a student by the flags.

    Args:
        student: a model with the weights to begin with.
        model_class: `DistillationModel`, or one derived from it.
        sparsity: Sparsity or None.
        num_steps: int. Optimizer steps of the run.
        **options: Other arguments of the class.
    """
    student, pruner = wrap_for_pruning(student, sparsity)
    model = model_class(
        student,
        pruner=pruner,
        seed=FLAGS.seed,
        jit_compile=FLAGS.jit_compile,
        **options,
    )
    model.compile(build_optimizer(student, num_steps, sparsity=sparsity))
    return model


def saver(checkpoint, do_lower_case, task=None, tasks=None):
    """Returns a function that saves a model to a directory.

    Args:
        checkpoint: Checkpoint. Whose vocabulary the model has.
        do_lower_case: bool.
        task: dict or None. See `save_huggingface`.
        tasks: dict or None. See `save_huggingface`.
    """

    def save_model(model, directory):
        checkpoints.save_huggingface(
            directory,
            model.config,
            bert.get_weights(model.student),
            checkpoint.vocabulary,
            do_lower_case,
            task,
            tasks,
        )

    return save_model


def build_optimizer(student, num_steps, start=0, sparsity=None):
    """Builds the optimizer of the flags; see `optimization`."""
    ramp = None
    if FLAGS.lr_schedule == "rewind":
        ramp = (sparsity.begin_step, sparsity.end_step, sparsity.frequency)
    schedule = optimization.WarmupSchedule(
        FLAGS.learning_rate,
        num_steps,
        int(num_steps * FLAGS.warmup_proportion),
        FLAGS.lr_schedule,
        start,
        ramp,
    )
    return optimization.build_optimizer(
        student,
        FLAGS.optimizer,
        schedule,
        FLAGS.weight_decay,
        FLAGS.clip_norm,
    )


def _evaluation(task, dev_sets):
    """Returns a function that scores a model's student on every dev set."""
    evaluator_of = functools.lru_cache(maxsize=1)(evaluation.Evaluator)

    def evaluate(model):
        evaluator = evaluator_of(model.student)
        results = {}
        for suffix, dataset in dev_sets.items():
            found = evaluator.evaluate(task, dataset, FLAGS.eval_batch_size)
            for name, value in found.items():
                results[f"{name}_{suffix}" if suffix else name] = value
        return results

    return evaluate


def _initial_weights(checkpoint, task):
    """Returns the weights to start from, with a classifier if it fits.

    A run's classifier is taken for its own task alone, of one's own data too;
    a checkpoint that does not name its task is taken at its outputs and labels.
    """
    name = inputs.model_task(checkpoint) or task.model_task
    if name == task.model_task and "classifier/kernel" in checkpoint.weights:
        try:
            other = inputs.other_data(checkpoint, task)
            if other:
                raise UserError(
                    f"{checkpoint.path} was trained on other data, {other}."
                )
            return inputs.classifier_weights(checkpoint, task)
        except UserError as error:
            LOG.info("%s A new classifier is trained.", error)
    return {
        name: array
        for name, array in checkpoint.weights.items()
        if not name.startswith("classifier/")
    }


def _judge_teacher(teacher, task, dataset):
    found = evaluation.Evaluator(teacher).evaluate(
        task, dataset, FLAGS.eval_batch_size
    )
    value = found[task.primary_metric]
    chance = evaluation.chance_level(task, dataset.labels)
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


def plan_for(num_batches):
    """Returns when what happens, by the flags.

    Args:
        num_batches: int. An epoch's steps.
    """
    num_steps = FLAGS.max_steps
    if num_steps is None:
        num_steps = round(num_batches * FLAGS.num_train_epochs)
    num_steps = max(1, num_steps)
    patience = None
    if FLAGS.patience is not None:
        patience = math.ceil(num_batches * FLAGS.patience)
    return trainer.Plan(
        num_steps=num_steps,
        steps_per_epoch=num_batches,
        eval_steps=FLAGS.eval_steps or num_batches,
        save_steps=FLAGS.save_steps,
        log_steps=FLAGS.log_steps,
        accumulation=FLAGS.gradient_accumulation_steps,
        patience_steps=patience,
        keeps_last=FLAGS.keep == "last",
    )


def prepare_device():
    """Sets precision and GPU memory growth; returns the strategy."""
    if inputs.find_gpus():
        # Without it, sums on a GPU change from run to run.
        tf.config.experimental.enable_op_determinism()
    inputs.set_precision()
    if FLAGS.strategy == "mirrored":
        strategy = tf.distribute.MirroredStrategy()
        LOG.info("Mirrored over %d devices", strategy.num_replicas_in_sync)
        return strategy
    return tf.distribute.get_strategy()


def hyperparameters(title):
    """Returns what TensorBoard compares runs of these tasks by."""
    names = (
        "learning_rate",
        "train_batch_size",
        "num_train_epochs",
        "seed",
        "optimizer",
        "pruning",
        "sparsity",
        "quantize",
    )
    values = {name: FLAGS[name].value for name in names}
    values["task_name"] = title
    values["distill"] = ",".join(FLAGS.distill)
    return {name: v for name, v in values.items() if v is not None}
