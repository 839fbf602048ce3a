"""From texts to files of examples, the same however they were made."""

import json
import os
import re
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import tiny_bert
import tiny_runs
from apache_beam.runners.portability.prism_runner import PrismRunner
from folders import contents

from bert_pruning.data import corpus
from bert_pruning.data import examples
from bert_pruning.data import preparation
from bert_pruning.errors import UserError

WORDS = (*tiny_runs.GOOD, *tiny_runs.BAD, *tiny_runs.OTHER[:-1])
VOCABULARY = (*tiny_bert.SPECIAL_TOKENS, *WORDS, ".", "##s")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with texts and a checkpoint."""
    folder = tmp_path_factory.mktemp("place")
    tiny_runs.write_checkpoint(
        folder / "init", vocabulary=VOCABULARY, max_position_embeddings=32
    )
    random = np.random.default_rng(0)
    (folder / "texts").mkdir()
    for name in range(6):
        documents = [
            "\n".join(
                " ".join([*random.choice(WORDS, 6), "."]).capitalize()
                for _ in range(random.integers(1, 12))
            )
            for _ in range(4)
        ]
        text = "\n\n".join(documents) + "\n"
        (folder / "texts" / f"{name}.txt").write_text(text)
    return folder


def prepare(place, output_dir, *flags):
    return tiny_runs.run_command(
        *("prepare", f"--input={place}/texts"),
        *(f"--init_checkpoint={place}/init", f"--output_dir={output_dir}"),
        *("--max_seq_length=32", "--dev_share=0.3", "--shard_rows=10", *flags),
    )


def read_all(folder):
    found = examples.find_corpus(str(folder), VOCABULARY, True)
    return {
        split: [found.read(split, i) for i in range(len(files))]
        for split, files in found.files.items()
    }


# === Corpus ===


def test_a_document_ends_at_a_blank_line_or_with_its_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufeffone\n two \n\n\n  \nthree\r\n", encoding="utf-8")
    found = list(corpus.iterate_documents(str(path)))
    assert found == [["one", "two"], ["three"]]


def test_lines_are_split_into_sentences():
    lines = ["Mr. Smith paid $3.5 million. He left.", "Why? Nobody knows"]
    assert corpus.split_sentences(lines) == [
        *("Mr. Smith paid $3.5 million.", "He left.", "Why?", "Nobody knows")
    ]


def test_files_are_found_by_name_folder_and_pattern(tmp_path):
    for name in ("a.txt", "b/c.txt", "b/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    names = ["a.txt", "b/c.txt"]
    paths = [str(tmp_path / name) for name in names]
    assert corpus.find_files([str(tmp_path)]) == paths
    assert corpus.find_files([f"{tmp_path}/*.txt", paths[0]]) == paths[:1]
    with pytest.raises(UserError, match="names no file"):
        corpus.find_files([f"{tmp_path}/*.md"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no text"),
        (b"\n \n", "has no text"),
        (b"one giant line. " * 1000, "is a single document"),
        (b"\x7fELF\0\0\1", "holds zero bytes"),
        (b"caf\xe9 au lait\n\nb", "is not UTF-8"),
    ],
)
def test_what_is_no_corpus_is_refused(place, tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    status, _, err = prepare(
        place, tmp_path / "out", f"--input={tmp_path}/a.txt"
    )
    assert status == 2
    assert message in err
    assert not (tmp_path / "out" / "flags.cfg").exists()


def test_a_byte_that_is_no_text_is_told_wherever_it_is(place, tmp_path):
    text = b"good film .\n\n" * 10_000 + b"caf\xe9\n"
    (tmp_path / "a.txt").write_bytes(text)
    status, _, err = prepare(
        place, tmp_path / "out", f"--input={tmp_path}/a.txt"
    )
    assert status == 2
    assert "a.txt:20001: not UTF-8" in err
    assert "Traceback" not in err


class TinyTexts(tfds.core.GeneratorBasedBuilder):
    """Documents as TensorFlow Datasets has them, fewer than its parts."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURE, SPLIT = "text", "train"

    def _info(self):
        features = tfds.features.FeaturesDict(
            {self.FEATURE: tfds.features.Text()}
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {self.SPLIT: self._generate_examples()}

    def _generate_examples(self):
        for number in range(12):
            words = f"{WORDS[number % len(WORDS)]} film . bad film ."
            yield number, {self.FEATURE: f"{words}\n\n{words} {number}\n"}


class TinyTitles(TinyTexts):
    FEATURE, SPLIT = "title", "test"


class TinyFailing(TinyTexts):
    def _generate_examples(self):
        raise OSError("No room.")


@pytest.fixture
def datasets_dir(tmp_path, monkeypatch):
    """An empty folder in place of the user's own."""
    folder = str(tmp_path / "datasets")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", folder)
    return folder


def test_a_text_of_tensorflow_datasets_is_read_to_the_last_row(
    place, tmp_path, datasets_dir
):
    flags = ("--input=tfds:tiny_texts", "--short_seq_probability=0")
    status, _, err = prepare(place, tmp_path / "out", *flags)
    assert status == 0, err
    assert "tiny_texts" in os.listdir(datasets_dir)
    # A blank line ends no document there, each gives one pair or two.
    found = read_all(tmp_path / "out")
    assert sum(map(len, found["train"] + found["dev"])) >= 12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_text", "TensorFlow Datasets cannot open tiny_text: "),
        (
            "tiny_titles",
            "needs a split 'train' with a feature 'text'. Rec.*test",
        ),
        (
            "tiny_failing",
            "cannot be had: No room. Tens.*datasets/tiny_failing/",
        ),
    ],
)
def test_what_tensorflow_datasets_cannot_give_is_told(
    place, tmp_path, datasets_dir, name, message
):
    status, _, err = prepare(place, tmp_path / "out", f"--input=tfds:{name}")
    assert status == 2
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "flags.cfg").exists()


# === Examples ===


def test_examples_are_pairs_of_the_corpus(place, tmp_path):
    status, out, err = prepare(place, tmp_path / "out")
    assert status == 0, err
    found = read_all(tmp_path / "out")
    assert len(found["train"]) > 1
    assert f"train: {sum(map(len, found['train']))} examples" in out
    labels = np.concatenate([part.labels for part in found["train"]])
    assert set(labels) == {0, 1}
    for part in found["train"] + found["dev"]:
        batch = part.batch(np.arange(len(part)))
        ids = batch["input_word_ids"]
        assert (ids[:, 0] == 2).all()
        assert ((ids == 3).sum(1) == 2).all()
        assert (ids != 1).all()
        second = batch["input_type_ids"].argmax(1)
        assert (ids[np.arange(len(ids)), second - 1] == 3).all()


def test_text_without_full_stops_is_not_lost(place, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in range(6):
        (texts / f"{name}.txt").write_text(f"{WORDS[name]} film " * 500)
    flags = (f"--input={texts}", "--dev_share=0", "--short_seq_probability=0")
    status, _, err = prepare(place, tmp_path / "out", *flags)
    assert status == 0, err
    found = read_all(tmp_path / "out")["train"]
    # Of 29 tokens each.
    assert sum(map(len, found)) > 6 * 1000 // 29


def test_a_corpus_of_which_none_is_held_out_is_refused(place, tmp_path):
    flags = ("--dev_share=1e-9",)
    status, _, err = prepare(place, tmp_path / "out", *flags)
    assert status == 2
    assert "less than two documents are of --dev_share=1e-09" in err
    assert not (tmp_path / "out" / "DONE").exists()
    flags += ("--format=official", "--dupe_factor=1", "--overwrite")
    assert prepare(place, tmp_path / "out", *flags)[0] == 0


def test_documents_that_are_held_out_are_not_trained_on(place, tmp_path):
    status, _, err = prepare(place, tmp_path / "out")
    assert status == 0, err
    texts = [path.read_text() for path in (place / "texts").iterdir()]
    documents = [
        {" ".join(line.lower().split()) for line in document.splitlines()}
        for text in texts
        for document in text.strip().split("\n\n")
    ]
    homes = {}
    for split, parts in read_all(tmp_path / "out").items():
        for part in parts:
            for row in range(len(part)):
                ids = part.token_ids[part.offsets[row] : part.offsets[row + 1]]
                words = " ".join(VOCABULARY[i] for i in ids)
                for sentence in words.replace("[SEP]", ".").split(" . "):
                    for number, lines in enumerate(documents):
                        if f"{sentence} ." in lines:
                            homes.setdefault(number, set()).add(split)
    assert {frozenset(found) for found in homes.values()} == {
        *(frozenset({"train"}), frozenset({"dev"}))
    }


@pytest.mark.parametrize(
    "options",
    [["--beam=--direct_num_workers=3"], ["--seed=42"]],
    ids=["workers", "again"],
)
def test_the_same_seed_gives_the_same_files(
    place, tmp_path, options, monkeypatch
):
    monkeypatch.setattr(preparation, "POOL_SIZE", 5)
    options = [*options, "--beam=--direct_running_mode=multi_threading"]
    assert prepare(place, tmp_path / "a")[0] == 0
    assert prepare(place, tmp_path / "b", *options)[0] == 0
    assert_same_examples(tmp_path / "a", tmp_path / "b")


def test_processes_give_the_same_files(place, tmp_path):
    options = (
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=2",
    )
    assert prepare(place, tmp_path / "a")[0] == 0
    status, _, err = prepare(
        place, tmp_path / "b", *(f"--beam={option}" for option in options)
    )
    assert status == 0, err
    assert_same_examples(tmp_path / "a", tmp_path / "b")


def assert_same_examples(one, other):
    one, other = contents(one), contents(other)
    assert one.keys() == other.keys()
    for name in one:
        if name.endswith(("gz", "json")):
            assert one[name] == other[name], name


@pytest.mark.parametrize("options", [[], ["--beam=--runner=DirectRunner"]])
def test_nothing_is_fetched(place, tmp_path, monkeypatch, options):
    tried = []

    def refuse(*arguments, **options):
        tried.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    # It may have been fetched before.
    monkeypatch.setattr(PrismRunner, "run_pipeline", refuse)
    status, _, err = prepare(place, tmp_path / "out", *options)
    assert status == 0, err
    assert not tried


def test_another_seed_gives_others(place, tmp_path):
    assert prepare(place, tmp_path / "a")[0] == 0
    assert prepare(place, tmp_path / "b", "--seed=7")[0] == 0
    one, other = (read_all(tmp_path / n)["train"][0] for n in "ab")
    assert one.token_ids.tolist() != other.token_ids.tolist()


def test_the_official_format_is_that_of_the_official_code(place, tmp_path):
    status, _, err = prepare(
        *(place, tmp_path / "out", "--format=official", "--dupe_factor=2"),
        *("--max_predictions_per_seq=4", "--do_whole_word_mask"),
    )
    assert status == 0, err
    names = ("input_ids", "input_mask", "segment_ids")
    features = {name: tf.io.FixedLenFeature((32,), tf.int64) for name in names}
    for name in ("masked_lm_positions", "masked_lm_ids"):
        features[name] = tf.io.FixedLenFeature((4,), tf.int64)
    features["masked_lm_weights"] = tf.io.FixedLenFeature((4,), tf.float32)
    features["next_sentence_labels"] = tf.io.FixedLenFeature((1,), tf.int64)
    rows = 0
    for path in sorted((tmp_path / "out").glob("train*.tfrecord")):
        for record in tf.data.TFRecordDataset(str(path)):
            row = tf.io.parse_single_example(record, features)
            row = {name: value.numpy() for name, value in row.items()}
            length = row["input_mask"].sum()
            assert row["input_ids"][length - 1] == 3
            assert not row["input_ids"][length:].any()
            assert set(row["segment_ids"][:length]) == {0, 1}
            count = int(row["masked_lm_weights"].sum())
            assert 1 <= count <= 4
            assert not row["masked_lm_ids"][count:].any()
            rows += 1
    assert rows > 0
    with pytest.raises(UserError, match="masked for other programs"):
        examples.find_corpus(str(tmp_path / "out"), VOCABULARY, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dupe_factor=2"], "--dupe_factor needs --format=official"),
        (["--max_seq_length=64"], "longer than the 32 positions"),
        (["--max_seq_length=3"], "must be at least 5"),
        (["--nsp_probability=2"], "--nsp_probability=2"),
        (["--input=tfds:wikipedia/x,a.txt"], "takes one text"),
        (["--input=nowhere"], "names no file"),
        (["--output_dir=P/init"], "would be written over"),
        (["--output_dir=P/texts/out"], "would be read as text"),
        (["--beam=--direct_num_workers=abc"], "Apache Beam does not take"),
        (["--beam=--direct_num_workers='8"], "Apache Beam does not take"),
        (["--beam=--direct_num_wrkers=8"], "['--direct_num_wrkers=8']"),
        (["--beam=direct_num_workers=8"], "['direct_num_workers=8']"),
    ],
)
def test_flags_that_cannot_be_are_refused(place, tmp_path, flags, message):
    flags = [flag.replace("P/", f"{place}/") for flag in flags]
    before = contents(place)
    status, _, err = prepare(place, tmp_path / "out", *flags)
    assert status == 2
    assert message in err
    assert contents(place) == before


# === Reading ===


def test_files_that_are_not_as_written_are_refused(place, tmp_path):
    folder = tmp_path / "out"

    def find(vocabulary=VOCABULARY, lower=True):
        return examples.find_corpus(str(folder), vocabulary, lower)

    with pytest.raises(UserError, match="no finished examples"):
        find()
    assert prepare(place, folder)[0] == 0
    found = find()
    with pytest.raises(UserError, match="another vocabulary, of 24 tokens"):
        find(vocabulary=VOCABULARY[::-1])
    with pytest.raises(UserError, match="do_lower_case"):
        find(lower=False)
    path = folder / found.files["train"][0]
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    with pytest.raises(UserError, match="was truncated"):
        find()
    # As long as it was, but not what it was.
    path.write_bytes(content[:40] + b"\0" * (len(content) - 40))
    with pytest.raises(UserError, match="is damaged"):
        find().read("train", 0)
    os.remove(path)
    with pytest.raises(UserError, match="is missing"):
        find()
    index = (folder / "prepare.json").read_text()
    (folder / "prepare.json").write_text(json.dumps({"format": "tokens"}))
    with pytest.raises(UserError, match="writes it: 'vocab_size'"):
        find()
    for name, value in (("rows", "many"), ("bytes", None)):
        wrong = json.loads(index)
        about = wrong["splits"]["train"][found.files["train"][0]]
        about[name] = value
        (folder / "prepare.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="Was it edited"):
            find()
    wrong = json.loads(index)
    del wrong["format"]
    (folder / "prepare.json").write_text(json.dumps(wrong))
    with pytest.raises(UserError, match="writes it: 'format'"):
        find()
    wrong = json.loads(index)
    del wrong["splits"]["dev"]
    (folder / "prepare.json").write_text(json.dumps(wrong))
    with pytest.raises(UserError, match="writes it: 'dev'"):
        find()


def test_a_finished_folder_is_not_replaced_unasked(place, tmp_path):
    assert prepare(place, tmp_path / "out")[0] == 0
    before = contents(tmp_path / "out")
    status, _, err = prepare(place, tmp_path / "out")
    assert status == 2
    assert "--overwrite" in err
    assert contents(tmp_path / "out") == before
    status, _, err = prepare(
        place, tmp_path / "out", "--overwrite", "--shard_rows=1000"
    )
    assert status == 0, err
    assert len(list((tmp_path / "out").glob("train*.gz"))) == 1
