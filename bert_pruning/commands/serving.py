"""What is served of a checkpoint, by the flags: its task, and what it reads.

Imports TensorFlow, so the commands import it late.
"""

import dataclasses

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import inputs
from bert_pruning.delivery import restoring
from bert_pruning.delivery import saved_model
from bert_pruning.modeling.checkpoints import resolve_do_lower_case

FLAGS = flags.FLAGS


def load_checkpoint():
    """Loads the checkpoint of the flags; without a task, as it is."""
    checkpoint = inputs.load_checkpoint(FLAGS.init_checkpoint)
    if FLAGS.task_name and not shared.is_special():
        return of_task(checkpoint, inputs.evaluation_task(checkpoint))
    return _with_case(checkpoint)


def of_task(checkpoint, task):
    """Returns a checkpoint whose outputs are in the order of a task's labels.

    Args:
        checkpoint: Checkpoint.
        task: Task.
    """
    weights = inputs.classifier_weights(checkpoint, task)
    return _with_case(
        dataclasses.replace(checkpoint, weights=weights, task=task.to_dict())
    )


def _with_case(checkpoint):
    """The checkpoint, lower-casing as the flags say."""
    lower_case = resolve_do_lower_case(checkpoint, FLAGS.do_lower_case)
    return dataclasses.replace(checkpoint, do_lower_case=lower_case)


def text_names(checkpoint):
    """Returns what the texts are called that a checkpoint reads."""
    if "span/kernel" in checkpoint.weights:
        return saved_model.QUESTION
    task = inputs.stored_task(checkpoint)
    if task is None:
        return saved_model.TWO_TEXTS
    # AX has a test split alone.
    split = next(iter(task.splits.values()))
    return saved_model.TWO_TEXTS if split.text_b else saved_model.ONE_TEXT


def serve(checkpoint):
    """Returns what is served of a checkpoint, a `saved_model.Served`."""
    restoring.check_trained(checkpoint)
    return restoring.serve(
        checkpoint, FLAGS.max_seq_length, text_names(checkpoint)
    )
