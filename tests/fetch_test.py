"""Downloads: whole or not at all, resumed, and clear without a network."""

import functools
import http.server
import io
import re
import socket
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from folders import contents

from bert_pruning.commands.fetch import fetch
from bert_pruning.data import demo
from bert_pruning.data.fetch import CHECKPOINT_FILES
from bert_pruning.data.fetch import CHECKPOINTS
from bert_pruning.data.fetch import GLUE
from bert_pruning.data.fetch import download
from bert_pruning.data.fetch import fetch_checkpoint
from bert_pruning.data.fetch import fetch_glue
from bert_pruning.data.fetch import find_checkpoint
from bert_pruning.data.fetch import split_mrpc
from bert_pruning.data.fetch import unpack
from bert_pruning.errors import UserError

TINY = "2020_02_20/uncased_L-2_H-128_A-2"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with byte ranges, and can break off half way."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start = 0
        if match := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match.group(1))
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) // 2 if self.server.breaks_off else None
        self.wfile.write(content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A server of `server.folder` on the loopback interface."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        served.folder = folder
        served.url = f"http://127.0.0.1:{served.server_port}"
        served.requests = []
        served.breaks_off = False
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def write_zip(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_checkpoint(server, folder):
    files = {f"{folder}{name}": name for name in CHECKPOINT_FILES}
    write_zip(server.folder / f"{TINY}.zip", files)


@pytest.mark.parametrize("folder", ["", "uncased_L-2_H-128_A-2/"])
def test_a_checkpoint_is_unpacked_whether_or_not_its_zip_has_a_folder(
    server, tmp_path, folder
):
    write_checkpoint(server, folder)
    found = fetch_checkpoint(TINY, tmp_path / "out", server.url)
    assert found == tmp_path / "out" / "bert_models" / TINY
    assert sorted(path.name for path in found.iterdir()) == sorted(
        CHECKPOINT_FILES
    )
    assert [path.name for path in found.parent.iterdir()] == [found.name]


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    write_checkpoint(server, "")
    for _ in range(2):
        fetch_checkpoint(TINY, tmp_path / "out", server.url)
    assert len(server.requests) == 1


def test_an_archive_laid_by_hand_needs_no_network_and_is_kept(tmp_path):
    archive = tmp_path / "bert_models" / f"{TINY}.zip"
    write_zip(archive, {name: name for name in CHECKPOINT_FILES})
    found = fetch_checkpoint(TINY, tmp_path, "http://127.0.0.1:9/none")
    assert (found / "vocab.txt").read_text() == "vocab.txt"
    assert archive.exists()


def test_the_name_released_twice_must_be_given_with_its_date():
    with pytest.raises(UserError, match=r"2018_10_18/.* or 2020_02_20/"):
        find_checkpoint("uncased_L-12_H-768_A-12")
    name = "2020_02_20/uncased_L-12_H-768_A-12"
    assert find_checkpoint(name) == name
    assert find_checkpoint("chinese_L-12_H-768_A-12").startswith("2018_11_03")


def test_the_registry_has_every_official_checkpoint():
    assert len(set(CHECKPOINTS)) == 9 + 24
    assert "2020_02_20/uncased_L-2_H-128_A-2" in CHECKPOINTS
    assert "2020_02_20/uncased_L-10_H-512_A-8" in CHECKPOINTS
    assert "2019_05_30/wwm_cased_L-24_H-1024_A-16" in CHECKPOINTS


def test_an_unknown_name_is_refused_before_the_first_download(server, tmp_path):
    with pytest.raises(UserError, match="Received: bert-base"):
        fetch(["RTE", "bert-base"], tmp_path, server.url, server.url)
    assert not server.requests


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    content = bytes(range(256)) * 100
    (server.folder / "file").write_bytes(content)
    server.breaks_off = True
    path = tmp_path / "file"
    with pytest.raises(UserError, match=r"12,800 of 25,600 bytes"):
        download(f"{server.url}/file", path)
    assert not path.exists()
    server.breaks_off = False
    download(f"{server.url}/file", path)
    assert path.read_bytes() == content
    assert server.requests[1] == ("/file", "bytes=12800-")


def test_a_part_that_is_already_whole_is_fetched_anew(server, tmp_path):
    (server.folder / "file").write_bytes(b"new")
    (tmp_path / "file.part").write_bytes(b"old")
    download(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_closed_network_is_an_error_that_says_what_to_do(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(UserError) as caught:
        fetch_checkpoint(TINY, tmp_path, url)
    message = str(caught.value)
    assert f"{url}/{TINY}.zip" in message
    assert str(tmp_path / "bert_models" / f"{TINY}.zip") in message


def test_a_missing_file_on_the_server_is_named(server, tmp_path):
    with pytest.raises(UserError, match=r"glue/data/RTE.zip.*404"):
        fetch_glue("RTE", tmp_path, server.url)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:\\e"])
def test_a_zip_that_would_write_elsewhere_is_refused(tmp_path, name):
    archive = tmp_path / "x.zip"
    write_zip(archive, {"train.tsv": "", name: "evil"})
    with pytest.raises(UserError, match="outside of its folder"):
        unpack(archive, tmp_path / "in" / "x", ("train.tsv",))
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path / "in" / "x").exists()


def test_a_damaged_zip_leaves_nothing_behind(tmp_path):
    archive = tmp_path / "x.zip"
    write_zip(archive, {"train.tsv": "text" * 100})
    content = bytearray(archive.read_bytes())
    content[60] ^= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match="no whole zip file"):
        unpack(archive, tmp_path / "x", ("train.tsv",))
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_an_archive_without_a_needed_file_is_refused(server, tmp_path):
    write_zip(server.folder / f"{TINY}.zip", {"bert_config.json": "{}"})
    with pytest.raises(UserError, match=r"has no vocab\.txt"):
        fetch_checkpoint(TINY, tmp_path, server.url)
    assert not (tmp_path / "bert_models" / TINY).exists()


def test_a_task_is_put_where_data_dir_expects_it(server, tmp_path):
    files = {"SST-2/train.tsv": "a", "SST-2/test.tsv": "b", "SST-2/o/x": "c"}
    files["__MACOSX/SST-2/._train.tsv"] = "junk"
    write_zip(server.folder / GLUE["SST-2"], files)
    folder = fetch_glue("SST-2", tmp_path, server.url)
    assert folder == tmp_path / "SST-2"
    assert (folder / "train.tsv").read_text() == "a"
    assert not list(tmp_path.rglob("._train.tsv"))


def test_the_diagnostic_set_is_a_single_file(server, tmp_path):
    path = server.folder / GLUE["diagnostic"]
    path.parent.mkdir(parents=True)
    path.write_text("index\n")
    fetch(["Diagnostic"], tmp_path, glue_url=server.url)
    assert (tmp_path / "diagnostic" / "diagnostic.tsv").is_file()


def write_mrpc(server):
    """Puts a corpus of three pairs on a server; returns its lines."""
    rows = ["1\t10\t20\ta b\tc\u2028d", "0\t11\t21\te\tf", "1\t12\t22\tg\th"]
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    corpus = server.folder / "senteval/senteval_data"
    corpus.mkdir(parents=True)
    text = "\n".join([header, *rows]) + "\n"
    (corpus / "msr_paraphrase_train.txt").write_text(text, encoding="utf-8")
    (corpus / "msr_paraphrase_test.txt").write_text(text, encoding="utf-8")
    ids = server.folder / "glue/data/mrpc_dev_ids.tsv"
    ids.parent.mkdir(parents=True)
    ids.write_text("11\t21\n")
    return header, rows


def test_mrpc_is_split_by_the_dev_ids(server, tmp_path):
    header, rows = write_mrpc(server)
    folder = fetch_glue("MRPC", tmp_path, server.url)

    def lines(split):
        text = (folder / f"{split}.tsv").read_text(encoding="utf-8")
        return text.split("\n")

    assert lines("train") == [header, rows[0], rows[2], ""]
    assert lines("dev") == [header, rows[1], ""]
    assert lines("test")[:2] == [
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "0\t10\t20\ta b\tc\u2028d",
    ]


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_mrpc_is_whole_after_a_kill(server, tmp_path, monkeypatch, split):
    write_mrpc(server)
    whole = fetch_glue("MRPC", tmp_path / "whole", server.url)
    write_bytes = Path.write_bytes

    def be_killed(path, content):
        if not path.name.startswith(split):
            return write_bytes(path, content)
        write_bytes(path, content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", be_killed)
        with pytest.raises(KeyboardInterrupt):
            fetch_glue("MRPC", tmp_path, server.url)
    found = fetch_glue("MRPC", tmp_path, server.url)
    assert contents(found) == contents(whole)
    (found / f"{split}.tsv").unlink()
    fetch_glue("MRPC", tmp_path, server.url)
    assert contents(found) == contents(whole)


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path, request):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "MRPC"
    with pytest.raises(UserError, match=f"Cannot write to {folder}: .*output"):
        fetch_glue("MRPC", tmp_path / "file", server.url)
    write_zip(tmp_path / "x.zip", {"train.tsv": ""})
    with pytest.raises(UserError, match=f"Cannot write to {folder}: "):
        unpack(tmp_path / "x.zip", folder / "x", ("train.tsv",))
    request.getfixturevalue("read_only")
    with pytest.raises(UserError, match=f"Cannot write to {tmp_path}/MRPC: "):
        fetch_glue("MRPC", tmp_path, server.url)
    assert not server.requests


def test_mrpc_equals_the_files_of_the_official_script(glue_dir, tmp_path):
    official = Path(glue_dir) / "MRPC"
    names = (
        "dev_ids.tsv",
        "msr_paraphrase_train.txt",
        "msr_paraphrase_test.txt",
    )
    if not all((official / name).exists() for name in names):
        pytest.skip("this GLUE has no original MRPC corpus")
    for name in names:
        (tmp_path / name).write_bytes((official / name).read_bytes())
    split_mrpc(tmp_path)
    for name in ("dev.tsv", "test.tsv"):
        expected = (official / name).read_bytes()
        assert (tmp_path / name).read_bytes() == expected
    # GLUE's numbers of pairs.
    train = (tmp_path / "train.tsv").read_text(encoding="utf-8")
    assert train.count("\n") - 1 == 3668


def make_ratings(path, text):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        content = text.encode()
        member = tarfile.TarInfo(
            "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
        )
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    resources = "vaderSentiment-0.5/additional_resources"
    write_zip(path, {f"{resources}/hutto_ICWSM_2014.tar.gz": inner.getvalue()})


def test_rated_snippets_become_two_tasks(tmp_path):
    package = tmp_path / "vader.zip"
    lines = [f"{i}\t{i % 7 - 3}\tsnippet &amp; {i}\r\n" for i in range(200)]
    make_ratings(package, "".join(lines))
    rows = demo.read_ratings(package)
    assert rows[1] == ("1", -2.0, "snippet & 1")
    demo.write_tasks(rows, tmp_path / "demo")
    splits = {}
    for task in ("movie-polarity", "movie-rating"):
        for split in ("train", "dev"):
            path = tmp_path / "demo" / task / f"{split}.tsv"
            found = [row.split("\t") for row in path.read_text().splitlines()]
            splits[task, split] = found[1:]
        flags = (tmp_path / "demo" / task / "task.cfg").read_text()
        assert f"--label_column={found[0][2]}" in flags
    ratings = splits["movie-rating", "train"] + splits["movie-rating", "dev"]
    assert len(ratings) == 200
    signs = splits["movie-polarity", "train"] + splits["movie-polarity", "dev"]
    assert len(signs) == sum(mean != 0 for _, mean, _ in rows)
    means = dict((row[0], float(row[2])) for row in ratings)
    for identifier, _, sign in signs:
        assert sign == ("positive" if means[identifier] > 0 else "negative")
    assert 5 < len(splits["movie-rating", "dev"]) < 40


def test_copies_of_a_snippet_are_on_one_side():
    texts = [f"film number {i}" for i in range(100)]
    sides = [demo.is_held_out(text) for text in texts]
    assert sides == [demo.is_held_out(f"{text.title()} ...") for text in texts]
    assert any(sides) and not all(sides)


def test_another_package_is_no_source_of_ratings(tmp_path):
    write_zip(tmp_path / "x.zip", {"setup.py": ""})
    with pytest.raises(UserError, match="not the source distribution"):
        demo.read_ratings(tmp_path / "x.zip")
