"""What can be known to go wrong before a sweep's first training.

A sweep takes hours to days: flags, data, checkpoint, place and what earlier
runs left are all looked at first.

    tasks = check(sweep)
"""

import contextlib
import os
import shutil

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import pruning_flags
from bert_pruning.commands import settings
from bert_pruning.commands import train
from bert_pruning.commands.sweep import DECIDED
from bert_pruning.commands.sweep import Sweep
from bert_pruning.data.tasks import Task
from bert_pruning.data.tasks import read_examples
from bert_pruning.errors import UserError
from bert_pruning.outputs import check_writable

FLAGS = flags.FLAGS

# While it trains, a run holds its model, the best one and the optimizer's two
# slots.
_MODELS_WHILE_TRAINING = 5

# Which run will be the teacher is not known yet.
_TEACHER = "(the best run)"


def check(sweep: Sweep) -> dict[str, Task]:
    """Checks everything that a sweep needs.

    It sets the flags of `train` and imports TensorFlow, so it is best called
    in a process of its own.

    Args:
        sweep: `Sweep`.

    Returns:
        The tasks by the name that the sweep gives them.

    Raises:
        UserError: something is wrong; what is wrong with any task or run is
            told together.
    """
    check_writable(sweep.output_dir)
    stages = [
        (name, stage) for name in sweep.tasks for stage in _stages(sweep, name)
    ]
    # Cheap checks first, so that a wrong flag is answered at once.
    problems = _Problems()
    for name, stage in stages:
        with problems.of(stage.title):
            _check_decided(sweep, name, stage)
            train.check_flags()
            _check_earlier_run(stage)
    problems.tell()
    tasks, num_steps = {}, {}
    for name in sweep.tasks:
        with problems.of(name):
            of_task = _stages(sweep, name)
            _set_flags(of_task[0])
            tasks[name] = shared.find_training_task("train on")
            labels = _read_labels(tasks[name])
            for stage in of_task:
                with problems.of(stage.title):
                    _set_flags(stage)
                    num_steps[stage] = _count_steps(tasks[name], labels)

    from bert_pruning.modeling.checkpoints import load_checkpoint
    from bert_pruning.modeling.checkpoints import resolve_do_lower_case

    with problems.of("--init_checkpoint"):
        checkpoint = load_checkpoint(sweep.init_checkpoint)
        for name, stage in stages:
            task = tasks.get(name)
            with problems.of(stage.title):
                _set_flags(stage)
                shared.check_length(checkpoint.config)
                resolve_do_lower_case(checkpoint, FLAGS.do_lower_case)
                pruning_flags.check_model(
                    checkpoint,
                    num_outputs=task and task.num_outputs,
                    num_steps=num_steps.get(stage),
                )
                # The teacher is fine-tuned from the same checkpoint.
                pruning_flags.check_teacher(
                    checkpoint.config, checkpoint.config
                )
    problems.tell()
    waiting = sum(not stage.is_done for _, stage in stages)
    model_bytes = sum(array.nbytes for array in checkpoint.weights.values())
    if waiting:
        models = waiting + _MODELS_WHILE_TRAINING
        check_space(sweep.output_dir, models * model_bytes)
    return tasks


def prepare(sweep: Sweep) -> dict[str, Task]:
    """Checks a sweep and describes it to TensorBoard; see `check`."""
    tasks = check(sweep)

    from bert_pruning.delivery.experiment import write_experiment

    metrics = [metric for task in tasks.values() for metric in task.metrics]
    write_experiment(
        sweep.finetune_dir,
        tasks=list(dict.fromkeys(task.title for task in tasks.values())),
        learning_rates=[float(rate) for rate in sweep.learning_rates],
        seeds=sweep.seeds,
        metrics=list(dict.fromkeys(metrics)),
    )
    return tasks


def check_space(directory: str | os.PathLike, num_bytes: int) -> None:
    """Checks that a directory's disk has room.

    Raises:
        UserError: it has not.
    """
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise UserError(
            f"The runs need about {num_bytes / 1e9:.1f} GB, but --output_dir="
            f"{directory} has {free / 1e9:.1f} GB free. Free some space, "
            f"choose another one, or try fewer --learning_rates."
        )


def train_flags() -> list[str]:
    """The names of the flags that `train` understands."""
    modules = FLAGS.flags_by_module_dict()
    return [
        flag.name
        for module in (train, shared, *train.PARTS)
        for flag in modules[module.__name__]
    ]


class _Problems:
    """Gathers what is wrong, to be told at once."""

    def __init__(self):
        self._titles = {}

    @contextlib.contextmanager
    def of(self, title):
        """Notes the mistake that ends the block."""
        try:
            yield
        except UserError as error:
            # All stages of a task may suffer from the same.
            self._titles.setdefault(str(error), title)

    def tell(self):
        """Raises one `UserError` with every mistake."""
        lines = [f"{title}: {text}" for text, title in self._titles.items()]
        if len(lines) > 1:
            lines.insert(0, f"{len(lines)} mistakes before the first run:")
        if lines:
            raise UserError("\n".join(lines))


def _stages(sweep, name):
    finetuning = sweep.finetune_stages(name).values()
    stages = [stage for stages in finetuning for stage in stages]
    return stages + sweep.prune_stages(name, _TEACHER) * sweep.prune


def _set_flags(stage):
    _parse([*stage.arguments, f"--output_dir={stage.directory}"])


def _parse(arguments):
    for name in train_flags():
        FLAGS[name].unparse()
    try:
        rest = FLAGS(["train", *arguments])[1:]
    except flags.Error as error:
        raise UserError(str(error)) from error
    if rest:
        raise UserError(
            "Every line of a flagfile is a flag or, with a #, a comment. "
            f"Received: {' '.join(rest)}"
        )


def _check_decided(sweep, name, stage):
    """Sets a stage's flags; a flagfile must not say what the sweep does."""
    _parse(sweep.task_flags(name))
    own = _which_task()
    _set_flags(stage)
    for flag, value, is_other in (
        ("quantize", FLAGS.quantize, shared.is_changed("quantize")),
        ("structure", FLAGS.structure, shared.is_changed("structure")),
        (
            "teacher_checkpoint",
            FLAGS.teacher_checkpoint,
            FLAGS.teacher_checkpoint not in (None, "", _TEACHER),
        ),
        (
            "task_name",
            f"{FLAGS.task_name} in {FLAGS.data_dir}",
            _which_task() != own,
        ),
    ):
        if is_other:
            raise UserError(
                f"A flagfile gives --{flag}, which the sweep decides: "
                f"{DECIDED[flag]}. Received: {value}."
            )


def _which_task():
    return (FLAGS.task_name or "").lower(), settings.whole_path(FLAGS.data_dir)


def _check_earlier_run(stage):
    """A finished run of other flags must not pass for the one asked for."""
    begun = stage.directory / "flags.cfg"
    if FLAGS.overwrite or not stage.is_done or not begun.exists():
        return
    known = settings.defaults_of(train_flags())
    differing = settings.differences(
        settings.read(begun.read_text(), known),
        settings.read(shared.flags_as_text(), known),
        unknown=_TEACHER,
    )
    if differing:
        raise UserError(
            f"{stage.directory} is finished, but with other flags "
            f"({'; '.join(differing)}). Give the same flags, another "
            f"--output_dir, or --overwrite to run all anew."
        )


def _read_labels(task):
    """Reads what a training reads of a task; returns the training labels."""
    labels = {}
    for split in task.splits:
        if split == "train" or split.startswith("dev"):
            labels[split] = read_examples(task, FLAGS.data_dir, split).labels
            if labels[split] is None:
                raise UserError(f"{task.name}: {split} has no labels.")
    return labels["train"]


def _count_steps(task, labels):
    """Returns the steps of a stage that trains on rows with such labels."""
    from bert_pruning.commands import assembly
    from bert_pruning.data import pipeline
    from bert_pruning.data import shards
    from bert_pruning.data import subsets

    rows = [len(labels)]
    if FLAGS.aug_train:
        rows = shards.find_shards(FLAGS.aug_train, task).rows
    elif FLAGS.train_fraction < 1.0:
        drawn = subsets.draw_labelled_rows(
            labels, FLAGS.train_fraction, FLAGS.subset_seed
        )
        rows = [len(drawn)]
    num_batches = sum(
        pipeline.count_batches(count, FLAGS.train_batch_size) for count in rows
    )
    return assembly.plan_for(num_batches).num_steps
