"""Question answering, by flags.

    --task_name=SQuAD2 --data_dir=squad --max_seq_length=384

Imports no TensorFlow.
"""

import os

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS

NAMES = (
    *("doc_stride", "max_query_length", "n_best_size", "max_answer_length"),
    "null_score_diff_threshold",
)

# What of `train` is for texts with labels.
_OTHERS = (
    *("aug_train", "structure", "tickets", "sampling_temperature"),
    *("classifier_dropout", "cache_dir"),
)


def define():
    """Defines how texts are cut into windows, and answers chosen."""
    number = flags.DEFINE_integer
    number(
        "doc_stride",
        128,
        "SQuAD: tokens from the beginning of a window to that of the next.",
        1,
    )
    number("max_query_length", 64, "SQuAD: longest question, in tokens.", 1)
    number("n_best_size", 20, "SQuAD: candidates of a question.", 1)
    number("max_answer_length", 30, "SQuAD: longest answer, in tokens.", 1)
    flags.DEFINE_float(
        "null_score_diff_threshold",
        0.0,
        "SQuAD2: by how much no answer must score higher than the best one.",
    )


def is_asked():
    """Whether the flags name SQuAD as the task."""
    return (FLAGS.task_name or "").lower() in shared.SQUAD_VERSIONS


def is_version_2():
    """Whether some questions of the task have no answer."""
    return shared.SQUAD_VERSIONS[FLAGS.task_name.lower()] == "2.0"


def find_file(split):
    """Returns the file of a split of the task that the flags name.

    Raises:
        UserError: if it is not there.
    """
    version = shared.SQUAD_VERSIONS[FLAGS.task_name.lower()]
    name = f"{split}-v{version}.json"
    folders = [
        os.path.join(FLAGS.data_dir, name) for name in ("", "squad", "SQuAD")
    ]
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    raise UserError(
        f"Missing file: expected {name} in {' or '.join(folders)}. It is at "
        "https://rajpurkar.github.io/SQuAD-explorer/."
    )


def check():
    """Finds what contradicts itself before anything is loaded.

    Raises:
        UserError: saying what.
    """
    if not is_asked():
        for name in NAMES:
            if shared.is_changed(name):
                raise UserError(f"--{name} needs --task_name=SQuAD or SQuAD2.")
        return
    shared.refuse_flags(_OTHERS, "--task_name=SQuAD")
    if shared.is_changed("null_score_diff_threshold") and not is_version_2():
        raise UserError(
            "--null_score_diff_threshold needs --task_name=SQuAD2: all "
            "questions of SQuAD have an answer."
        )
    shared.check_many_classes(
        f"--task_name={FLAGS.task_name}", "all positions of a text"
    )
