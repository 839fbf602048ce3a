"""The file of a recipe: the stages that its lines stand for, as plain values.

stages = read_recipe("rosita.recipe", {"task_name": "CoLA"}, Path("runs"))
"""

import itertools
import re
import shlex
from pathlib import Path

from bert_pruning.commands.stages import Stage
from bert_pruning.errors import UserError

COMMANDS = (
    *("train", "evaluate", "predict", "score", "shrink", "tickets", "phases"),
    *("augment", "prepare", "export"),
)

# What stands for a flag of `recipe`, used or not.
NAMES = ("task_name", "data_dir", "init_checkpoint")

_LINE = re.compile(r"([\w{}-]+)\s*:\s*(.*)")
_DEFAULT = re.compile(r"([\w.-]+)\s*=\s*(.*)")
_OUTPUT_DIR = re.compile(r"--?output_dir\b")
PLACEHOLDER = re.compile(r"\{([\w.-]+)\}")


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
    given = values.keys() - {*NAMES, "task"}
    values = {
        **values,
        "here": str(Path(path).parent),
        "runs": str(output_dir),
    }
    stages, used = [], set()
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        default = _DEFAULT.fullmatch(line)
        if default is not None:
            used.update([default[1], *PLACEHOLDER.findall(default[2])])
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
            used.update(PLACEHOLDER.findall(" ".join([match[1], *parts])))
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


def read_lines(path):
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
    names = list(dict.fromkeys(PLACEHOLDER.findall(name)))
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

    return PLACEHOLDER.sub(fill, line)
