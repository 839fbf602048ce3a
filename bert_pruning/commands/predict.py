r"""Writes the predictions for a test set as a GLUE submission file.

    python -m bert_pruning predict --init_checkpoint=runs/mrpc \
        --data_dir=glue --output_dir=submission

MNLI gives two files, matched and mismatched; `--task_name=AX` takes a model
of MNLI. `--task_name=SQuAD` and `SQuAD2` write what the official evaluation of
SQuAD reads, of the dev set unless --split says otherwise.
"""

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import question_answering_flags

FLAGS = flags.FLAGS


def define_flags():
    """Defines the flags of `predict`."""
    shared.define_data_flags()
    question_answering_flags.define()
    flags.DEFINE_string("init_checkpoint", None, "The fine-tuned model.")
    flags.DEFINE_string(
        "split", None, "One split; default: every test split of the task."
    )
    flags.DEFINE_string("output_dir", None, "Where the files are written.")


def check_flags():
    """Finds what is wrong before anything is loaded."""
    shared.require("init_checkpoint", "data_dir", "output_dir")
    question_answering_flags.check()


def main():
    """Predicts by the flags; returns the exit status."""
    check_flags()

    from bert_pruning.commands import inputs
    from bert_pruning.delivery.submission import check_submission
    from bert_pruning.delivery.submission import write_submission
    from bert_pruning.training.evaluation import Evaluator

    inputs.find_gpus()
    if question_answering_flags.is_asked():
        from bert_pruning.commands import question_answering

        for path in question_answering.predict():
            print(path)
        return 0
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
    return 0


def _test_splits(task):
    return [split for split in task.splits if split.startswith("test")]
