"""What a command shows and where it writes.

check_writable("runs/mrpc")  # Before the long work, not after it.
for batch in progress_bar(batches, desc="scoring", unit="step"):
    ...
"""

import os
import sys
import tempfile

import tqdm

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


def progress_bar(*args, **options) -> tqdm.tqdm:
    """Returns a `tqdm.tqdm` that writes little into a file.

    On a terminal it moves; in a log a line every half minute is enough.
    """
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm.tqdm(
        *args,
        mininterval=interval,
        maxinterval=interval,
        dynamic_ncols=True,
        **options,
    )
