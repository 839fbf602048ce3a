"""Builds what the flags say of pre-training, and trains or scores it.

Imports TensorFlow, so `train` and `evaluate` import it late.
"""

import numpy as np
from absl import flags

from bert_pruning.commands import assembly
from bert_pruning.commands import distillation_flags
from bert_pruning.commands import flags as shared
from bert_pruning.commands import inputs
from bert_pruning.commands import pretraining_flags
from bert_pruning.commands import pruning_flags
from bert_pruning.commands import quantization_flags
from bert_pruning.data import examples
from bert_pruning.data import pretraining as data
from bert_pruning.data.shards import ShardedBatches
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling import checkpoints
from bert_pruning.training import pretraining
from bert_pruning.training.run import Run

FLAGS = flags.FLAGS

_GROUPS = ("pooler", "mlm", "next_sentence")
# Heads that a checkpoint may lack.
_HEADS = ("pooler", "mlm_transform", "mlm_norm", "mlm_output", "next_sentence")


def train():
    """Pre-trains by the flags.

    Returns:
        The finished `Run`.

    Raises:
        UserError: for wrong input, before any long work.
        trainer.Interrupted: after Ctrl-C, with the state saved.
    """
    strategy = assembly.prepare_device()
    run = Run(FLAGS.output_dir, shared.flags_as_text(), FLAGS.overwrite)
    checkpoint = inputs.load_checkpoint(FLAGS.init_checkpoint)
    checkpoint = quantization_flags.quantize(checkpoint, _GROUPS)
    do_lower_case, corpus = _find_corpus(checkpoint)
    pruning_flags.check_model(checkpoint, _GROUPS)
    teacher = _load_teacher(checkpoint)
    matches = ()
    if teacher is not None:
        matches = distillation_flags.build_matches(
            checkpoint.config, teacher.config
        )
    masking = _masking(checkpoint)
    dev_sets = _read_dev_sets(corpus)
    batches = pretraining.MaskedBatches(
        ShardedBatches(
            corpus.rows_of("train"),
            lambda number: corpus.read("train", number),
            np.int32,
            **assembly.batch_options(),
        ),
        masking,
        FLAGS.seed,
    )
    plan = assembly.plan_for(batches.num_batches)
    sparsity = pruning_flags.build_sparsity(checkpoint, plan.num_steps, _GROUPS)
    with strategy.scope():
        model = _build(checkpoint, teacher, matches, sparsity, plan.num_steps)
        # What could be wrong has been looked at; now replace what was there.
        run.begin()
        shared.LOG.info("TensorBoard: tensorboard --logdir=%s", run.directory)
        evaluator = pretraining.PretrainingEvaluator(model.student, masking)
        assembly.log_plan(plan, run)
        results = assembly.run_training(
            run,
            pretraining_flags.NAME,
            lambda: model,
            batches,
            plan,
            evaluate=lambda _: evaluator.evaluate(
                dev_sets, FLAGS.eval_batch_size
            ),
            primary_metric="eval_mlm_accuracy",
            save_model=assembly.saver(checkpoint, do_lower_case),
        )
    run.finish(results)
    return run


def evaluate():
    """Scores a checkpoint on held-out examples by the flags.

    Returns:
        The dict of `PretrainingEvaluator`.
    """
    checkpoint = inputs.load_checkpoint(FLAGS.init_checkpoint)
    _, corpus = _find_corpus(checkpoint)
    model = bert.build_pretraining(checkpoint.config)
    # What is new is chance, and scored as such.
    new = bert.set_weights(model, checkpoint.weights, _HEADS)
    if new:
        shared.LOG.warning(
            "%s lacks %s: what it predicts is chance.",
            checkpoint.path,
            ", ".join(new),
        )
    return pretraining.PretrainingEvaluator(
        model, _masking(checkpoint)
    ).evaluate(_read_dev_sets(corpus), FLAGS.eval_batch_size)


def _find_corpus(checkpoint):
    do_lower_case = checkpoints.resolve_do_lower_case(
        checkpoint, FLAGS.do_lower_case
    )
    corpus = examples.find_corpus(
        FLAGS.data_dir, checkpoint.vocabulary, do_lower_case
    )
    if corpus.max_seq_length > FLAGS.max_seq_length:
        raise UserError(
            f"{FLAGS.data_dir} was prepared with --max_seq_length="
            f"{corpus.max_seq_length}. Received: {FLAGS.max_seq_length}."
        )
    return do_lower_case, corpus


def _masking(checkpoint):
    return data.Masking(
        checkpoint.vocabulary, FLAGS.mlm_probability, FLAGS.whole_word_mask
    )


def _read_dev_sets(corpus):
    if not corpus.files["dev"]:
        raise UserError(
            f"{corpus.folder} has no held-out examples to score. Run `prepare` "
            "with a higher --dev_share."
        )
    return [
        corpus.read("dev", number) for number in range(len(corpus.files["dev"]))
    ]


def _load_teacher(checkpoint):
    teacher = inputs.load_teacher_checkpoint(checkpoint)
    if teacher is None:
        return None
    for head, what in (
        ("mlm_transform", "hidden tokens"),
        ("next_sentence", "the next sentence"),
    ):
        if f"{head}/kernel" not in teacher.weights:
            raise UserError(
                f"The teacher {FLAGS.teacher_checkpoint} was not trained to "
                f"predict {what}. Pre-train it first, by train "
                f"--task_name={pretraining_flags.NAME}."
            )
    return teacher


def _build(checkpoint, teacher, matches, sparsity, num_steps):
    student = bert.build_pretraining(checkpoint.config)
    assembly.start_weights(
        student,
        checkpoint.config,
        checkpoint.weights,
        (*checkpoint.new_layers, *_HEADS),
    )
    taught_by = None
    if teacher is not None:
        taught_by = bert.build_pretraining(teacher.config)
        bert.set_weights(taught_by, teacher.weights, initialized=())
    return assembly.build_trained(
        student,
        pretraining.PretrainingModel,
        sparsity,
        num_steps,
        teacher=taught_by,
        matches=matches,
        label_weight=distillation_flags.label_weight(),
        config=checkpoint.config,
    )
