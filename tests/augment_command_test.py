"""Augmented data, written and trained on as typed."""

import csv
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import tiny_bert
import tiny_runs
from folders import contents

from bert_pruning.data import augmentation
from bert_pruning.data.pipeline import EncodedDataset
from bert_pruning.data.shards import ShardedBatches
from bert_pruning.data.shards import find_shards
from bert_pruning.data.tasks import get_task
from bert_pruning.errors import UserError
from bert_pruning.modeling.checkpoints import save_huggingface
from bert_pruning.training import masked_lm
from bert_pruning.training import trainer

pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data of two tasks, a masked LM and word vectors."""
    folder = tmp_path_factory.mktemp("place")
    tiny_runs.write_sst2(folder / "data")
    write_mrpc(folder / "data" / "MRPC")
    config = tiny_runs.tiny_config()
    weights = tiny_bert.random_weights(config, heads=("pooler", "mlm"))
    save_huggingface(
        folder / "mlm", config, weights, tiny_runs.VOCABULARY, True
    )
    tiny_runs.write_checkpoint(folder / "init")
    (folder / "glove.txt").write_text("films 0.1 0.2\nfilm 0.1 0.3\nend 1 1\n")
    return folder


def write_mrpc(folder):
    folder.mkdir()
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    quoted = 'a "good film', 'the "very end" was bad'
    rows = [["1", "10", "20", *quoted], ["0", "11", "21", "bad plot", "film"]]
    for split in ("train", "dev"):
        lines = ["\t".join(row) + "\n" for row in [header, *rows, rows[1]]]
        (folder / f"{split}.tsv").write_text("".join(lines))


def augment(folder, output_dir, *flags):
    return tiny_runs.run_command(
        *("augment", "--task_name=SST-2", f"--data_dir={folder}/data"),
        *(f"--init_checkpoint={folder}/mlm", f"--glove={folder}/glove.txt"),
        *(f"--output_dir={output_dir}", "--num_variants=3"),
        *("--num_candidates=5", "--shard_rows=10", *flags),
    )


def rows_of(path):
    text = pathlib.Path(path).read_text()
    return [line.split("\t") for line in text.removesuffix("\n").split("\n")]


def test_the_shards_are_training_files_of_the_task(place, tmp_path):
    status, out, err = augment(place, tmp_path / "aug")
    assert status == 0, err
    index = json.loads((tmp_path / "aug" / "augment.json").read_text())
    names = [f"train_aug-0000{i}-of-00003.tsv" for i in range(3)]
    assert list(index["shards"]) == names
    counts = [shard["rows"] for shard in index["shards"].values()]
    assert index["source_rows"] == 24
    assert index["seed"] == 42
    assert f"24 rows -> {sum(counts)}" in out
    source = rows_of(place / "data" / "SST-2" / "train.tsv")
    found = [rows_of(tmp_path / "aug" / name) for name in names]
    assert all(rows[0] == source[0] for rows in found)
    assert [len(rows) - 1 for rows in found] == counts
    made = [tuple(row) for rows in found for row in rows[1:]]
    # Every row of the file, in its order, each followed by its variants.
    labels, position = [], 0
    for sentence, label in source[1:]:
        assert made[position] == (sentence, label)
        position += 1
        while position < len(made) and made[position][0] not in {
            row[0] for row in source[1:]
        }:
            labels.append((made[position][1], label))
            position += 1
    assert all(ours == theirs for ours, theirs in labels)
    assert len(made) > 2 * 24


def test_quotes_and_pairs_stay_as_they_are(place, tmp_path):
    flags = ("--task_name=MRPC", "--glove=")
    status, _, err = augment(place, tmp_path / "aug", *flags)
    assert status == 0, err
    header, *rows = rows_of(tmp_path / "aug" / "train_aug-00000-of-00001.tsv")
    assert header == ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    first = [row for row in rows if row[1] == "10"]
    assert first[0] == [
        *("1", "10", "20", 'a "good film', 'the "very end" was bad')
    ]
    assert len(first) > 3
    for row in first[1:]:
        # One of the two is the original.
        assert (row[3] == first[0][3]) != (row[4] == first[0][4])
        assert row[3].count('"') == 1
        assert row[4].count('"') == 2
        assert '""' not in "".join(row)


def test_a_csv_file_of_one_s_own_keeps_its_quotes(place, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [["text", "label"], ['good, "film"', "yes"], ["bad\nplot", "no"]]
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    (folder / "dev.csv").write_bytes((folder / "train.csv").read_bytes())
    flags = ("--task_name=custom", f"--data_dir={folder}")
    flags += ("--text_a_column=text",)
    status, _, err = augment(place, tmp_path / "aug", *flags)
    assert status == 0, err
    [path] = (tmp_path / "aug").glob("train_aug-*.csv")
    with open(path, newline="") as file:
        found = list(csv.reader(file))
    assert found[:2] == rows[:2]
    assert rows[2] in found
    assert all(len(row) == 2 for row in found)


def test_cola_has_no_header(place, tmp_path):
    (tmp_path / "CoLA").mkdir()
    line = "x\t1\t\tgood film\n"
    for split in ("train", "dev"):
        (tmp_path / "CoLA" / f"{split}.tsv").write_text(line)
    flags = ("--task_name=CoLA", f"--data_dir={tmp_path}")
    assert augment(place, tmp_path / "aug", *flags)[0] == 0
    rows = rows_of(tmp_path / "aug" / "train_aug-00000-of-00001.tsv")
    assert rows[0] == ["x", "1", "", "good film"]
    assert all(row[:3] == ["x", "1", ""] for row in rows)


def test_a_seed_repeats_and_two_differ(place, tmp_path):
    for name, flags in {"a": (), "b": (), "c": ("--seed=1",)}.items():
        assert augment(place, tmp_path / name, *flags)[0] == 0
    shards = {
        name: {
            key: value
            for key, value in contents(tmp_path / name).items()
            if key.endswith(".tsv")
        }
        for name in "abc"
    }
    assert shards["a"] == shards["b"] != shards["c"]
    # However the file is cut, a row has the same variants.
    assert augment(place, tmp_path / "d", "--shard_rows=100")[0] == 0
    [whole] = (tmp_path / "d").glob("*.tsv")
    parts = [rows_of(tmp_path / "a" / name)[1:] for name in sorted(shards["a"])]
    assert rows_of(whole)[1:] == sum(parts, [])


def test_it_predicts_in_the_precision_asked_for(place, tmp_path, monkeypatch):
    seen = []
    original = masked_lm.MaskedPredictor.__init__

    def recording(self, model, number):
        seen.append((model.compute_dtype, model.outputs[0].dtype.name))
        original(self, model, number)

    monkeypatch.setattr(masked_lm.MaskedPredictor, "__init__", recording)
    for precision in ("float32", "bfloat16"):
        path = tmp_path / precision
        status, _, err = augment(place, path, f"--mixed_precision={precision}")
        assert status == 0, err
        index = json.loads((path / "augment.json").read_text())
        assert index["mixed_precision"] == precision
    assert seen == [("float32", "float32"), ("bfloat16", "float32")]


class Crash(Exception):
    """Stands for the process being gone."""


def test_a_killed_augmentation_goes_on(place, tmp_path, monkeypatch):
    assert augment(place, tmp_path / "whole")[0] == 0
    original = augmentation.Augmenter.augment
    calls = []

    def crashing(self, texts, generators):
        calls.append(len(texts))
        if len(calls) == 2:
            raise Crash
        return original(self, texts, generators)

    monkeypatch.setattr(augmentation.Augmenter, "augment", crashing)
    with pytest.raises(Crash):
        augment(place, tmp_path / "killed")
    assert not (tmp_path / "killed" / "DONE").exists()
    assert augment(place, tmp_path / "killed")[0] == 0
    # The first shard was not made again.
    assert calls == [10, 10, 10, 4]
    whole, killed = (
        {k: v for k, v in contents(tmp_path / name).items() if k != "flags.cfg"}
        for name in ("whole", "killed")
    )
    assert whole == killed
    status, _, err = augment(place, tmp_path / "killed")
    assert status == 2
    assert "--overwrite" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--init_checkpoint=P/init"], "no masked-language-model head"),
        (["--init_checkpoint=nowhere"], "nowhere"),
        (["--data_dir=nowhere"], "nowhere"),
        (["--data_dir=tfds"], "needs the task's files"),
        (["--task_name=AX"], "AX has no training data; augment MNLI"),
        (["--task_name=SQuAD"], "of labelled texts. Received: --task_name=SQu"),
        (["--glove=nowhere"], "Cannot read nowhere"),
        (["--replace_probability=0"], "--replace_probability"),
        (["--num_variants=0"], "num_variants"),
        (["--num_candidates=999"], "--num_candidates=999 is more than"),
        (["--output_dir=P/mlm"], "mlm would be written over"),
        (["--text_a_column=x"], "--text_a_column needs --task_name=custom"),
    ],
)
def test_what_cannot_be_augmented_is_refused(place, tmp_path, flags, message):
    flags = [flag.replace("P/", f"{place}/") for flag in flags]
    status, _, err = augment(place, tmp_path / "aug", *flags)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "aug" / "flags.cfg").exists()
    assert (place / "mlm" / "model.safetensors").exists()


def test_a_malformed_row_is_named_before_any_work(place, tmp_path):
    folder = tmp_path / "SST-2"
    folder.mkdir()
    (folder / "train.tsv").write_text("sentence\tlabel\ngood film\n")
    status, _, err = augment(place, tmp_path / "aug", f"--data_dir={tmp_path}")
    assert status == 2
    assert "train.tsv:2" in err


def test_texts_without_words_have_no_variants(place, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    text = "text\tlabel\n\u200b\tyes\n\x01\tno\ngood film\tyes\n"
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text(text)
    own = ("--task_name=custom", f"--data_dir={folder}")
    own += ("--text_a_column=text",)
    assert augment(place, tmp_path / "aug", *own)[0] == 0
    status, _, err = train(
        place, tmp_path / "run", *own, f"--aug_train={tmp_path}/aug"
    )
    assert status == 0, err
    # Another folder's data are not these.
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    flags = (*own, f"--data_dir={other}", f"--aug_train={tmp_path}/aug")
    status, _, err = train(place, tmp_path / "run2", *flags)
    assert status == 2
    assert "was made for other data" in err


# === Training on it ===


def train(folder, output_dir, *flags):
    return tiny_runs.run_command(
        *("train", "--task_name=SST-2", f"--data_dir={folder}/data"),
        *(f"--init_checkpoint={folder}/init", f"--output_dir={output_dir}"),
        *tiny_runs.QUICK,
        *flags,
    )


def test_training_reads_the_shards(place, tmp_path, monkeypatch):
    assert augment(place, tmp_path / "aug")[0] == 0
    index = json.loads((tmp_path / "aug" / "augment.json").read_text())
    seen = []

    def noting(self):
        seen.append(self.plan.steps_per_epoch)
        seen.extend(self.batches.epoch(0))
        raise trainer.Interrupted("Stopped")

    monkeypatch.setattr(trainer.Trainer, "train", noting)
    _, _, err = train(place, tmp_path / "run", f"--aug_train={tmp_path}/aug")
    rows = [shard["rows"] for shard in index["shards"].values()]
    assert f"augmented: {sum(rows)} examples in 3 shards" in err
    assert seen[0] == sum(count // 4 for count in rows) == len(seen) - 1


def test_a_part_of_the_training_set_is_not_of_augmented_data(place, tmp_path):
    flags = (f"--aug_train={tmp_path}/aug", "--train_fraction=0.5")
    status, _, err = train(place, tmp_path / "run", *flags)
    assert status == 2
    assert "Leave one out" in err


def test_a_run_on_shards_finishes(place, tmp_path):
    assert augment(place, tmp_path / "aug")[0] == 0
    status, _, err = train(
        place, tmp_path / "run", f"--aug_train={tmp_path}/aug"
    )
    assert status == 0, err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("absent", "holds no finished augmentation"),
        ("unfinished", "holds no finished augmentation"),
        ("shard", r"Cannot read .*train_aug-00001-of-00003.tsv"),
        ("rows", "train_aug-00001-of-00003.tsv is not what was written"),
        ("task", "other data: task 'MRPC' instead of 'SST-2'"),
        ("labels", "other data: labels"),
        ("index", "lacks 'shards'"),
    ],
)
def test_a_spoilt_augmentation_is_refused(place, tmp_path, spoil, message):
    folder = tmp_path / "aug"
    assert augment(place, folder)[0] == 0
    shard = folder / "train_aug-00001-of-00003.tsv"
    index = json.loads((folder / "augment.json").read_text())
    if spoil == "absent":
        folder = tmp_path / "nowhere"
    elif spoil == "unfinished":
        (folder / "DONE").unlink()
    elif spoil == "shard":
        shard.unlink()
    elif spoil == "rows":
        shard.write_text("".join(shard.read_text().splitlines(True)[:-1]))
    elif spoil == "task":
        index["task"] = "MRPC"
    elif spoil == "labels":
        index["labels"] = ["no", "yes"]
    else:
        del index["shards"]
    if folder.exists():
        (folder / "augment.json").write_text(json.dumps(index))
    # What was there before is not touched.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "flags.cfg").write_text("")
    (tmp_path / "run" / "DONE").write_text("")
    before = contents(tmp_path / "run")
    flags = (f"--aug_train={folder}", "--overwrite")
    status, _, err = train(place, tmp_path / "run", *flags)
    assert status == 2
    assert re.search(message, err)
    assert "Traceback" not in err
    assert contents(tmp_path / "run") == before


class TestShardedBatches:
    rows = (10, 7, 3, 12)

    def make(self, seed=0, noted=None):
        def load(number):
            if noted is not None:
                noted.append(number)
            size = self.rows[number]
            return EncodedDataset(
                np.full(3 * size, number, np.int32),
                np.arange(size + 1) * 3,
                np.full(size, 3, np.int32),
                100 * number + np.arange(size, dtype=np.int32),
            )

        return ShardedBatches(
            self.rows, load, np.int32, batch_size=4, seed=seed
        )

    def labels(self, batches):
        return [batch["label"].tolist() for batch in batches]

    def test_an_epoch_is_every_shard_once(self):
        noted = []
        batches = self.make(noted=noted)
        found = self.labels(batches.epoch(0))
        # Rows that fill no batch are left out, unless they are all there is.
        assert batches.num_batches == len(found) == 2 + 1 + 1 + 3
        assert sorted(noted) == [0, 1, 2, 3]
        labels = sum(found, [])
        assert len(set(labels)) == len(labels) == 8 + 4 + 3 + 12
        for batch in found:
            assert len({label // 100 for label in batch}) == 1

    def test_epochs_and_seeds_differ_and_repeat(self):
        def run(seed, epoch):
            return self.labels(self.make(seed).epoch(epoch))

        assert run(0, 0) == run(0, 0)
        assert run(0, 0) != run(0, 1)
        assert run(0, 0) != run(1, 0)

    def test_an_epoch_goes_on_anywhere(self):
        whole = self.labels(self.make().epoch(3))
        for start in range(len(whole) + 1):
            assert self.labels(self.make().epoch(3, start)) == whole[start:]

    def test_shards_before_the_start_are_not_read(self):
        noted = []
        batches = self.make(noted=noted)
        assert batches.label_dtype == np.int32
        list(batches.epoch(0, start=6))
        assert len(noted) == 1


def test_find_shards_needs_the_task_s_own(place, tmp_path):
    assert augment(place, tmp_path / "aug")[0] == 0
    shards = find_shards(str(tmp_path / "aug"), get_task("SST-2"))
    examples = shards.read(get_task("SST-2"), 2)
    assert len(examples) == shards.rows[2]
    assert set(examples.labels.tolist()) == {0, 1}
    with pytest.raises(UserError, match="'SST-2' instead of 'CoLA'"):
        find_shards(str(tmp_path / "aug"), get_task("CoLA"))
