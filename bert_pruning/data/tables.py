"""Reads columns by name from TSV and CSV files.

Knows files, not tasks: which columns are wanted is said in `tasks.py`, what
their texts mean in `reading.py`. Every complaint about a file's contents
starts with `file:line:`.

Left out: compressed files and Excel's UTF-16.
"""

import csv
import dataclasses
import io
import os
from collections.abc import Iterator
from collections.abc import Sequence

from bert_pruning.errors import UserError

_EXTENSIONS = (".tsv", ".csv")

# Texts may be longer than csv's 128 KB; it holds for the whole process.
csv.field_size_limit(2**31 - 1)


@dataclasses.dataclass
class Table:
    """Some columns of a file, one entry per row.

    Args:
        path: str. The file.
        columns: dict of lists of str. The texts of each column, verbatim.
        lines: list of ints. The line (from 1) where each row starts.
        malformed: list of ints. The lines that were left out because of a
            wrong number of fields.
    """

    path: str
    columns: dict[str, list[str]]
    lines: list[int]
    malformed: list[int]


def read_table(
    path: str,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    header: Sequence[str] | None = None,
    skip_malformed: bool = False,
) -> Table:
    """Reads the named columns of a TSV or CSV file.

    A `.csv` file follows RFC 4180: commas, and double quotes around fields
    that hold commas, quotes or newlines. Any other file is read as GLUE's are:
    tabs, and quotes are ordinary characters. Both may start with a byte order
    mark and end their lines with CR LF. Only "\\n" ends a line: sentences may
    hold U+2028 and other characters that `str.splitlines` would split at.

    Args:
        path: str. The file.
        columns: sequence of str. The columns to read.
        optional: sequence of str. Columns to read where the file has them.
        header: sequence of str or None. The names of all columns, for a file
            without a header line. None: the first line holds them.
        skip_malformed: bool. Leave out rows with a wrong number of fields
            instead of raising.

    Returns:
        A `Table`.

    Raises:
        UserError: the file cannot be read, is empty, is not UTF-8, has no
            rows, lacks a column or has it twice, or a row has a wrong number
            of fields.

    Reference: https://www.rfc-editor.org/rfc/rfc4180
    """
    rows = iterate_rows(path)
    if header is None:
        _, header = next(rows, (0, None))
        if header is None:
            raise UserError(f"{path} is empty.")
    positions = _find_columns(path, header, columns, optional)
    table = Table(path, {name: [] for name in positions}, [], [])
    targets = [(table.columns[name], i) for name, i in positions.items()]
    for line, fields in rows:
        if len(fields) != len(header):
            if not skip_malformed:
                raise UserError(
                    f"{path}:{line}: expected {len(header)} fields "
                    f"({', '.join(header)}). Received {len(fields)}: "
                    f"{_shorten(fields)}"
                )
            table.malformed.append(line)
            continue
        table.lines.append(line)
        for values, position in targets:
            values.append(fields[position])
    if not table.lines:
        raise UserError(f"{path} has no rows.")
    return table


def iterate_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the line where each row starts and all of its fields, verbatim.

    Args:
        path: str. A TSV or CSV file, read as by `read_table`.

    Raises:
        UserError: the file cannot be read or is not UTF-8.
    """
    return _csv_rows(path) if path.endswith(".csv") else _tsv_rows(path)


def format_row(path: str, fields: Sequence[str]) -> str:
    """Returns a row as `iterate_rows` reads it back, its newline included.

    Args:
        path: str. The file that it is for.
        fields: sequence of str. For a TSV file without tabs and newlines.
    """
    if not path.endswith(".csv"):
        return "\t".join(fields) + "\n"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()


def find_file(data_dir: str, folder: str, file: str) -> str:
    """Finds a task's file in its folder, or in `data_dir` itself.

    Args:
        data_dir: str. The folder that holds one folder per task, or the
            task's own folder.
        folder: str. The name of the task's folder.
        file: str. The file's name, or an absolute path. Without an extension
            both `.tsv` and `.csv` are looked for.

    Returns:
        str. The path of an existing file.

    Raises:
        UserError: there is no such file, or both a `.tsv` and a `.csv`. The
            message tells what is there instead.
    """
    if os.path.isabs(file):
        if not os.path.isfile(file):
            raise UserError(f"There is no file {file}.")
        return file
    hint = ""
    if folder:
        hint = (
            " To fetch GLUE: python -m bert_pruning fetch --what=glue "
            f"--output_dir={data_dir}"
        )
    if not os.path.isdir(data_dir):
        raise UserError(f"There is no data folder {data_dir!r}.{hint}")
    stem, extension = os.path.splitext(file)
    names = [file] if extension else [stem + e for e in _EXTENSIONS]
    folders = [os.path.join(data_dir, folder)] if folder else []
    folders.append(data_dir)
    expected = [os.path.join(f, name) for f in folders for name in names]
    for parent in folders:
        found = [os.path.join(parent, name) for name in names]
        found = [path for path in found if os.path.isfile(path)]
        if len(found) > 1:
            raise UserError(
                f"Which one is meant, {' or '.join(found)}? Remove the other."
            )
        if found:
            return found[0]
    existing = [parent for parent in folders if os.path.isdir(parent)]
    raise UserError(
        f"Missing file: expected {' or '.join(expected)}. "
        + " ".join(_contents(parent) for parent in existing)
        + hint
    )


def _decoded_lines(path: str) -> Iterator[str]:
    number = 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number}: not UTF-8 ({error.reason} at byte "
            f"{error.start}). Convert the file to UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error


def _tsv_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    blank = []
    for number, line in enumerate(_decoded_lines(path), 1):
        line = line.removesuffix("\n").removesuffix("\r")
        if not line:
            blank.append(number)
            continue
        for skipped in blank:
            yield skipped, [""]
        blank.clear()  # Blank lines count, except at the end of the file.
        yield number, line.split("\t")


def _csv_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(_decoded_lines(path), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}:{line}: {error}.") from error
        if fields is None:
            return
        if fields:
            yield line, fields


def _find_columns(
    path: str,
    header: Sequence[str],
    columns: Sequence[str],
    optional: Sequence[str],
) -> dict[str, int]:
    positions = {}
    for name in (*columns, *optional):
        count = list(header).count(name)
        if count == 1:
            positions[name] = header.index(name)
        elif count > 1:
            raise UserError(f"{path}:1: column {name!r} occurs {count} times.")
        elif name not in optional:
            raise UserError(
                f"{path}:1: no column {name!r}. Received: {_shorten(header)}"
            )
    return positions


def _contents(folder: str) -> str:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f"Cannot read {folder}: {error.strerror}."
    listing = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"{folder} holds {listing}." if names else f"{folder} is empty."


def _shorten(fields: Sequence[str]) -> str:
    text = repr(list(fields))
    return text if len(text) <= 300 else text[:300] + "..."
