"""Plain text as documents of sentences.

A document ends at a blank line or at the end of its file; its lines are
sentences, paragraphs or both.

    for document in iterate_documents("corpus/a.txt"):
        sentences = split_sentences(document)
"""

import codecs
import glob
import itertools
import os
import pathlib
from collections.abc import Iterator
from collections.abc import Sequence

import sentencex

from bert_pruning.errors import UserError

# Of a file, what is looked at before any work.
_LOOK = 1 << 16


def find_files(inputs: Sequence[str]) -> list[str]:
    """Finds the text files that files, folders and patterns name.

    Args:
        inputs: sequence of str. Of a folder, all files below it are taken but
            those whose name, or whose folder's, begins with a dot.

    Returns:
        The sorted paths.

    Raises:
        UserError: if one names no file.
    """
    found = set()
    for name in inputs:
        paths = [name]
        if os.path.isdir(name):
            paths = [
                str(path)
                for path in pathlib.Path(name).rglob("*")
                if path.is_file()
                and not any(
                    part.startswith(".")
                    for part in path.relative_to(name).parts
                )
            ]
        elif not os.path.exists(name):
            paths = glob.glob(name, recursive=True)
        if not paths:
            raise UserError(f"--input={name} names no file.")
        found.update(paths)
    return sorted(found)


def check_files(paths: Sequence[str]) -> None:
    """Looks whether files are text, and two documents at least.

    Args:
        paths: sequence of str.

    Raises:
        UserError: if one cannot be read or is no UTF-8 text, or all together
            are empty or a single document.
    """
    for path in paths:
        try:
            with open(path, "rb") as file:
                start = file.read(_LOOK)
        except OSError as error:
            raise UserError(f"Cannot read {path}: {error.strerror}.") from error
        if b"\0" in start:
            raise UserError(
                f"{path} is no text: it holds zero bytes. --input takes UTF-8."
            )
        try:
            codecs.getincrementaldecoder("utf-8")().decode(start)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8: {error}. Convert it first, such as by "
                "iconv."
            ) from error
    documents = itertools.chain.from_iterable(map(iterate_documents, paths))
    found = len(list(itertools.islice(documents, 2)))
    if found < 2:
        what = "is a single document" if found else "has no text"
        where = f"{paths[0]} and others" if paths[1:] else paths[0]
        raise UserError(
            f"The corpus {what}: {where}. Whether a segment follows another is "
            "learnt from at least two; a document ends at a blank line or at "
            "the end of its file."
        )


def iterate_documents(path: str) -> Iterator[list[str]]:
    """Yields the lines of each document of a file, stripped, none empty.

    Raises:
        UserError: with file and line, if the text is not UTF-8.
    """
    lines = []
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                line = line.strip()
                if line:
                    lines.append(line)
                elif lines:
                    yield lines
                    lines = []
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8: {error}.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    if lines:
        yield lines


def split_sentences(lines: Sequence[str], language: str = "en") -> list[str]:
    """Splits the lines of a document into sentences.

    Args:
        lines: sequence of str. No sentence goes over the end of one.
        language: str. Its code, such as "en".
    """
    return [
        sentence.strip()
        for line in lines
        for sentence in sentencex.segment(language, line)
        if sentence.strip()
    ]
