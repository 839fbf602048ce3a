"""Pre-training, by flags.

    --task_name=pretraining --data_dir=prepared --whole_word_mask

Imports no TensorFlow.
"""

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS

NAME = "pretraining"

# What only pre-training reads.
_NAMES = ("mlm_probability", "whole_word_mask")

# What of `train` is for tasks with labels.
_OTHERS = (
    *("aug_train", "structure", "tickets", "sampling_temperature"),
    *("classifier_dropout", "train_fraction", "cache_dir"),
)


def define():
    """Defines which tokens are hidden."""
    flags.DEFINE_float(
        "mlm_probability",
        0.15,
        f"task_name={NAME}: share of the tokens that are hidden.",
        0.0,
        1.0,
    )
    flags.DEFINE_bool(
        "whole_word_mask",
        False,
        f"task_name={NAME}: hide the pieces of a word together.",
    )


def is_asked():
    """Whether the flags name pre-training as the task."""
    return (FLAGS.task_name or "").lower() == NAME


def check():
    """Finds what contradicts itself before anything is loaded.

    Raises:
        UserError: saying what.
    """
    if not is_asked():
        for name in _NAMES:
            if shared.is_changed(name):
                raise UserError(f"--{name} needs --task_name={NAME}.")
        return
    shared.refuse_flags(_OTHERS, f"--task_name={NAME}")
    if "split" in FLAGS and FLAGS.split != "dev":
        raise UserError(
            "Pre-training is scored on the held-out examples, --split=dev. "
            f"Received: {FLAGS.split}."
        )
    shared.check_many_classes(f"--task_name={NAME}", "a whole vocabulary")
