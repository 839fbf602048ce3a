"""Downloads the official checkpoints and GLUE.

    from bert_pruning.data.fetch import fetch_checkpoint
    fetch_checkpoint("2018_10_18/uncased_L-12_H-768_A-12", "datasets")

A broken download goes on where it stopped, and nothing is put in its final
place before it is whole. A file laid by hand where the download would go is
used instead of it, so that everything works on a machine without a network.
"""

import contextlib
import http.client
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from pathlib import PurePosixPath

from tqdm import tqdm

from bert_pruning.errors import UserError
from bert_pruning.outputs import cannot_write
from bert_pruning.outputs import check_writable

CHECKPOINT_URL = "https://storage.googleapis.com/bert_models"
GLUE_URL = "https://dl.fbaipublicfiles.com"

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60


def find_checkpoint(name: str) -> str:
    """Completes the name of an official checkpoint with its date.

    Args:
        name: str. "date/name", or the name alone where it is unambiguous.

    Returns:
        "date/name", an entry of `CHECKPOINTS`.

    Raises:
        UserError: there is no such checkpoint, or there are two.

    Example:

    >>> find_checkpoint("cased_L-12_H-768_A-12")
    '2018_10_18/cased_L-12_H-768_A-12'
    """
    matches = [c for c in CHECKPOINTS if name in (c, c.split("/")[1])]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(
            f"There are two official checkpoints of this name, trained at "
            f"different times: say {' or '.join(matches)}. Received: {name}"
        )
    raise UserError(
        "Choose glue, demo, a task of GLUE, or one of the official "
        f"checkpoints {', '.join(CHECKPOINTS)}. Received: {name}"
    )


def fetch_checkpoint(
    name: str, output_dir: str | Path, base_url: str = CHECKPOINT_URL
) -> Path:
    """Fetches an official checkpoint.

    Args:
        name: str. See `find_checkpoint`.
        output_dir: path. The checkpoint goes to `bert_models/DATE/NAME` in it:
            the date is kept because one name was released twice.
        base_url: str. A mirror that holds `DATE/NAME.zip`.

    Returns:
        The checkpoint's folder, ready for `--init_checkpoint`.

    Raises:
        UserError: unknown name, no network, broken or incomplete archive.
    """
    name = find_checkpoint(name)
    folder = Path(output_dir) / "bert_models" / name
    return _fetch_zip(f"{base_url}/{name}.zip", folder, CHECKPOINT_FILES)


def fetch_glue(
    task: str, output_dir: str | Path, base_url: str = GLUE_URL
) -> Path:
    """Fetches one task of GLUE.

    Args:
        task: str. A key of `GLUE`.
        output_dir: path. The files go to `TASK` in it.
        base_url: str. A mirror with the same paths below it.

    Returns:
        The task's folder; `output_dir` is then a `--data_dir`.

    Raises:
        UserError: unknown task, no network, broken or incomplete archive.
    """
    if task not in GLUE:
        raise UserError(
            f"No such GLUE task. Received: {task}. Known: {', '.join(GLUE)}"
        )
    folder = Path(output_dir) / task
    if task == "MRPC":
        return _fetch_mrpc(folder, base_url)
    url = f"{base_url}/{GLUE[task]}"
    if url.endswith(".zip"):
        return _fetch_zip(url, folder, ("train.tsv", "test.tsv"))
    download(url, folder / f"{task}.tsv")
    return folder


def split_mrpc(folder: Path) -> None:
    """Makes GLUE's MRPC files from the original corpus and GLUE's dev ids.

    GLUE may not redistribute this corpus: its own script builds `train.tsv`,
    `dev.tsv` and `test.tsv` from `msr_paraphrase_{train,test}.txt`, byte for
    byte as here. `dev_ids.tsv` lists the pairs of sentence ids that it holds
    out.

    Args:
        folder: path. Holds the three files and receives the others.

    Raises:
        UserError: not every dev pair is in the training file, or the folder
            cannot be written to.
    """
    dev_ids = {
        tuple(line.split("\t"))
        for line in _read_lines(folder / "dev_ids.tsv")
        if line
    }
    header, *rows = _read_lines(folder / "msr_paraphrase_train.txt")
    splits = {"train": [header], "dev": [header]}
    for row in rows:
        ids = tuple(row.split("\t")[1:3])
        splits["dev" if ids in dev_ids else "train"].append(row)
    if len(splits["dev"]) - 1 != len(dev_ids):
        raise UserError(
            f"{folder}: {len(dev_ids)} pairs are listed in dev_ids.tsv, but "
            f"{len(splits['dev']) - 1} of them are in "
            f"msr_paraphrase_train.txt. Delete both and fetch them again."
        )
    _, *rows = _read_lines(folder / "msr_paraphrase_test.txt")
    splits["test"] = ["index\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    for index, row in enumerate(rows):
        _, rest = row.split("\t", 1)
        splits["test"].append(f"{index}\t{rest}")
    with _writing_to(folder):
        for split in _MRPC_SPLITS:
            text = "".join(line + "\n" for line in splits[split])
            (folder / f"{split}.tsv.part").write_bytes(text.encode())
        for split in _MRPC_SPLITS:
            part = folder / f"{split}.tsv.part"
            part.replace(folder / f"{split}.tsv")


def download(url: str, path: Path) -> bool:
    """Downloads a file, going on where an earlier try stopped.

    Args:
        url: str. Where from.
        path: path. Where to. A file that is already there is left alone.

    Returns:
        Whether anything was downloaded.

    Raises:
        UserError: the server cannot be reached, refuses, or sends less than
            it announced, or the folder cannot be written to.
    """
    if path.exists():
        return False
    part = path.with_name(path.name + ".part")
    with _writing_to(path.parent):
        try:
            size, expected = _download_part(url, part)
        except (OSError, http.client.HTTPException) as error:
            raise UserError(
                f"Could not download {url} ({error}). Where the network is "
                f"closed, download it on another machine, put it at {path} "
                f"and run the command again."
            ) from error
        if expected is not None and size != expected:
            raise UserError(
                f"{url} broke off after {size:,} of {expected:,} bytes. Run "
                f"the command again: it goes on from there. Received so far: "
                f"{part}"
            )
        part.replace(path)
    return True


def unpack(archive: Path, folder: Path, needed: tuple[str, ...]) -> None:
    """Unpacks the folder of a zip that holds certain files.

    Some official archives hold a folder, some the bare files, and some other
    folders beside it: what lies beside `needed[0]` is taken.

    Args:
        archive: path. The zip file; its checksums are verified.
        folder: path. Appears whole or not at all. Must not exist.
        needed: tuple of str. Files that the folder must have.

    Raises:
        UserError: the zip is broken, lacks a needed file, or would write
            outside of the folder, or the folder cannot be written.
    """
    with (
        _writing_to(folder.parent),
        tempfile.TemporaryDirectory(dir=folder.parent) as temporary,
    ):
        content = Path(temporary) / "content"
        try:
            with zipfile.ZipFile(archive) as opened:
                _refuse_escapes(archive, opened)
                opened.extractall(content)
        except (zipfile.BadZipFile, EOFError) as error:
            raise UserError(
                f"{archive} is no whole zip file ({error}). Delete it and run "
                f"the command again."
            ) from error
        found = sorted(
            content.rglob(needed[0]), key=lambda path: len(path.parts)
        )
        source = found[0].parent if found else content
        for name in needed:
            if not (source / name).exists():
                raise UserError(
                    f"{archive} has no {name}: not the expected archive. "
                    f"Delete it and run the command again."
                )
        source.replace(folder)


def _fetch_zip(url, folder, needed):
    if folder.exists():
        missing = [name for name in needed if not (folder / name).exists()]
        if missing:
            raise UserError(
                f"{folder} exists but has no {', '.join(missing)}. Delete it "
                f"and run the command again."
            )
        return folder
    archive = folder.with_name(folder.name + ".zip")
    downloaded = download(url, archive)
    unpack(archive, folder, needed)
    if downloaded:
        archive.unlink()
    return folder


def _fetch_mrpc(folder, base_url):
    if all((folder / f"{split}.tsv").exists() for split in _MRPC_SPLITS):
        return folder
    for path, name in _MRPC_FILES.items():
        download(f"{base_url}/{path}", folder / name)
    split_mrpc(folder)
    return folder


@contextlib.contextmanager
def _writing_to(folder):
    """Makes a folder, and names it if it or a file in it cannot be written."""
    check_writable(folder)
    try:
        yield
    except OSError as error:
        raise cannot_write(folder, error) from error


def _read_lines(path):
    text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    # Not splitlines(): it also splits at characters that occur in texts.
    return text.removesuffix("\n").split("\n")


def _refuse_escapes(archive, opened):
    for name in opened.namelist():
        member = PurePosixPath(name.replace("\\", "/"))
        if member.is_absolute() or ".." in member.parts or ":" in name:
            raise UserError(
                f"{archive} would write outside of its folder: refused. "
                f"Received: {name!r}"
            )


def _download_part(url, part):
    """Appends to `part`; returns its size and the one announced, or None."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # Nothing is left to ask for: begin again rather than trust the part.
        part.unlink()
        return _download_part(url, part)
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0
        length = response.headers.get("Content-Length")
        expected = start + int(length) if length else None
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(
                desc=part.stem,
                initial=start,
                total=expected,
                unit="B",
                unit_scale=True,
            ) as progress,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                progress.update(len(chunk))
    return part.stat().st_size, expected


CHECKPOINT_FILES = (
    "bert_config.json",
    "vocab.txt",
    "bert_model.ckpt.index",
    "bert_model.ckpt.data-00000-of-00001",
)

# Every checkpoint of the official BERT repository. The last one of the small
# models has the name of the original BERT-base but was trained anew.
CHECKPOINTS = (
    "2018_10_18/uncased_L-12_H-768_A-12",
    "2018_10_18/uncased_L-24_H-1024_A-16",
    "2018_10_18/cased_L-12_H-768_A-12",
    "2018_10_18/cased_L-24_H-1024_A-16",
    "2018_11_03/multilingual_L-12_H-768_A-12",
    "2018_11_03/chinese_L-12_H-768_A-12",
    "2018_11_23/multi_cased_L-12_H-768_A-12",
    "2019_05_30/wwm_uncased_L-24_H-1024_A-16",
    "2019_05_30/wwm_cased_L-24_H-1024_A-16",
    *(
        f"2020_02_20/uncased_L-{layers}_H-{64 * heads}_A-{heads}"
        for layers in (2, 4, 6, 8, 10, 12)
        for heads in (2, 4, 8, 12)
    ),
)

# Folder by task name, and where it is below GLUE_URL.
GLUE = {
    "CoLA": "glue/data/CoLA.zip",
    "MNLI": "glue/data/MNLI.zip",
    "MRPC": "senteval/senteval_data",
    "QNLI": "glue/data/QNLIv2.zip",
    "QQP": "glue/data/QQP-clean.zip",
    "RTE": "glue/data/RTE.zip",
    "SST-2": "glue/data/SST-2.zip",
    "STS-B": "glue/data/STS-B.zip",
    "WNLI": "glue/data/WNLI.zip",
    "diagnostic": "glue/data/AX.tsv",
}

_MRPC_FILES = {
    "senteval/senteval_data/msr_paraphrase_train.txt": (
        "msr_paraphrase_train.txt"
    ),
    "senteval/senteval_data/msr_paraphrase_test.txt": "msr_paraphrase_test.txt",
    "glue/data/mrpc_dev_ids.tsv": "dev_ids.tsv",
}

_MRPC_SPLITS = ("dev", "test", "train")
