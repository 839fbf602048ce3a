"""A fine-tuned checkpoint's outputs stand in the order of the task's labels."""

import numpy as np
import pytest
import tiny_runs

from bert_pruning.commands import inputs
from bert_pruning.data.tasks import get_task
from bert_pruning.errors import UserError
from bert_pruning.modeling.checkpoints import load_checkpoint

MNLI = get_task("MNLI")


def checkpoint_of(directory, *labels):
    return load_checkpoint(
        tiny_runs.write_checkpoint(directory, {"labels": labels})
    )


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_outputs_are_matched_by_their_labels(tmp_path, spell):
    theirs = ("entailment", "contradiction", "neutral")
    checkpoint = checkpoint_of(tmp_path, *map(spell, theirs))
    weights = inputs.classifier_weights(checkpoint, MNLI)
    for index, label in enumerate(MNLI.labels):
        for name in ("classifier/kernel", "classifier/bias"):
            np.testing.assert_array_equal(
                weights[name][..., index],
                checkpoint.weights[name][..., theirs.index(label)],
            )


def test_labels_of_something_else_are_refused(tmp_path):
    checkpoint = checkpoint_of(tmp_path, "joy", "anger", "fear")
    with pytest.raises(UserError, match="joy, anger, fear; MNLI has"):
        inputs.classifier_weights(checkpoint, MNLI)
