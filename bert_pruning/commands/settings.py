"""The flags that change what a run computes, comparable between two runs.

before = read(Path("runs/mrpc/flags.cfg").read_text(), names)
differences(before, read(flags_as_text(), names))
"""

import os
from collections.abc import Iterable
from collections.abc import Mapping

from bert_pruning.training.run import RESUMABLE_FLAGS
from bert_pruning.training.run import parse_flags

# Flags that mean the same however the path is spelt.
_PATH_FLAGS = {
    "aug_train",
    "data_dir",
    "glove",
    "init_checkpoint",
    "keep_structure",
    "scores",
    "teacher_checkpoint",
}


def read(flagfile: str, names: Iterable[str]) -> dict[str, str]:
    """Returns what a flagfile sets.

    Args:
        flagfile: str. Its text.
        names: iterable of str. The flags of the command.
    """
    known = set(names) - RESUMABLE_FLAGS
    return {
        name: whole_path(value) if name in _PATH_FLAGS else value
        for name, value in parse_flags(flagfile).items()
        if name in known
    }


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
        f"--{name}: {before.get(name, 'not set')} before, "
        f"{now.get(name, 'not set')} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
        and not (unknown and now.get(name) == unknown)
    ]


def whole_path(path: str) -> str:
    """Spells a path in the one way that can be compared."""
    if not path or path == "tfds" or path.startswith(("preset:", "(")):
        return path
    return os.path.abspath(path)
