"""The files of a checkpoint directory: vocabulary, JSON, and safe writing."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from collections.abc import Sequence

from bert_pruning.errors import UserError

# Entries such as [CLS], [unused7] and <S> say nothing about the casing.
_SPECIAL_TOKEN = re.compile(r"\[.*\]|<.*>", re.DOTALL)


def read_vocabulary(path: str):
    """Reads a vocabulary of one token a line; its id is the line's number.

    Only a newline ends a line (tokens may hold other separators of Unicode),
    and tokens are stripped, as the official code does.

    Args:
        path: str.

    Returns:
        A tuple of str.

    Raises:
        UserError: if the file is missing, empty or not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not a vocabulary in UTF-8 ({error}). Copy or download "
            "it again."
        ) from error
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(
            f"The vocabulary {path} is empty. Copy or download it again."
        )
    return tuple(line.strip() for line in lines)


def write_vocabulary(path: str, vocabulary: Sequence[str]):
    """Writes a vocabulary as `read_vocabulary` reads it."""
    with open(path, "wb") as file:
        file.write("".join(f"{token}\n" for token in vocabulary).encode())


def is_lower_case(vocabulary: Sequence[str]):
    """Returns whether at most 1 % of the words have a capital letter.

    Special tokens are no words. Some uncased vocabularies hold a few capitals.
    """
    words = [w for w in vocabulary if not _SPECIAL_TOKEN.fullmatch(w)]
    return 100 * sum(w != w.lower() for w in words) <= len(words)


def read_json(path: str):
    """Reads a JSON object.

    Raises:
        UserError: if the file is missing or holds anything else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}). It may be truncated: copy or "
            "download it again."
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object, not {values!r:.40}.")
    return values


def check_object(value, key: str, file_name: str):
    """Raises an error unless the value of a key is a JSON object.

    Raises:
        UserError: if it is anything else.
    """
    if not isinstance(value, dict):
        raise UserError(
            f"{key} in {file_name} must be a JSON object. Received: "
            f"{json.dumps(value):.80}"
        )


@contextlib.contextmanager
def complaints_about(path: str):
    """Begins every `UserError` that is raised within by a file's path."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write_json(path: str, values: Mapping):
    """Writes a JSON object, readable for people."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=2) + "\n")


def require_files(directory: str, needed: Sequence[str]):
    """Raises an error that names the files that a directory lacks.

    Args:
        directory: str.
        needed: file names, or alternatives separated by " or ".

    Raises:
        UserError: if one is missing.
    """
    there = sorted(os.listdir(directory))
    missing = [
        name for name in needed if not set(name.split(" or ")) & set(there)
    ]
    if missing:
        raise UserError(
            f"The checkpoint directory {directory} lacks "
            f"{' and '.join(missing)}. Copy what is missing from where the "
            f"checkpoint came from. It holds: {', '.join(there) or 'nothing'}."
        )


@contextlib.contextmanager
def replaced_files(directory: str, last: Sequence[str] = ()):
    """Collects new files and moves them into a directory when all are there.

    Whatever goes wrong before that, the directory keeps the files it had.

    Args:
        directory: str. Created if missing.
        last: file names to move after all others: who finds these finds the
            rest.

    Yields:
        The path of an empty directory to write the files to.

    Raises:
        UserError: if the directory cannot be written to.
    """
    partial = None
    try:
        os.makedirs(directory, exist_ok=True)
        partial = tempfile.mkdtemp(prefix=".partial-", dir=directory)
        yield partial
        for name in sorted(os.listdir(partial), key=lambda n: (n in last, n)):
            os.replace(
                os.path.join(partial, name), os.path.join(directory, name)
            )
    except OSError as error:
        raise UserError(
            f"Cannot write a checkpoint to {directory} "
            f"({error.strerror or error}). Choose a directory on a disk with "
            "room that you may write to."
        ) from error
    finally:
        if partial:
            shutil.rmtree(partial, ignore_errors=True)
