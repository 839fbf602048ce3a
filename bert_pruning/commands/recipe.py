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

Lines may be continued by a backslash; # begins a comment. All flags, and what
stages read that none before makes, are checked before the first stage; finished
stages are skipped, and a killed one is resumed.
"""

import dataclasses
import importlib
import itertools
import multiprocessing
import os
import re
import shlex
import sys
import time
from pathlib import Path

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import settings
from bert_pruning.commands import tickets
from bert_pruning.commands.stages import Stage
from bert_pruning.commands.stages import stop_on_signals
from bert_pruning.data import tasks
from bert_pruning.errors import UserError
from bert_pruning.modeling import checkpoints
from bert_pruning.outputs import check_writable

FLAGS = flags.FLAGS

COMMANDS = (
    *("train", "evaluate", "predict", "score", "shrink", "tickets", "phases"),
    *("augment", "prepare", "export"),
)

# What stands for a flag, used or not.
_FLAGS = ("task_name", "data_dir", "init_checkpoint")

# What commands read of the tasks of GLUE that they name.
_READ = {
    "train": ("train", "dev"),
    "score": ("train",),
    "augment": ("train",),
}

# What --set does not give.
_DECIDED = {
    **{name: f"--{name} does" for name in _FLAGS},
    "task": "--task_name does",
    "here": "it is the recipe's folder",
    "runs": "it is --output_dir",
}

_LINE = re.compile(r"([\w{}-]+)\s*:\s*(.*)")
_DEFAULT = re.compile(r"([\w.-]+)\s*=\s*(.*)")
_OUTPUT_DIR = re.compile(r"--?output_dir\b")
_PLACEHOLDER = re.compile(r"\{([\w.-]+)\}")

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
        "{task" in line for _, line in _lines(FLAGS.recipe)
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


def read_recipe(path: str, values: dict, output_dir: Path) -> list[Stage]:
    """Reads the stages of a recipe.

    Args:
        path: str. The file.
        values: dict from str to str or None. What placeholders stand for.
        output_dir: path. The folder above those of the stages.

    Raises:
        UserError: with file and line, if a line cannot be read, names an
            unknown command, or has a placeholder that stands for nothing; or
            if one that --set gives is not in the recipe.
    """
    given = values.keys() - {*_FLAGS, "task"}
    values = {
        **values,
        "here": str(Path(path).parent),
        "runs": str(output_dir),
    }
    stages, used = [], set()
    for number, line in _lines(path):
        where = f"{path}:{number}"
        default = _DEFAULT.fullmatch(line)
        if default is not None:
            used.update([default[1], *_PLACEHOLDER.findall(default[2])])
            if values.get(default[1]) is None:
                values[default[1]] = _fill(default[2], values, where)
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f"{where}: expected NAME: COMMAND --flag=value. Received: "
                f"{line}"
            )
        try:
            words = shlex.split(match[2])
        except ValueError as error:
            raise UserError(f"{where}: {error}. Received: {line}") from error
        for choice in _choices(match[1], values, where):
            name = _fill(match[1], choice, where)
            if values.get(name) is not None:
                raise UserError(f"{where}: the name {name} is taken.")
            parts = [_choose(part, choice) for part in words]
            used.update(_PLACEHOLDER.findall(" ".join([match[1], *parts])))
            # Filled after the split: values may hold spaces.
            command, *arguments = [
                _fill(part, values, where) for part in parts
            ] or [""]
            if any(_OUTPUT_DIR.match(argument) for argument in arguments):
                raise UserError(
                    f"{where}: a stage's --output_dir is a folder of its name "
                    f"in that of the recipe. Leave it out of {name}."
                )
            if command not in COMMANDS:
                raise UserError(
                    f"{where}: a stage runs one of {', '.join(COMMANDS)}. "
                    f"Received: {command!r}."
                )
            directory = output_dir / name
            stages.append(Stage(name, directory, tuple(arguments), command))
            values[name] = str(directory)
    if not stages:
        raise UserError(f"{path} has no stages.")
    for name in sorted(given - used):
        raise UserError(
            f"--set={name}=...: nothing in {path} stands for {{{name}}}."
        )
    return stages


def _values():
    values = {name: FLAGS[name].value for name in _FLAGS}
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
        if not separator or not _PLACEHOLDER.fullmatch(f"{{{name}}}"):
            raise UserError(f"--set needs NAME=VALUE. Received: {text}.")
        if name in _DECIDED:
            raise UserError(
                f"--set cannot give {{{name}}}: {_DECIDED[name]}. Received: "
                f"{text}."
            )
        values[name] = value
    return values


def _lines(path):
    """Yields the number and text of each line, continued ones joined."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path}: {error}.") from error
    begun, pending = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        begun = begun if pending else number
        line = line.strip()
        if line.startswith("#"):
            continue
        if line.endswith("\\"):
            pending += line.removesuffix("\\")
            continue
        if pending + line:
            yield begun, pending + line
        pending = ""
    if pending:
        yield begun, pending


def _choices(name, values, where):
    """Yields the values of the placeholders in a name, in all combinations."""
    names = list(dict.fromkeys(_PLACEHOLDER.findall(name)))
    lists = [
        [
            choice.strip()
            for choice in _fill(f"{{{n}}}", values, where).split(",")
        ]
        for n in names
    ]
    for found in itertools.product(*lists):
        for n, choice in zip(names, found, strict=True):
            if not re.fullmatch(r"[\w.-]+", choice):
                advice = ""
                if "/" in choice:
                    advice = f" Write {choice.replace('/', '_')} for {choice}."
                raise UserError(
                    f"{where}: {{{n}}} names stages and needs words with "
                    f"commas between. Received: {values[n]}.{advice}"
                )
        yield dict(zip(names, found, strict=True))


def _choose(text, choice):
    for name, value in choice.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _fill(line, values, where):
    def fill(match):
        name = match[1]
        value = values.get(name)
        if value is None:
            flag = f"--{name}" if name in values else f"--set={name}=..."
            if name == "task":
                flag = "--task_name"
            raise UserError(
                f"{where}: {{{name}}} stands for nothing. Give {flag}, or a "
                "stage of this name before."
            )
        return value

    return _PLACEHOLDER.sub(fill, line)


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
            differing = _find_differing(finished or _begun(stage), parsed)
            if anew and finished:
                stale[stage] = (
                    f"is finished, but stage {anew[0].title}, from which it "
                    "takes something, is to be run anew"
                )
            elif differing:
                begun = "is finished" if finished else "was begun"
                stale[stage] = (
                    f"{begun}, but with other flags ({'; '.join(differing)})"
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
    kinds = {kind for call in calls for kind in call["kinds"].split(",")}
    for stage, _ in checked:
        if stage.name == "phases" and calls and "winning" not in kinds:
            raise UserError(
                f"Stage {stage.title} compares winning tickets with the whole "
                f"model, but only {', '.join(sorted(kinds))} ones are drawn."
            )
    is_cut = any(stage.name == "shrink" for stage, _ in checked)
    if not calls or is_cut or not FLAGS.init_checkpoint:
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


def _begun(stage):
    """Returns the folder of a run that a stage would resume, if any."""
    folder = stage.directory
    is_begun = (folder / "flags.cfg").exists()
    return [folder] if is_begun and (folder / "checkpoint").is_dir() else []


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
        if stage.name in _READ:
            shared.check_task_files(_READ[stage.name])
    except (UserError, flags.Error) as error:
        return str(error), None
    found = settings.read(shared.flags_as_text(), defaults)
    return "", _Parsed(defaults, found)


def _no_flagfile(path):
    beside = sorted(Path(path).parent.glob("*.cfg"))
    names = ", ".join(found.name for found in beside) or "none"
    return f"there is no flagfile {path}. Beside it: {names}."
