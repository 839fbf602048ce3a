"""Builds what the flags say of SQuAD; trains, scores and predicts it.

Imports TensorFlow, so the commands import it late.
"""

from absl import flags

from bert_pruning.commands import assembly
from bert_pruning.commands import distillation_flags
from bert_pruning.commands import flags as shared
from bert_pruning.commands import inputs
from bert_pruning.commands import pruning_flags
from bert_pruning.commands import quantization_flags
from bert_pruning.commands import question_answering_flags
from bert_pruning.data import squad
from bert_pruning.data import squad_answers
from bert_pruning.data import squad_metrics
from bert_pruning.data import squad_windows
from bert_pruning.data import subsets
from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.training import span
from bert_pruning.training.run import Run

FLAGS = flags.FLAGS

_HEADS = ("span",)


def train():
    """Trains by the flags.

    Returns:
        The finished `Run`.

    Raises:
        UserError: for wrong input, before any long work.
        trainer.Interrupted: after Ctrl-C, with the state saved.
    """
    strategy = assembly.prepare_device()
    run = Run(FLAGS.output_dir, shared.flags_as_text(), FLAGS.overwrite)
    checkpoint = inputs.load_checkpoint(FLAGS.init_checkpoint)
    checkpoint = quantization_flags.quantize(checkpoint, _HEADS)
    tokenizer = inputs.find_tokenizer(checkpoint)
    pruning_flags.check_model(checkpoint, _HEADS)
    teacher = _load_teacher(checkpoint)
    matches = ()
    if teacher is not None:
        matches = distillation_flags.build_matches(
            checkpoint.config, teacher.config
        )
    dev = _DevSet(tokenizer)
    dev.check_answers()
    questions = squad.read_squad(
        question_answering_flags.find_file("train"), needs_answers=True
    )
    rows = subsets.draw_rows(
        len(questions), FLAGS.train_fraction, FLAGS.subset_seed
    )
    dataset = _encode(
        [questions[row] for row in rows], tokenizer, with_labels=True
    ).dataset
    batches = TrainBatches(dataset, **assembly.batch_options())
    plan = assembly.plan_for(batches.num_batches)
    sparsity = pruning_flags.build_sparsity(checkpoint, plan.num_steps, _HEADS)
    with strategy.scope():
        model = _build(checkpoint, teacher, matches, sparsity, plan.num_steps)
        # What could be wrong has been looked at; now replace what was there.
        run.begin()
        shared.LOG.info("TensorBoard: tensorboard --logdir=%s", run.directory)
        predictor = span.SpanPredictor(model.student)
        assembly.log_plan(plan, run, f"{len(dataset)} windows")
        results = assembly.run_training(
            run,
            FLAGS.task_name,
            lambda: model,
            batches,
            plan,
            evaluate=lambda _: dev.score(predictor),
            primary_metric="eval_f1",
            save_model=assembly.saver(checkpoint, tokenizer.do_lower_case),
        )
    run.finish(results)
    return run


def evaluate():
    """Scores a checkpoint on the development set by the flags.

    Returns:
        A dict of floats: `eval_exact_match` and `eval_f1` in [0, 1], and in
        v2.0 the other figures of the official evaluation.
    """
    checkpoint = inputs.load_checkpoint(FLAGS.init_checkpoint)
    predictor = span.SpanPredictor(_restore(checkpoint))
    dev = _DevSet(inputs.find_tokenizer(checkpoint), FLAGS.split)
    dev.check_answers()
    return dev.score(predictor)


def predict():
    """Writes the answers to a split by the flags; returns the files."""
    checkpoint = inputs.load_checkpoint(FLAGS.init_checkpoint)
    predictor = span.SpanPredictor(_restore(checkpoint))
    dev = _DevSet(inputs.find_tokenizer(checkpoint), FLAGS.split or "dev")
    return squad_answers.write_predictions(
        FLAGS.output_dir, dev.answers(predictor)
    )


class _DevSet:
    """The questions of a split, and how their answers are scored."""

    def __init__(self, tokenizer, split="dev"):
        self._tokenizer = tokenizer
        self.questions = squad.read_squad(
            question_answering_flags.find_file(split), needs_answers=False
        )
        self._windows = _encode(self.questions, tokenizer, with_labels=False)

    def check_answers(self):
        if not question_answering_flags.is_version_2():
            squad_metrics.check_answers(self.questions)

    def answers(self, predictor):
        return squad_answers.find_answers(
            self.questions,
            self._windows,
            *predictor(self._windows.dataset, FLAGS.eval_batch_size),
            self._tokenizer,
            FLAGS.n_best_size,
            FLAGS.max_answer_length,
            FLAGS.null_score_diff_threshold,
            has_null=question_answering_flags.is_version_2(),
        )

    def score(self, predictor):
        answers = self.answers(predictor)
        if question_answering_flags.is_version_2():
            found = squad_metrics.evaluate_v2(
                self.questions, answers.texts, answers.null_odds
            )
            found["exact_match"] = found.pop("exact")
        else:
            found = squad_metrics.evaluate_v1(self.questions, answers.texts)
        # Shares, as of all tasks; thresholds and counts are as they are.
        return {
            f"eval_{name}": value
            if name.endswith(("thresh", "total"))
            else value / 100
            for name, value in found.items()
        }


def _encode(questions, tokenizer, with_labels):
    return squad_windows.encode_questions(
        questions,
        tokenizer,
        FLAGS.max_seq_length,
        FLAGS.doc_stride,
        FLAGS.max_query_length,
        with_labels=with_labels,
    )


def _check_trained(checkpoint):
    if "span/kernel" not in checkpoint.weights:
        raise UserError(
            f"{checkpoint.path} was not trained to answer questions. Train it "
            f"by --task_name={FLAGS.task_name} first."
        )


def _restore(checkpoint):
    _check_trained(checkpoint)
    model = bert.build_span_model(checkpoint.config)
    bert.set_weights(model, checkpoint.weights, initialized=())
    return model


def _load_teacher(checkpoint):
    teacher = inputs.load_teacher_checkpoint(checkpoint)
    if teacher is None:
        return None
    _check_trained(teacher)
    return teacher


def _build(checkpoint, teacher, matches, sparsity, num_steps):
    student = bert.build_span_model(checkpoint.config)
    assembly.start_weights(
        *(student, checkpoint.config, checkpoint.weights),
        (*checkpoint.new_layers, "span"),
    )
    return assembly.build_trained(
        student,
        span.SpanModel,
        sparsity,
        num_steps,
        teacher=None if teacher is None else _restore(teacher),
        matches=matches,
        label_weight=distillation_flags.label_weight(),
        config=checkpoint.config,
    )
