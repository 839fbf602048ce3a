"""The flags that several commands share.

`commands/` is the only room that reads flags; below it everything is plain
values.
"""

import contextlib
import logging
import math
import os

from absl import flags

from bert_pruning.commands.settings import PATH_LIST_FLAGS
from bert_pruning.data import tables
from bert_pruning.data import tasks
from bert_pruning.errors import UserError
from bert_pruning.outputs import check_writable
from bert_pruning.training import run

FLAGS = flags.FLAGS
LOG = logging.getLogger("bert_pruning")

# What --task_name may be beside the tasks of GLUE.
SQUAD_VERSIONS = {"squad": "1.1", "squad1.1": "1.1", "squad2": "2.0"}
SPECIAL_TASKS = ("custom", "pretraining", *SQUAD_VERSIONS)

# Those of them whose models do not name their task.
_UNNAMED_TASKS = ("pretraining", *SQUAD_VERSIONS)

# The parts of a task that name a column, and their flags.
COLUMNS = {
    "text_a": "text_a_column",
    "text_b": "text_b_column",
    "label": "label_column",
}


def define_data_flags():
    """Defines what to read: the task, its files and how they are encoded."""
    define_task_flags()
    flags.DEFINE_integer(
        "max_seq_length", 128, "Longest sequence, in tokens.", lower_bound=4
    )
    flags.DEFINE_integer(
        "eval_batch_size", 64, "Examples per evaluation batch.", lower_bound=1
    )
    flags.DEFINE_bool(
        "do_lower_case",
        None,
        "Whether texts are lower-cased; left out, the checkpoint tells.",
    )
    flags.DEFINE_string(
        "cache_dir", None, "Keeps tokenised data here for the next run."
    )


def define_task_flags():
    """Defines the task and where its files are."""
    flags.DEFINE_string(
        "task_name",
        None,
        "CoLA, SST-2, MRPC, MRPC-MSR, STS-B, QQP, MNLI, QNLI, RTE, WNLI, AX, "
        "or custom; `train` takes several, with commas between; or "
        "pretraining, on what `prepare` wrote; or SQuAD (v1.1), SQuAD2 (v2.0).",
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder that holds one folder per task with the official GLUE files, "
        "or the task's own folder, or 'tfds' for TensorFlow Datasets.",
    )
    flags.DEFINE_string("text_a_column", "text_a", "task_name=custom: column.")
    flags.DEFINE_string(
        "text_b_column", None, "task_name=custom: column of the second text."
    )
    flags.DEFINE_string("label_column", "label", "task_name=custom: column.")
    flags.DEFINE_bool(
        "regression",
        None,
        "task_name=custom: whether the labels are scores; left out, they tell.",
    )


def define_subset_flags():
    """Defines which part of the training set is used."""
    flags.DEFINE_float(
        "train_fraction",
        1.0,
        "Use this share of the training set, classes in their shares.",
        0.0,
        1.0,
    )
    flags.DEFINE_integer(
        "subset_seed", 1, "Which rows --train_fraction takes.", 0, 2**31 - 1
    )


def read_texts_settings(path):
    """Reads how a run cut texts.

    Args:
        path: str. The checkpoint.

    Returns:
        A dict of texts by flag, empty if it is no run; with the task of a run
        whose files name none, such as one of SQuAD.
    """
    given = {}
    # What was cut smaller says how that was trained which it was cut from.
    for name in ("flags.cfg", run.TEXTS_FILE):
        with (
            contextlib.suppress(OSError),
            open(os.path.join(path, name), encoding="utf-8") as file,
        ):
            given = run.parse_flags(file.read())
    names = ["max_seq_length", "doc_stride", "max_query_length"]
    if given.get("task_name", "").lower() in _UNNAMED_TASKS:
        names.append("task_name")
    return {name: given[name] for name in names if given.get(name)}


def texts_as_flags(path, **others):
    """Returns how a run cut texts as lines of a flagfile.

    Args:
        path: str. The checkpoint.
        **others: Values of flags that replace its own, or are added.
    """
    settings = read_texts_settings(path) | others
    return "".join(f"--{name}={value}\n" for name, value in settings.items())


def follow_run(path):
    """Takes over from a run how it cut texts, where the flags do not say.

    Args:
        path: str. The checkpoint; nothing happens if it is no run.
    """
    for name, value in read_texts_settings(path).items():
        if name not in FLAGS or FLAGS[name].present:
            continue
        before = FLAGS[name].value
        FLAGS[name].value = FLAGS[name].parser.parse(value)
        if FLAGS[name].value != before:
            LOG.info("--%s=%s, as %s was trained", name, value, path)


def check_task_name():
    """Checks that --task_name, if given, names tasks.

    Raises:
        UserError: saying which there are.
    """
    if FLAGS.task_name and not is_custom():
        refuse_custom_flags()
    _named_tasks()


def check_training_tasks(verb="train"):
    """Checks that --task_name names tasks that have training sets.

    Args:
        verb: str. What is to be done with them.

    Raises:
        UserError: saying which there are, or which has none.
    """
    check_task_name()
    for task in _named_tasks():
        check_trainable(task, verb)


def check_task_files(splits):
    """Checks that the tasks that --task_name names have their files.

    Args:
        splits: tuple of str. Which are read; "dev" stands for each dev set.

    Raises:
        UserError: naming a file that is missing from --data_dir.
    """
    if not os.path.isdir(FLAGS.data_dir or ""):
        return  # TensorFlow Datasets, or a folder that is still to be made.
    for task in _named_tasks():
        for name, split in task.splits.items():
            if name.startswith(splits):
                tables.find_file(FLAGS.data_dir, task.folder, split.file)


def _named_tasks():
    """Returns the tasks of GLUE that --task_name names."""
    return [
        tasks.get_task(name)
        for name in (FLAGS.task_name or "").split(",")
        if name and name.strip().lower() not in SPECIAL_TASKS
    ]


def is_special():
    """Whether the task is one whose models are no classifiers."""
    return (FLAGS.task_name or "").lower() in _UNNAMED_TASKS


def refuse_flags(names, task):
    """Refuses flags that a special task does not read.

    Args:
        names: sequence of str. Flags; a command may lack some.
        task: str. How the task is asked for.
    """
    for name in names:
        if name in FLAGS and is_changed(name):
            raise UserError(f"--{name} is not for {task}.")


def check_many_classes(task, classes):
    """Checks how a model that chooses among very many classes is trained.

    Args:
        task: str. How the task is asked for.
        classes: str. What they are.
    """
    if "pruning" in FLAGS and FLAGS.pruning in ("width", "depth"):
        raise UserError(f"--pruning={FLAGS.pruning} is not for {task}.")
    if "distill" not in FLAGS:
        return
    if "logits" in FLAGS.distill and FLAGS.logits_loss != "kl":
        raise UserError(
            f"Of {classes} the mean over classes is next to nothing: {task} "
            "with --distill=logits needs --logits_loss=kl."
        )


def check_subset():
    """Checks that a part of the training set is one, and used.

    Raises:
        UserError: saying what to change.
    """
    if FLAGS.train_fraction == 0.0:
        raise UserError("--train_fraction must be above 0. Received: 0.")
    if is_changed("subset_seed") and FLAGS.train_fraction == 1.0:
        raise UserError("--subset_seed needs --train_fraction below 1.")


def define_precision_flag(note):
    """Defines the precision of the computation.

    Args:
        note: str. What else is to be known of it.
    """
    flags.DEFINE_enum(
        "mixed_precision",
        "float32",
        ["float32", "bfloat16", "float16"],
        f"Precision of the computation; {note}",
    )


def require(*names):
    """Checks that flags were given.

    Raises:
        UserError: naming those that are missing.
    """
    missing = [f"--{name}" for name in names if not FLAGS[name].value]
    if missing:
        raise UserError(f"Missing: {', '.join(missing)}.")


def check_finite():
    """Checks that no flag is infinite or not a number.

    Raises:
        UserError: naming it.
    """
    for name in FLAGS:
        value = FLAGS[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name} must be finite. Received: {value}.")


def check_separate(output_dir, *names):
    """Checks that a command does not write over what it reads.

    Args:
        output_dir: str. Where it writes.
        *names: str. The flags that name what it reads.

    Raises:
        UserError: naming the flag.
    """
    output_dir = os.path.abspath(output_dir)
    checkpoints = os.path.join(output_dir, "checkpoint")
    for name in names:
        for path in paths_of(name, FLAGS[name].value):
            folder = os.path.abspath(path)
            # A file, or what the names of a TF1 checkpoint's files begin with.
            if os.path.isfile(folder) or os.path.isfile(f"{folder}.index"):
                folder = os.path.dirname(folder)
            if folder == output_dir or is_inside(folder, checkpoints):
                raise UserError(
                    f"--{name}={path} would be written over. Choose another "
                    "--output_dir."
                )


def is_inside(path, folder):
    """Whether a path is a folder, or in it; both spelt alike."""
    return f"{path}/".startswith(f"{folder}/")


def paths_of(name, value):
    """Returns the paths in a flag's value; those of presets are none.

    Args:
        name: str. The flag.
        value: str, list of str or None.
    """
    if name == "tickets":  # Of TASK:FILE.
        items = value.split(",") if isinstance(value, str) else value or []
        return [item.partition(":")[2] for item in items if ":" in item]
    if name in PATH_LIST_FLAGS:
        items = value.split(",") if isinstance(value, str) else value or []
        return [item for item in items if item]
    if not value or value == "tfds" or value.startswith("preset:"):
        return []
    return [value]


def find_training_task(verb="train"):
    """Returns the task that the flags name, which has a training set.

    Args:
        verb: str. What is to be done with it.

    Raises:
        UserError: there is none, or it has none.
    """
    task = find_task()
    check_trainable(task, verb)
    return task


def check_trainable(task, verb="train"):
    """Raises an error unless a task has a training set."""
    if "train" not in task.splits:
        raise UserError(
            f"{task.name} has no training data; {verb} {task.model_task}."
        )


def flags_as_text():
    """Returns the command's flags as a flagfile that gives the run again."""
    lines = []
    for name in sorted(FLAGS):
        flag = FLAGS[name]
        ours = flag.help and _is_ours(name) and name != "overwrite"
        if ours and flag.value is not None:
            lines.append(flag.serialize())
    return "\n".join(line for line in lines if line) + "\n"


def _is_ours(name):
    module = FLAGS.find_module_defining_flag(name)
    return bool(module) and module.startswith("bert_pruning.")


def find_task():
    """Returns the task that the flags name.

    Raises:
        UserError: there is none, or it is not the one of the other flags.
    """
    if not is_custom():
        refuse_custom_flags()
        return tasks.get_task(FLAGS.task_name)
    return tasks.get_task(
        FLAGS.task_name,
        data_dir=FLAGS.data_dir,
        regression=FLAGS.regression,
        **{name: FLAGS[flag].value for name, flag in COLUMNS.items()},
    )


def refuse_custom_flags():
    """Checks that no flag is given that only a task of one's own has."""
    for name in (*COLUMNS.values(), "regression"):
        if is_changed(name):
            raise UserError(f"--{name} needs --task_name=custom.")


def is_custom():
    """Whether the flags say that the data are a person's own."""
    return FLAGS.task_name is not None and FLAGS.task_name.lower() == "custom"


def is_changed(name):
    """Whether a flag says anything else than its default.

    A run's `flags.cfg` gives every flag, so being given says nothing. An empty
    text takes back what was given before.
    """
    value, default = FLAGS[name].value, FLAGS[name].default
    return value != default and not (value == "" and default is None)


def check_length(config):
    """Checks that the model reads sequences as long as the flags say."""
    if FLAGS.max_seq_length > config.max_position_embeddings:
        raise UserError(
            f"--max_seq_length={FLAGS.max_seq_length} is longer than the "
            f"{config.max_position_embeddings} positions of the model."
        )


def pair(name):
    """Returns a flag such as 2x4 as two ints."""
    parts = FLAGS[name].value.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise UserError(
            f"--{name} needs two numbers, such as 2x4. Received: "
            f"{FLAGS[name].value}."
        )
    return int(parts[0]), int(parts[1])


def positive_numbers(name):
    """Returns a flag's list as whole numbers above zero, each once.

    Args:
        name: str. The flag.
    """
    texts = FLAGS[name].value
    if not texts or not all(text.strip().isdigit() for text in texts):
        raise UserError(
            f"--{name} needs whole numbers. Received: {','.join(texts)}."
        )
    numbers = [int(text) for text in texts]
    if min(numbers) < 1:
        raise UserError(
            f"--{name} must be positive. Received: {','.join(texts)}."
        )
    return list(dict.fromkeys(numbers))


def check_picture(*extensions):
    """Checks that --plot can be written, if it is asked for.

    Args:
        *extensions: str. What it may end in.
    """
    if not FLAGS.plot:
        return
    if not FLAGS.plot.endswith(extensions):
        *others, last = extensions
        raise UserError(
            f"--plot must end in {', '.join(others)} or {last}. Received: "
            f"{FLAGS.plot}."
        )
    check_writable(os.path.dirname(FLAGS.plot) or ".", "--plot")
