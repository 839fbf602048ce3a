"""Several tasks at once, by flags.

    --task_name=CoLA,RTE --tickets=RTE:tickets/rte/winning_14_1.json

Imports no TensorFlow.
"""

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.data import tasks
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS

# What only a training of several tasks reads.
NAMES = ("tickets", "sampling_temperature")

# What it does not read.
_OF_ONE = ("teacher_checkpoint", "hard_label_weight", "aug_train", "structure")


def define():
    """Defines the flags of several tasks, and of the classifiers' dropout."""
    flags.DEFINE_list(
        "tickets",
        [],
        "Of several tasks: TASK:FILE, the part of the model that the task "
        "uses; a task without one uses all of it.",
    )
    flags.DEFINE_float(
        "sampling_temperature",
        1.0,
        "Of several tasks: 1: every batch comes once an epoch. Higher: small "
        "tasks more often, large ones less.",
        lower_bound=1.0,
    )
    flags.DEFINE_list(
        "classifier_dropout",
        [],
        "Dropout before the classifier, instead of the checkpoint's; of "
        "several tasks also TASK:RATE.",
    )


def is_asked():
    """Whether the flags name several tasks."""
    return "," in (FLAGS.task_name or "")


def find_tasks():
    """Returns the tasks that the flags name, one or several.

    Raises:
        UserError: if there is no such task, it is named twice or has no
            training set.
    """
    if not is_asked():
        return [shared.find_training_task("train on")]
    found = []
    for name in FLAGS.task_name.split(","):
        if name.strip().lower() in shared.SPECIAL_TASKS:
            raise UserError(
                f"{name.strip()} is trained alone. Received: "
                f"--task_name={FLAGS.task_name}."
            )
        if not name.strip():
            raise UserError(
                "--task_name has an empty name between its commas. Received: "
                f"{FLAGS.task_name}."
            )
        task = tasks.get_task(name.strip())
        shared.check_trainable(task, "train on")
        if task.name in [other.name for other in found]:
            raise UserError(
                f"--task_name names {task.name} twice. Received: "
                f"{FLAGS.task_name}."
            )
        found.append(task)
    return found


def check():
    """Finds what contradicts itself before anything is loaded.

    Raises:
        UserError: saying what.
    """
    classifier_dropouts()
    if not is_asked():
        for name in NAMES:
            if shared.is_changed(name):
                raise UserError(
                    f"--{name} needs several tasks, such as "
                    "--task_name=CoLA,RTE."
                )
        return
    find_tasks()
    find_tickets()
    for name in _OF_ONE:
        if shared.is_changed(name):
            raise UserError(f"--{name} is for one task. Received: several.")
    if FLAGS.pruning in ("width", "depth"):
        raise UserError(
            f"--pruning={FLAGS.pruning} is for one task. Received: several."
        )
    if FLAGS.strategy != "none":
        raise UserError(
            "Several tasks are trained on one device. Leave out "
            f"--strategy={FLAGS.strategy}."
        )


def find_tickets():
    """Returns the file of each task's ticket, by the task's name.

    Raises:
        UserError: if a ticket is for a task that is not trained.
    """
    return _by_task("tickets", FLAGS.tickets, "TASK:FILE")


def classifier_dropouts():
    """Returns the rate of every classifier, or None, and those of tasks.

    Raises:
        UserError: if a rate is none, or for a task that is not trained.
    """
    for_all = [item for item in FLAGS.classifier_dropout if ":" not in item]
    if len(for_all) > 1:
        raise UserError(
            "--classifier_dropout takes one rate for all tasks. Received: "
            f"{', '.join(for_all)}."
        )
    of_tasks = [item for item in FLAGS.classifier_dropout if ":" in item]
    rates = {
        name: _parse_rate(rate)
        for name, rate in _by_task(
            "classifier_dropout", of_tasks, "TASK:RATE"
        ).items()
    }
    return (_parse_rate(for_all[0]) if for_all else None), rates


def _by_task(flag, items, form):
    found = {}
    if not items:
        return found
    names = {task.name for task in find_tasks()}
    for item in items:
        name, separator, value = item.partition(":")
        if not separator or not value:
            raise UserError(f"--{flag} takes {form}. Received: {item!r}.")
        if name.strip().lower() not in shared.SPECIAL_TASKS:
            name = tasks.get_task(name).name
        if name not in names or name in found:
            problem = "named twice" if name in found else "not trained"
            raise UserError(
                f"--{flag} is for the tasks of --task_name, each once; {name} "
                f"is {problem}. Received: {','.join(items)}."
            )
        found[name] = value
    return found


def _parse_rate(text):
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0.0 <= rate < 1.0:
        raise UserError(
            f"--classifier_dropout must lie in [0, 1). Received: {text}."
        )
    return rate
