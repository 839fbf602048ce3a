"""Scores any fine-tuned checkpoint on a labelled split.

    python -m bert_pruning evaluate --init_checkpoint=runs/mrpc --data_dir=glue

The task is the run's own; other checkpoints need --task_name.
"""

import os
import time

from absl import flags

from bert_pruning.commands import flags as shared

FLAGS = flags.FLAGS


def define_flags():
    """Defines the flags of `evaluate`."""
    shared.define_data_flags()
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


def main():
    """Evaluates by the flags; returns the exit status."""
    check_flags()

    from bert_pruning.commands import inputs
    from bert_pruning.compression import costs
    from bert_pruning.errors import UserError
    from bert_pruning.modeling import bert
    from bert_pruning.training import run as runs
    from bert_pruning.training.evaluation import Evaluator

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
    checkpoint = inputs.load_checkpoint(FLAGS.init_checkpoint)
    task = inputs.evaluation_task(checkpoint)
    model = inputs.restore_classifier(checkpoint, task)
    tokenizer = inputs.find_tokenizer(checkpoint)
    _, dataset = inputs.read_encoded(task, FLAGS.split, tokenizer)
    if dataset.labels is None:
        raise UserError(
            f"The {FLAGS.split} split of {task.name} has no labels; "
            "`predict` writes its submission file."
        )
    started = time.monotonic()
    results = Evaluator(model).evaluate(task, dataset, FLAGS.eval_batch_size)
    results["eval_time"] = round(time.monotonic() - started, 2)
    results["sparsity"] = costs.total(
        checkpoint.weights[name]
        for name in bert.encoder_kernels(checkpoint.config)
    ).sparsity
    for name in sorted(results):
        print(f"{name} = {results[name]}")
    if run is not None:
        run.begin()
        run.write_results(results)
    return 0
