"""Scores any fine-tuned checkpoint on a labelled split.

    python -m bert_pruning evaluate --init_checkpoint=runs/mrpc --data_dir=glue

The task is the run's own, or all of a run of several; --task_name chooses.
Other checkpoints need it.
"""

import os
import time

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import pretraining_flags
from bert_pruning.commands import question_answering_flags
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS


def define_flags():
    """Defines the flags of `evaluate`."""
    shared.define_data_flags()
    pretraining_flags.define()
    question_answering_flags.define()
    flags.DEFINE_string("init_checkpoint", None, "The fine-tuned model.")
    flags.DEFINE_string(
        "split", "dev", "dev, or for MNLI dev_mismatched; train works too."
    )
    flags.DEFINE_string(
        "output_dir", None, "Writes eval_results.txt here; default: nowhere."
    )


def check_flags():
    """Finds what is wrong before anything is loaded."""
    shared.require("init_checkpoint", "data_dir")
    shared.follow_run(FLAGS.init_checkpoint)
    shared.check_task_name()
    pretraining_flags.check()
    question_answering_flags.check()


def main():
    """Evaluates by the flags; returns the exit status."""
    check_flags()

    from bert_pruning.commands import inputs
    from bert_pruning.training import run as runs

    run = None
    if FLAGS.output_dir:
        state = os.path.join(FLAGS.output_dir, "checkpoint")
        done = os.path.join(FLAGS.output_dir, "DONE")
        if os.path.exists(done) or os.path.isdir(state):
            raise UserError(
                f"{FLAGS.output_dir} holds a run of train. Choose another "
                "--output_dir for the evaluation."
            )
        run = runs.Run(FLAGS.output_dir, shared.flags_as_text())
    inputs.find_gpus()
    if pretraining_flags.is_asked():
        from bert_pruning.commands import pretraining

        results = pretraining.evaluate()
    elif question_answering_flags.is_asked():
        from bert_pruning.commands import question_answering

        results = question_answering.evaluate()
    else:
        results = _evaluate_tasks()
    for name in sorted(results):
        print(f"{name} = {results[name]}")
    if run is not None:
        run.begin()
        run.write_results(results)
    return 0


def _evaluate_tasks():
    from bert_pruning.commands import inputs

    models = [
        (checkpoint, task, weights, _read_data(checkpoint, task))
        for checkpoint, task, weights in inputs.load_models(
            FLAGS.init_checkpoint
        )
    ]
    results, primary = {}, []
    for checkpoint, task, weights, dataset in models:
        found = _evaluate(checkpoint.config, weights, task, dataset)
        primary.append(found[task.primary_metric])
        suffix = f"_{task.name}" if len(models) > 1 else ""
        results.update({f"{name}{suffix}": x for name, x in found.items()})
    if len(models) > 1:
        results["eval_mean"] = sum(primary) / len(primary)
    return results


def _read_data(checkpoint, task):
    from bert_pruning.commands import inputs

    tokenizer = inputs.find_tokenizer(checkpoint)
    _, dataset = inputs.read_encoded(task, FLAGS.split, tokenizer)
    if dataset.labels is None:
        raise UserError(
            f"The {FLAGS.split} split of {task.name} has no labels; "
            "`predict` writes its submission file."
        )
    return dataset


def _evaluate(config, weights, task, dataset):
    from bert_pruning.commands import inputs
    from bert_pruning.compression import costs
    from bert_pruning.modeling import bert
    from bert_pruning.training.evaluation import Evaluator

    model = inputs.build_classifier(config, weights, task)
    started = time.monotonic()
    results = Evaluator(model).evaluate(task, dataset, FLAGS.eval_batch_size)
    results["eval_time"] = round(time.monotonic() - started, 2)
    results["sparsity"] = costs.total(
        weights[name] for name in bert.encoder_kernels(config)
    ).sparsity
    return results
