"""Word vectors such as GloVe's, and the words nearest to a word.

vectors = read_word_vectors("glove.42B.300d.txt")
vectors.neighbours(["unmoved"], 15)
"""

import os
from collections.abc import Sequence

import numpy as np

from bert_pruning.errors import UserError

# The commonest words; GloVe's files are sorted by frequency.
MOST_WORDS = 100_000

# Words compared with all others at a time.
_CHUNK = 128


class WordVectors:
    """A vocabulary and its vectors.

    Args:
        words: sequence of str.
        vectors: float array `(words, width)`.

    Raises:
        UserError: if there are not as many words as vectors, or none.

    Reference: [GloVe](https://aclanthology.org/D14-1162).
    """

    def __init__(self, words: Sequence[str], vectors: np.ndarray):
        if len(words) != len(vectors) or not len(words):
            raise UserError(
                "Word vectors need as many words as rows. Received: "
                f"{len(words)} words, {len(vectors)} rows."
            )
        self.words = list(words)
        self._rows = {}
        for row, word in enumerate(self.words):
            self._rows.setdefault(word, row)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        # A vector of length zero is like no other.
        self._units = (vectors / np.where(lengths, lengths, 1)).astype(
            np.float32
        )

    def __len__(self):
        return len(self.words)

    def neighbours(self, words: Sequence[str], number: int) -> list[list[str]]:
        """Finds the nearest words by cosine, the nearest first.

        Args:
            words: sequence of str.
            number: int. Neighbours of each, the word itself not among them.

        Returns:
            A list per word; empty for an unknown one.
        """
        known = [word for word in words if word in self._rows]
        found = {}
        for start in range(0, len(known), _CHUNK):
            chunk = known[start : start + _CHUNK]
            rows = [self._rows[word] for word in chunk]
            cosines = self._units[rows] @ self._units.T
            cosines[np.arange(len(rows)), rows] = -np.inf
            count = min(number, len(self) - 1)
            if not count:
                continue
            best = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
            scores = np.take_along_axis(cosines, best, 1)
            order = np.argsort(-scores, axis=1, kind="stable")
            for word, row in zip(
                chunk, np.take_along_axis(best, order, 1), strict=True
            ):
                found[word] = [self.words[i] for i in row]
        return [found.get(word, []) for word in words]


def read_word_vectors(path: str, most: int = MOST_WORDS) -> WordVectors:
    """Reads word vectors from a file.

    Args:
        path: str. A text file of one word and its numbers a line, as GloVe's;
            or an `.npy` array with a `.parquet` file of the words beside it,
            or the folder that holds these two.
        most: int. Words to read, the first of the file.

    Returns:
        `WordVectors`.

    Raises:
        UserError: if the file is missing, truncated, or of mixed width.
    """
    if os.path.isdir(path) or path.endswith(".npy"):
        return _read_arrays(path, most)
    return _read_text(path, most)


def _read_text(path, most):
    words, rows, width = [], [], None
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                fields = line.rstrip("\n").split(" ")
                if width is None:
                    width = len(fields) - 1
                    if width < 2:
                        raise UserError(
                            f"{path}:1: expected a word and its numbers. "
                            f"Received: {line.strip()!r:.80}"
                        )
                vector = _parse_numbers(fields[-width:])
                if len(fields) <= width or vector is None:
                    raise UserError(
                        f"{path}:{number}: expected a word and {width} "
                        f"numbers. Received {len(fields)} fields: "
                        f"{line.strip()!r:.80}. Is the file truncated?"
                    )
                # Some words of GloVe's 840B hold spaces.
                extra = fields[1:-width]
                if extra and _parse_numbers(extra) is not None:
                    raise UserError(
                        f"{path}:{number}: expected {width} numbers as in the "
                        f"lines before. Received {len(fields) - 1}."
                    )
                words.append(" ".join(fields[:-width]))
                rows.append(vector)
                if len(words) == most:
                    break
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8 ({error}). Unpack it, if it is an "
            "archive."
        ) from error
    if not rows:
        raise UserError(f"{path} is empty.")
    return WordVectors(words, np.stack(rows))


def _read_arrays(path, most):
    import pyarrow
    import pyarrow.parquet

    if not os.path.exists(path):
        raise UserError(f"Cannot read {path}: no such file.")
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    found = {
        extension: [
            os.path.join(folder, name)
            for name in sorted(os.listdir(folder))
            if name.endswith(extension)
        ]
        for extension in (".npy", ".parquet")
    }
    if path.endswith(".npy"):
        found[".npy"] = [path]
    for extension, paths in found.items():
        if len(paths) != 1:
            raise UserError(
                f"{folder} must hold one {extension} file of word vectors. "
                f"Received: {', '.join(paths) or 'none'}."
            )
    [array_path], [index_path] = found.values()
    try:
        # Not read beyond the words that are wanted.
        vectors = np.load(array_path, mmap_mode="r")
    except OSError as error:
        raise UserError(
            f"Cannot read {array_path}: {error.strerror or error}."
        ) from error
    except ValueError as error:
        raise UserError(
            f"{array_path} is damaged or truncated ({error})."
        ) from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise UserError(
            f"{array_path} must be a matrix of floats. Received: shape "
            f"{vectors.shape}, {vectors.dtype}."
        )
    try:
        table = pyarrow.parquet.read_table(index_path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"Cannot read {index_path}: {error}") from error
    texts = [
        column
        for column in table.columns
        if pyarrow.types.is_string(column.type)
        or pyarrow.types.is_large_string(column.type)
    ]
    if len(texts) != 1:
        raise UserError(
            f"{index_path} must have one column of words. Received: "
            f"{', '.join(table.column_names)}."
        )
    if len(texts[0]) != len(vectors):
        raise UserError(
            f"{index_path} has {len(texts[0])} words, but {array_path} "
            f"{len(vectors)} rows."
        )
    vectors = np.asarray(vectors[:most], np.float32)
    if not np.isfinite(vectors).all():
        raise UserError(f"{array_path} holds numbers that are not finite.")
    return WordVectors(texts[0][:most].to_pylist(), vectors)


def _parse_numbers(fields):
    try:
        numbers = np.array(fields, np.float32)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None
