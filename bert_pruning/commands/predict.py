r"""Writes the predictions for a test set as a GLUE submission file.

    python -m bert_pruning predict --init_checkpoint=runs/mrpc \
        --data_dir=glue --output_dir=submission

    python -m bert_pruning predict --init_checkpoint=runs/mrpc \
        --text="It rains." --text_b="It is raining."

MNLI gives two files, matched and mismatched; `--task_name=AX` takes a model
of MNLI. `--task_name=SQuAD` and `SQuAD2` write what the official evaluation of
SQuAD reads, of the dev set unless --split says otherwise.
"""

import os

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import question_answering_flags
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS

# What is not read of a single text.
_OF_FILES = ("data_dir", "output_dir", "split", "eval_batch_size", "cache_dir")


def define_flags():
    """Defines the flags of `predict`."""
    shared.define_data_flags()
    question_answering_flags.define()
    flags.DEFINE_string("init_checkpoint", None, "The fine-tuned model.")
    flags.DEFINE_string(
        "split", None, "One split; default: every test split of the task."
    )
    flags.DEFINE_string("output_dir", None, "Where the files are written.")
    flags.DEFINE_string(
        "text",
        None,
        "Predict this text alone, and print what comes out; of a model that "
        "answers questions, the question.",
    )
    flags.DEFINE_string(
        "text_b", None, "The second text; of a question, its context."
    )


def check_flags():
    """Finds what is wrong before anything is loaded."""
    shared.require("init_checkpoint")
    shared.follow_run(FLAGS.init_checkpoint)
    shared.check_task_name()
    question_answering_flags.check()
    if FLAGS.text is None:
        if FLAGS.text_b is not None:
            raise UserError("--text_b needs --text.")
        shared.require("data_dir", "output_dir")
        return
    for name in _OF_FILES:
        if shared.is_changed(name):
            raise UserError(f"--text is predicted alone, without --{name}.")
    for name in question_answering_flags.NAMES:
        if FLAGS[name].present:
            raise UserError(
                f"--text is answered as it is served; not --{name}."
            )


def main():
    """Predicts by the flags; returns the exit status."""
    check_flags()

    from bert_pruning.commands import inputs

    inputs.find_gpus()
    if FLAGS.text is not None:
        _print_prediction()
    else:
        _write_predictions(inputs)
    return 0


def _print_prediction():
    from bert_pruning.commands import serving
    from bert_pruning.delivery import saved_model

    checkpoint = serving.load_checkpoint()
    served = serving.serve(checkpoint)
    # What was typed may be no UTF-8.
    texts = [text and os.fsencode(text) for text in (FLAGS.text, FLAGS.text_b)]
    names = served.text_names
    if len(names) == 1:
        if FLAGS.text_b is not None:
            raise UserError(f"{checkpoint.path} reads one text, not --text_b.")
        texts = texts[:1]
    elif FLAGS.text_b is None:
        is_run = "splits" in (checkpoint.task or {})
        if is_run or names == saved_model.QUESTION:
            raise UserError(f"{checkpoint.path} reads two texts. Add --text_b.")
        texts[1] = ""
    found = saved_model.read(served, *([text] for text in texts))
    for name, values in found.items():
        value = values[0]
        if name == "probabilities":
            labels = served.labels or range(len(value))
            for label, share in zip(labels, value, strict=True):
                print(f"probability of {label} = {share:.4f}")
        elif isinstance(value, bytes):
            print(f"{name} = {value.decode(errors='replace')}")
        else:
            print(f"{name} = {value}")


def _write_predictions(inputs):
    from bert_pruning.delivery.submission import check_submission
    from bert_pruning.delivery.submission import write_submission
    from bert_pruning.training.evaluation import Evaluator

    if question_answering_flags.is_asked():
        from bert_pruning.commands import question_answering

        for path in question_answering.predict():
            print(path)
        return
    found = []
    for checkpoint, task, weights in inputs.load_models(FLAGS.init_checkpoint):
        tokenizer = inputs.find_tokenizer(checkpoint)
        for split in [FLAGS.split] if FLAGS.split else _test_splits(task):
            read = inputs.read_encoded(task, split, tokenizer)
            check_submission(task, split, read[0].ids, FLAGS.output_dir)
            found.append((checkpoint.config, weights, task, split, *read))
    evaluators = {}
    for config, weights, task, split, examples, dataset in found:
        if task.name not in evaluators:
            model = inputs.build_classifier(config, weights, task)
            evaluators[task.name] = Evaluator(model)
        logits = evaluators[task.name].predict(dataset, FLAGS.eval_batch_size)
        path = write_submission(
            task, split, logits, examples.ids, FLAGS.output_dir
        )
        print(f"{path}: {len(dataset)} predictions")


def _test_splits(task):
    return [split for split in task.splits if split.startswith("test")]
