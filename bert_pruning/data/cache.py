"""Token ids on disk, so that a data set is tokenised once.

One uncompressed `.npz` per data set, named by a hash of all that the ids
depend on. It is put in place whole, its checksums are verified when it is
read, and a damaged one counts as missing.
"""

import hashlib
import os
import zipfile
from collections.abc import Sequence

import numpy as np
from absl import logging

# Raise it when the tokenizer's output or the arrays change.
_FORMAT = 1

_ARRAYS = ("token_ids", "offsets", "type_boundaries")


def find_path(
    cache_dir: str, texts: Sequence[Sequence[str]], settings: Sequence
) -> str:
    """Names the file by its contents' origin.

    Args:
        cache_dir: str. The folder.
        texts: sequence of sequences of str. Examples and vocabulary.
        settings: sequence of plain values.

    Returns:
        str. The path of a file that may not exist yet.
    """
    digest = hashlib.sha256(repr((_FORMAT, *settings)).encode())
    for part in texts:
        # With the lengths, no two lists of texts look alike.
        digest.update(np.fromiter(map(len, part), np.int64, len(part)))
        digest.update("\0".join(part).encode())
    return os.path.join(cache_dir, f"tokens-{digest.hexdigest()[:32]}.npz")


def load(path: str, num_rows: int) -> tuple[np.ndarray, ...] | None:
    """Reads the arrays of a cached data set.

    Args:
        path: str. The file.
        num_rows: int. Rows that the data set has.

    Returns:
        `token_ids`, `offsets` and `type_boundaries`, or None if the file is
        missing or damaged.
    """
    if not os.path.exists(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            token_ids, offsets, boundaries = (file[name] for name in _ARRAYS)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as e:
        logging.warning("Rebuilding the damaged cache %s: %s", path, e)
        return None
    if len(boundaries) != num_rows or offsets[-1] != len(token_ids):
        logging.warning("Rebuilding the damaged cache %s.", path)
        return None
    return token_ids, offsets, boundaries


def save(path: str, arrays: Sequence[np.ndarray]) -> None:
    """Writes the arrays, all or nothing.

    A full disk costs the cache, not the run.

    Args:
        path: str. The file.
        arrays: sequence of arrays. As `load` returns them.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **dict(zip(_ARRAYS, arrays, strict=True)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        logging.warning("Did not write the cache %s: %s", path, error)
        if os.path.exists(temporary):
            os.remove(temporary)
