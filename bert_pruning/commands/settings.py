"""The flags that change what a run computes, comparable between two runs.

defaults = defaults_of(names)
before = read(Path("runs/mrpc/flags.cfg").read_text(), defaults)
differences(before, read(flags_as_text(), defaults))
"""

import os
from collections.abc import Iterable
from collections.abc import Mapping

from absl import flags

from bert_pruning.training.run import RESUMABLE_FLAGS
from bert_pruning.training.run import parse_flags

FLAGS = flags.FLAGS

# Flags that name several files or folders.
PATH_LIST_FLAGS = {"runs", "tables", "union"}

# Flags that mean the same however the path is spelt.
PATH_FLAGS = PATH_LIST_FLAGS | {
    "aug_train",
    "complement",
    "data_dir",
    "glove",
    "init_checkpoint",
    "keep_structure",
    "scores",
    "structure",
    "teacher_checkpoint",
    "tickets",
}


def read(flagfile: str, defaults: Mapping[str, str]) -> dict[str, str]:
    """Returns what a flagfile sets; where it says nothing, the default.

    So a run of before a flag was added is the same as one with its default.

    Args:
        flagfile: str. Its text.
        defaults: dict from `defaults_of`. The flags of the command.
    """
    found = {**defaults, **parse_flags(flagfile)}
    return {
        name: whole_value(name, found[name])
        for name in defaults
        if name not in RESUMABLE_FLAGS
    }


def defaults_of(names: Iterable[str]) -> dict[str, str]:
    """Returns the default of each flag as a flagfile has it; empty: None."""
    return {name: _as_text(FLAGS[name].default) for name in names}


def _as_text(value):
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(value)
    return str(value)


def differences(
    before: Mapping[str, str], now: Mapping[str, str], unknown: str = ""
) -> list[str]:
    """Says in which flags two runs differ.

    Args:
        before: dict from `read`.
        now: dict from `read`.
        unknown: str. A value of `now` that may stand for any.
    """
    return [
        f"--{name}: {before[name] or 'not set'} before, "
        f"{now[name] or 'not set'} now"
        for name in sorted(now)
        if before[name] != now[name] and not (unknown and now[name] == unknown)
    ]


def whole_value(name: str, value: str) -> str:
    """Spells the paths in a flag's value so that they can be compared."""
    if name not in PATH_FLAGS:
        return value
    if name in PATH_LIST_FLAGS:
        return ",".join(map(whole_path, value.split(",")))
    if name != "tickets":
        return whole_path(value)
    items = [item.partition(":") for item in value.split(",") if item]
    return ",".join(
        f"{task}{colon}{whole_path(path)}" for task, colon, path in items
    )


def whole_path(path: str) -> str:
    """Spells a path in the one way that can be compared."""
    if not path or path == "tfds" or path.startswith(("preset:", "(")):
        return path
    return os.path.abspath(path)
