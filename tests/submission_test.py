"""Tests of the GLUE submission files."""

import numpy as np
import pytest
from absl import logging

from bert_pruning.data.reading import read_examples
from bert_pruning.data.tasks import TASKS
from bert_pruning.data.tasks import custom_task
from bert_pruning.delivery.submission import check_submission
from bert_pruning.delivery.submission import write_submission
from bert_pruning.errors import UserError

# The file names and the spellings that gluebenchmark.com asks for.
FORMAT = {
    ("CoLA", "test"): ("CoLA.tsv", {"0", "1"}),
    ("SST-2", "test"): ("SST-2.tsv", {"0", "1"}),
    ("MRPC", "test"): ("MRPC.tsv", {"0", "1"}),
    ("QQP", "test"): ("QQP.tsv", {"0", "1"}),
    ("MNLI", "test"): (
        "MNLI-m.tsv",
        {"entailment", "neutral", "contradiction"},
    ),
    ("MNLI", "test_mismatched"): (
        "MNLI-mm.tsv",
        {"entailment", "neutral", "contradiction"},
    ),
    ("QNLI", "test"): ("QNLI.tsv", {"entailment", "not_entailment"}),
    ("RTE", "test"): ("RTE.tsv", {"entailment", "not_entailment"}),
    ("WNLI", "test"): ("WNLI.tsv", {"0", "1"}),
    ("AX", "test"): ("AX.tsv", {"entailment", "neutral", "contradiction"}),
}


def read(path):
    with open(path, newline="") as file:
        text = file.read()
    assert text.endswith("\n")
    return [line.split("\t") for line in text[:-1].split("\n")]


@pytest.mark.parametrize("name, split", FORMAT, ids="{0[0]} {0[1]}".format)
def test_classes(tmp_path, name, split):
    task = TASKS[name]
    num_rows = 2 * task.num_outputs
    logits = np.eye(task.num_outputs)[np.arange(num_rows) % task.num_outputs]
    ids = [str(row) for row in range(num_rows)]
    path = write_submission(task, split, logits, ids, str(tmp_path))
    file, labels = FORMAT[name, split]
    assert path == str(tmp_path / file)
    header, *rows = read(path)
    assert header == ["index", "prediction"]
    assert [row[0] for row in rows] == ids
    assert {row[1] for row in rows} == labels
    assert [row[1] for row in rows] == list(task.labels) * 2


def test_every_test_split_of_glue_is_covered():
    splits = {
        (task.name, split)
        for task in TASKS.values()
        for split in task.splits
        if split.startswith("test")
    }
    assert splits == {*FORMAT, ("STS-B", "test")}


def test_scores_are_cut_and_have_three_decimals(tmp_path):
    logits = np.float32([[-0.2], [0.0], [3.14159], [5.5]])
    path = write_submission(TASKS["STS-B"], "test", logits, "0123", tmp_path)
    assert path == str(tmp_path / "STS-B.tsv")
    predictions = [row[1] for row in read(path)[1:]]
    assert predictions == ["0.000", "0.000", "3.142", "5.000"]


def test_custom_scores_are_not_cut(tmp_path):
    (tmp_path / "train.csv").write_text("text_a,label\na,-1.5\nb,9\n")
    task = custom_task(str(tmp_path))
    path = write_submission(task, "test", [[-3.0], [12.0]], "01", tmp_path)
    assert path == str(tmp_path / "custom-test.tsv")
    assert [row[1] for row in read(path)[1:]] == ["-3.000", "12.000"]


def test_dev_predictions_do_not_look_like_a_submission(tmp_path):
    path = write_submission(TASKS["RTE"], "dev", [[0, 1]], "0", tmp_path)
    assert path == str(tmp_path / "RTE-dev.tsv")


def test_other_numbers_of_rows_than_glue_expects(tmp_path, caplog):
    logging.get_absl_logger().propagate = True
    write_submission(TASKS["RTE"], "test", [[0, 1]], "0", tmp_path)
    assert "GLUE expects 3000 predictions for RTE, not 1" in caplog.text


@pytest.mark.parametrize("name", ["CoLA", "SST-2", "MRPC", "STS-B"])
def test_real_test_files_have_the_expected_rows(
    glue_dir, tmp_path, name, caplog
):
    logging.get_absl_logger().propagate = True
    task = TASKS[name]
    examples = read_examples(task, glue_dir, "test")
    logits = np.zeros((len(examples), task.num_outputs))
    path = write_submission(task, "test", logits, examples.ids, tmp_path)
    rows = read(path)[1:]
    assert [row[0] for row in rows] == [str(i) for i in range(len(rows))]
    assert len(rows) == task.splits["test"].num_rows
    assert "GLUE expects" not in caplog.text


@pytest.mark.parametrize(
    "logits, ids", [(np.zeros((2, 2)), "012"), (np.zeros((2, 3)), "01")]
)
def test_logits_that_do_not_fit_the_ids(tmp_path, logits, ids):
    with pytest.raises(ValueError, match="Expected 2 logits for each of"):
        write_submission(TASKS["RTE"], "test", logits, ids, tmp_path)


def test_ids_that_repeat_are_named(tmp_path):
    message = "RTE has the id '7' 2 times in column 'index'"
    with pytest.raises(UserError, match=message):
        check_submission(TASKS["RTE"], "test", "0717", tmp_path)
    with pytest.raises(UserError, match=message):
        write_submission(TASKS["RTE"], "test", [[0, 1]] * 3, "077", tmp_path)


def test_predictions_that_are_not_finite(tmp_path):
    with pytest.raises(UserError, match="RTE is not finite"):
        write_submission(TASKS["RTE"], "test", [[0, np.nan]], "0", tmp_path)
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "predictions"
    with pytest.raises(UserError, match=f"Cannot write to {folder}"):
        check_submission(TASKS["RTE"], "test", "0", folder)
    with pytest.raises(UserError, match=f"Cannot write to {folder}"):
        write_submission(TASKS["RTE"], "test", [[0, 1]], "0", folder)


def test_folder_that_may_not_be_written_to(tmp_path, read_only):
    with pytest.raises(UserError, match=f"Cannot write to {tmp_path}"):
        check_submission(TASKS["RTE"], "test", "0", tmp_path)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_submission(TASKS["RTE"], "test", [[0, 1]], "0", tmp_path)

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UserError, match="No space left"):
        write_submission(TASKS["RTE"], "test", [[1, 0]], "0", tmp_path)
    assert read(tmp_path / "RTE.tsv")[1] == ["0", "not_entailment"]
