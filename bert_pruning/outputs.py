"""Where a command writes: checked before the long work, not after it.

check_writable("runs/mrpc")
"""

import os
import tempfile

from bert_pruning.errors import UserError


def check_writable(
    directory: str | os.PathLike, flag: str = "--output_dir"
) -> None:
    """Makes a folder and writes to it.

    Args:
        directory: path. The folder.
        flag: str. What names it on the command line.

    Raises:
        UserError: it cannot be written.
    """
    try:
        os.makedirs(directory, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise cannot_write(directory, error, flag) from error


def cannot_write(
    path: str | os.PathLike, error: OSError, flag: str = "--output_dir"
) -> UserError:
    """Returns the error that says what could not be written, and what to do."""
    return UserError(
        f"Cannot write to {path}: {error.strerror or error}. Free some space, "
        f"or choose another {flag}."
    )
