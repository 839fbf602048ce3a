r"""Runs a chain of commands, each on what the ones before have made.

    python -m bert_pruning recipe --recipe=configs/rosita/setting4.recipe \
        --task_name=CoLA --data_dir=glue \
        --init_checkpoint=uncased_L-12_H-768_A-12 \
        --set=glove=glove.42B.300d.txt --output_dir=runs/rosita/CoLA

A recipe is a text file with a stage a line, its name, a colon, and a command
with its flags but --output_dir:

    student: train --flagfile=student.cfg --init_checkpoint={init_checkpoint}
    small: train --flagfile=small.cfg --init_checkpoint={student}

`{student}` is the output directory of that stage. `{task_name}`, `{data_dir}`,
`{init_checkpoint}`, `{here}` (the recipe's folder), `{task}` (the task in lower
case), `{runs}` (the folder above those of the stages) and what --set gives are
replaced likewise. A name with placeholders is a
stage for each of their values, which --set gives with commas between:

    seed = 1,2,3
    full_{seed}: train --seed={seed} --init_checkpoint={init_checkpoint}
    scores_{seed}: score --init_checkpoint={full_{seed}}

The first line is what {seed} stands for unless --set says otherwise.

Lines may be continued by a backslash; # begins a comment. All flags are checked
before the first stage, and that what no stage makes is there: folders, and the
files of GLUE. Finished stages are skipped, and a killed one is resumed.
"""

import dataclasses
import importlib
import multiprocessing
import os
import re
import sys
import time
from pathlib import Path

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import settings
from bert_pruning.commands import tickets
from bert_pruning.commands.recipe_file import NAMES
from bert_pruning.commands.recipe_file import PLACEHOLDER
from bert_pruning.commands.recipe_file import read_lines
from bert_pruning.commands.recipe_file import read_recipe
from bert_pruning.commands.stages import stop_on_signals
from bert_pruning.data import tasks
from bert_pruning.errors import UserError
from bert_pruning.modeling import checkpoints
from bert_pruning.outputs import check_writable
from bert_pruning.training.run import is_begun

FLAGS = flags.FLAGS

# What --set does not give.
_DECIDED = {
    **{name: f"--{name} does" for name in NAMES},
    "task": "--task_name does",
    "here": "it is the recipe's folder",
    "runs": "it is --output_dir",
}

# What `shrink` calls its run; the names are those of its flags.
_SHAPE = re.compile(
    r"(?:.+_)?a(?P<keep_heads>[\d-]+)_l(?P<num_layers>\d+)"
    r"_f(?P<ffn_hidden_dim>[\d-]+)_e(?P<emb_hidden_dim>-?\d+)"
)


def define_flags():
    """Defines the flags of `recipe`."""
    text = flags.DEFINE_string
    text("recipe", None, "The file that lists the stages.")
    text("output_dir", None, "Holds a folder for each stage.")
    text("task_name", None, "Replaces {task_name} in the recipe.")
    text("data_dir", None, "Replaces {data_dir} in the recipe.")
    text("init_checkpoint", None, "Replaces {init_checkpoint} in the recipe.")
    flags.DEFINE_multi_string(
        "set", [], "NAME=VALUE, replaces {NAME} in the recipe; many times."
    )


def main():
    """Runs the recipe of the flags; returns the exit status."""
    shared.require("recipe", "output_dir")
    check_writable(FLAGS.output_dir)
    if FLAGS.task_name and not any(
        "{task" in line for _, line in read_lines(FLAGS.recipe)
    ):
        raise UserError(
            f"{FLAGS.recipe} says itself what is learnt. Leave out --task_name="
            f"{FLAGS.task_name}."
        )
    stages = read_recipe(FLAGS.recipe, _values(), Path(FLAGS.output_dir))
    waiting = _find_waiting(stages)
    stop_on_signals()
    for number, stage in enumerate(stages, 1):
        print(
            f"\n[{number}/{len(stages)}] {stage.title}: {stage.directory}",
            flush=True,
        )
        if stage not in waiting:
            print("Done before.")
            continue
        started = time.monotonic()
        try:
            error = stage.run()
        except KeyboardInterrupt:
            print(
                "\nStopped. The same command goes on from here.",
                file=sys.stderr,
            )
            return 130
        minutes = (time.monotonic() - started) / 60
        if error:
            print(f"Failed after {minutes:.1f} minutes: {error}")
            print(f"Log: {stage.log}")
            return 1
        print(f"Done in {minutes:.1f} minutes.")
    return 0


def _values():
    values = {name: FLAGS[name].value for name in NAMES}
    values["task"] = None
    if FLAGS.task_name:
        # As the task spells it, not the person.
        name = FLAGS.task_name
        if name.lower() not in shared.SPECIAL_TASKS:
            names = [tasks.get_task(each.strip()) for each in name.split(",")]
            name = ",".join(task.name for task in names)
        values["task"] = name.lower()
    for text in FLAGS.set:
        name, separator, value = text.partition("=")
        if not separator or not PLACEHOLDER.fullmatch(f"{{{name}}}"):
            raise UserError(f"--set needs NAME=VALUE. Received: {text}.")
        if name in _DECIDED:
            raise UserError(
                f"--set cannot give {{{name}}}: {_DECIDED[name]}. Received: "
                f"{text}."
            )
        values[name] = value
    return values


def _find_waiting(stages):
    """Returns the stages that are still to run; checks the flags of all.

    Raises:
        UserError: if a stage has a wrong flag or input, was finished with
            other flags, or was made from what is to be made anew.
    """
    context = multiprocessing.get_context("spawn")
    waiting, checked, stale = [], [], {}
    # A process of its own for each: commands define the same flags.
    processes = min(len(stages), os.cpu_count() or 1, 8)
    with context.Pool(processes, maxtasksperchild=1) as pool:
        for stage, (error, parsed) in zip(
            stages, pool.imap(_parse, stages), strict=True
        ):
            if not error:
                error = _find_missing(parsed.settings, checked)
            if error:
                raise UserError(f"Stage {stage.title}: {error}")
            checked.append((stage, parsed))
            others = (*waiting, *stale)
            anew = [other for other in others if _refers_to(stage, other)]
            finished = _finished(stage)
            begun = [stage.directory] if is_begun(stage.directory) else []
            state = "is finished" if finished else "was begun"
            differing = _find_differing(finished or begun, parsed)
            if differing:
                stale[stage] = (
                    f"{state}, but with other flags ({'; '.join(differing)})"
                )
            elif anew and (finished or begun):
                stale[stage] = (
                    f"{state}, but stage {anew[0].title}, from which it takes "
                    "something, is to be run anew"
                )
            elif not finished:
                waiting.append(stage)
    if stale:
        reasons = "".join(f"Stage {s.title} {stale[s]}.\n" for s in stale)
        folders = ", ".join(str(stage.directory) for stage in stale)
        raise UserError(
            f"{reasons}Delete {folders} for new runs, or choose another "
            "--output_dir."
        )
    _check_tickets(checked)
    return waiting


def _check_tickets(checked):
    """Looks at all tickets before the first training.

    The models of which they are drawn are trained later, of the shape of
    --init_checkpoint.
    """
    calls = [
        parsed.settings for stage, parsed in checked if stage.name == "tickets"
    ]
    if not calls:
        return
    kinds = {kind for call in calls for kind in call["kinds"].split(",")}
    for stage, parsed in checked:
        own = settings.whole_path(str(stage.directory.parent))
        if (
            stage.name == "phases"
            and parsed.settings["runs"] == own
            and not parsed.settings["tables"]
            and "winning" not in kinds
        ):
            raise UserError(
                f"Stage {stage.title} compares winning tickets with the whole "
                f"model, but only {', '.join(sorted(kinds))} ones are drawn."
            )
    is_cut = any(stage.name == "shrink" for stage, _ in checked)
    if is_cut or not FLAGS.init_checkpoint:
        return
    checkpoint = checkpoints.load_checkpoint(FLAGS.init_checkpoint)
    tickets.check_calls(calls, checkpoint.config)


def _refers_to(stage, other):
    folder = str(other.directory)
    for text in stage.arguments:
        name, _, value = text.lstrip("-").partition("=")
        for path in shared.paths_of(name, value):
            # All runs in a folder are those of its stages, too.
            if shared.is_inside(path, folder) or (
                name == "runs" and shared.is_inside(folder, path)
            ):
                return True
    return False


def _find_missing(found, before):
    """Says which input is neither there nor made by a stage before."""
    for name in sorted(settings.PATH_FLAGS & found.keys()):
        for path in shared.paths_of(name, found[name]):
            if not os.path.exists(path) and not any(
                _makes(stage, parsed.settings, path) for stage, parsed in before
            ):
                return f"there is no --{name}={path}."
    return ""


def _makes(stage, found, path):
    """Whether a stage with such settings may make a path."""
    folder = settings.whole_path(str(stage.directory))
    if not shared.is_inside(path, folder):
        return False
    if stage.name == "tickets" and path != folder:
        return os.path.relpath(path, folder) in tickets.files_of(found)
    if stage.name != "shrink":
        return True
    # It names its run by the shape.
    shape = _SHAPE.fullmatch(os.path.relpath(path, folder).split("/")[0])
    return shape is not None and all(
        found[name] in ("", value) for name, value in shape.groupdict().items()
    )


def _finished(stage):
    """Returns the finished runs of a stage; `shrink` may have made several."""
    folders = [stage.directory]
    if stage.name == "shrink":
        folders = sorted(stage.directory.glob("*"))
    return [
        folder
        for folder in folders
        if (folder / "DONE").exists() and (folder / "flags.cfg").exists()
    ]


def _find_differing(folders, parsed):
    """Says in which flags runs differ from a stage, if none is alike."""
    differing = []
    for folder in folders:
        before = settings.read(
            (folder / "flags.cfg").read_text(), parsed.defaults
        )
        differing = settings.differences(before, parsed.settings)
        if not differing:
            return []
    return differing


@dataclasses.dataclass
class _Parsed:
    """The flags of a command, and what a stage sets them to."""

    defaults: dict
    settings: dict


def _parse(stage):
    """Parses a stage's flags, in a process where no others are defined."""
    command = importlib.import_module(f"bert_pruning.commands.{stage.name}")
    before = set(FLAGS)
    command.define_flags()
    defaults = settings.defaults_of(sorted(set(FLAGS) - before))
    try:
        for argument in stage.arguments:
            name, _, path = argument.lstrip("-").partition("=")
            if name == "flagfile" and not os.path.isfile(path):
                raise UserError(_no_flagfile(path))
        rest = FLAGS(stage.command[3:])[1:]
        if rest:
            raise UserError(f"flags look like --flag=value, not {rest[0]!r}.")
        command.check_flags()
        if hasattr(command, "splits_read"):
            shared.check_task_files(command.splits_read())
    except (UserError, flags.Error) as error:
        return str(error), None
    found = settings.read(shared.flags_as_text(), defaults)
    return "", _Parsed(defaults, found)


def _no_flagfile(path):
    beside = sorted(Path(path).parent.glob("*.cfg"))
    names = ", ".join(found.name for found in beside) or "none"
    return f"there is no flagfile {path}. Beside it: {names}."
