"""Tests of turning a task's files into texts and labels."""

import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from bert_pruning.data.reading import read_examples
from bert_pruning.data.tasks import TASKS
from bert_pruning.data.tasks import custom_task
from bert_pruning.data.tasks import get_task
from bert_pruning.errors import UserError

# The headers of the official files.
HEADERS = {
    ("SST-2", "dev.tsv"): "sentence label",
    ("SST-2", "test.tsv"): "index sentence",
    ("CoLA", "test.tsv"): "index sentence",
    ("QQP", "dev.tsv"): "id qid1 qid2 question1 question2 is_duplicate",
    ("QQP", "test.tsv"): "id question1 question2",
    ("MNLI", "dev_matched.tsv"): (
        "index promptID pairID genre sentence1_binary_parse "
        "sentence2_binary_parse sentence1_parse sentence2_parse sentence1 "
        "sentence2 label1 label2 label3 label4 label5 gold_label"
    ),
    ("MNLI", "test_mismatched.tsv"): (
        "index promptID pairID genre sentence1_binary_parse "
        "sentence2_binary_parse sentence1_parse sentence2_parse sentence1 "
        "sentence2"
    ),
    ("QNLI", "dev.tsv"): "index question sentence label",
    ("RTE", "dev.tsv"): "index sentence1 sentence2 label",
    ("WNLI", "dev.tsv"): "index sentence1 sentence2 label",
    ("diagnostic", "diagnostic.tsv"): "index sentence1 sentence2",
}


@pytest.fixture
def write(tmp_path):
    """Writes an official file: one dict of fields per row."""

    def write_file(folder, file, *rows):
        header = HEADERS[folder, file].split()
        lines = ["\t".join(header)]
        for row in rows:
            lines.append("\t".join(row.get(name, "x") for name in header))
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / file).write_text("\n".join(lines) + "\n")
        return str(tmp_path)

    return write_file


class TestOfficialColumns:
    def test_cola_has_no_header(self, tmp_path):
        (tmp_path / "dev.tsv").write_text("gj04\t0\t*\tThe dog.\n")
        examples = read_examples(TASKS["CoLA"], str(tmp_path), "dev")
        assert examples.text_a == ["The dog."]
        assert examples.text_b is None
        assert examples.labels.tolist() == [0]
        assert examples.ids == ["0"]

    def test_test_files_have_an_index_and_no_labels(self, write):
        path = write("SST-2", "test.tsv", {"index": "7", "sentence": "fine"})
        examples = read_examples(TASKS["SST-2"], path, "test")
        assert examples.text_a == ["fine"]
        assert examples.labels is None
        assert examples.ids == ["7"]

    def test_qqp_test(self, write):
        row = {"id": "3", "question1": "why", "question2": "how"}
        path = write("QQP", "test.tsv", row)
        examples = read_examples(TASKS["QQP"], path, "test")
        assert examples.text_a == ["why"]
        assert examples.text_b == ["how"]
        assert examples.ids == ["3"]

    @pytest.mark.parametrize(
        "label, expected",
        [("contradiction", 0), ("entailment", 1), ("neutral", 2)],
    )
    def test_mnli_dev(self, write, label, expected):
        row = {"sentence1": "p", "sentence2": "h", "gold_label": label}
        path = write("MNLI", "dev_matched.tsv", row)
        examples = read_examples(TASKS["MNLI"], path, "dev")
        assert examples.text_a == ["p"]
        assert examples.text_b == ["h"]
        assert examples.labels.tolist() == [expected]

    def test_mnli_mismatched_test(self, write):
        row = {"index": "5", "sentence1": "p", "sentence2": "h"}
        path = write("MNLI", "test_mismatched.tsv", row)
        examples = read_examples(TASKS["MNLI"], path, "test_mismatched")
        assert (examples.text_a, examples.text_b) == (["p"], ["h"])
        assert examples.ids == ["5"]

    @pytest.mark.parametrize(
        "name, first, second",
        [
            ("QNLI", "question", "sentence"),
            ("RTE", "sentence1", "sentence2"),
        ],
    )
    def test_two_way_entailment(self, write, name, first, second):
        rows = [
            {first: "a", second: "b", "label": "not_entailment"},
            {first: "c", second: "d", "label": "entailment"},
        ]
        path = write(name, "dev.tsv", *rows)
        examples = read_examples(TASKS[name], path, "dev")
        assert (examples.text_a, examples.text_b) == (["a", "c"], ["b", "d"])
        assert examples.labels.tolist() == [1, 0]
        assert examples.labels.dtype == np.int32

    def test_wnli(self, write):
        path = write("WNLI", "dev.tsv", {"label": "1"})
        examples = read_examples(TASKS["WNLI"], path, "dev")
        assert examples.labels.tolist() == [1]

    def test_diagnostic(self, write):
        row = {"index": "0", "sentence1": "p", "sentence2": "h"}
        path = write("diagnostic", "diagnostic.tsv", row)
        examples = read_examples(get_task("ax"), path, "test")
        assert (examples.text_a, examples.text_b) == (["p"], ["h"])


class TestBadRows:
    @pytest.fixture
    def read(self, tmp_path):
        def read_text(task, text, split="dev"):
            file = TASKS[task].splits[split].file
            (tmp_path / file).write_text(text)
            return read_examples(TASKS[task], str(tmp_path), split)

        return read_text

    def test_unknown_label_names_file_line_and_labels(self, read):
        text = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n"
        with pytest.raises(UserError) as error:
            read("RTE", text)
        assert "dev.tsv:2: expected one of entailment, not_entailment" in str(
            error.value
        )
        assert "Received: 'maybe'" in str(error.value)

    @pytest.mark.parametrize("score", ["", "x", "nan", "inf", "5.001", "-0.1"])
    def test_score_that_is_none_or_out_of_range(self, read, score):
        text = f"sentence1\tsentence2\tscore\na\tb\t5.0\na\tb\t{score}\n"
        with pytest.raises(UserError, match=r"dev\.tsv:3.*from 0 to 5"):
            read("STS-B", text)

    def test_no_text(self, read):
        with pytest.raises(UserError, match=r"dev\.tsv:3: no text"):
            read("SST-2", "sentence\tlabel\nfine\t1\n \t1\n")

    def test_half_a_pair_is_kept_with_a_warning(self, read, caplog):
        logging.get_absl_logger().propagate = True
        text = "index\tsentence1\tsentence2\tlabel\n0\ta\t\tentailment\n"
        assert read("RTE", text).text_b == [""]
        assert "1 pairs lack one of their texts, the first at line 2" in (
            caplog.text
        )

    def test_wrong_number_of_fields(self, read):
        with pytest.raises(UserError, match=r"dev\.tsv:2: expected 4 fields"):
            read("CoLA", "a\t1\t\tThe dog.\na\t1\tThe dog.\n")

    def test_short_qqp_rows_are_skipped_counted_and_reported(
        self, read, caplog
    ):
        logging.get_absl_logger().propagate = True
        text = (
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
            "1\t2\t3\twhy\thow\t1\n"
            "half a question\n"
            "4\t5\t6\twho\t\t0\n"
        )
        examples = read("QQP", text)
        assert examples.text_a == ["why", "who"]
        assert examples.labels.tolist() == [1, 0]
        assert examples.skipped == 1
        assert "skipped 1 malformed rows, the first at line 3" in caplog.text

    def test_short_rows_of_the_qqp_test_file_are_not_skipped(self, read):
        text = "id\tquestion1\tquestion2\n0\twhy\thow\n1\twhy\n"
        with pytest.raises(UserError, match=r"test\.tsv:3"):
            read("QQP", text, "test")

    def test_missing_split(self, tmp_path):
        with pytest.raises(UserError, match="AX has no split 'dev'.*test"):
            read_examples(TASKS["AX"], str(tmp_path), "dev")


class TestCustom:
    def test_test_file_with_and_without_labels(self, tmp_path):
        (tmp_path / "train.csv").write_text("text_a,label\na,yes\nb,no\n")
        task = custom_task(str(tmp_path))
        (tmp_path / "test.csv").write_text("text_a\nc\n")
        assert read_examples(task, str(tmp_path), "test").labels is None
        (tmp_path / "test.csv").write_text("text_a,label\nc,yes\n")
        labels = read_examples(task, str(tmp_path), "test").labels
        assert labels.tolist() == [1]

    def test_dev_file_needs_labels(self, tmp_path):
        (tmp_path / "train.csv").write_text("text_a,label\na,yes\nb,no\n")
        (tmp_path / "dev.csv").write_text("text_a\nc\n")
        task = custom_task(str(tmp_path))
        with pytest.raises(UserError, match="no column 'label'"):
            read_examples(task, str(tmp_path), "dev")


class TestTfds:
    @pytest.fixture
    def rows(self):
        """What TFDS would read; mock_data keeps its builders and features."""
        rows = {
            "split": "validation",
            "sentence1": ["a", "b", "ç"],
            "sentence2": ["d", "e", "f"],
            "label": [1, 0, 1],
            "idx": [2, 0, 1],
        }

        def as_dataset(builder, *args, split, **kwargs):
            assert split == rows.pop("split")
            return tf.data.Dataset.from_tensor_slices(dict(rows))

        with tfds.testing.mock_data(as_dataset_fn=as_dataset):
            yield rows

    def test_rows_are_put_back_in_the_order_of_the_file(self, rows):
        examples = read_examples(TASKS["MRPC"], "tfds", "dev")
        assert examples.text_a == ["b", "ç", "a"]
        assert examples.text_b == ["e", "f", "d"]
        assert examples.labels.tolist() == [0, 1, 1]
        assert examples.ids == ["0", "1", "2"]

    def test_labels_are_mapped_by_name(self, rows):
        rows["split"] = "validation_mismatched"
        # TFDS counts MNLI's: entailment, neutral, contradiction.
        rows["premise"], rows["hypothesis"] = "a b c".split(), "d e f".split()
        rows["label"], rows["idx"] = [0, 1, 2], [0, 1, 2]
        examples = read_examples(TASKS["MNLI"], "tfds", "dev_mismatched")
        names = [TASKS["MNLI"].labels[label] for label in examples.labels]
        assert names == ["entailment", "neutral", "contradiction"]

    @pytest.mark.parametrize(
        "name", [task.name for task in TASKS.values() if task.tfds]
    )
    def test_every_task_knows_its_features_and_labels(self, name):
        task = TASKS[name]
        builder = tfds.builder(f"glue/{task.tfds[0]}")
        features = set(builder.info.features)
        assert features == {*task.tfds[1:], "label", "idx"}
        for label in getattr(builder.info.features["label"], "names", ()):
            assert task.label_id(label) is not None

    def test_scores(self, rows):
        rows["label"], rows["split"] = [0.5, 5.0, 2.0], "train"
        labels = read_examples(TASKS["STS-B"], "tfds", "train").labels
        assert labels.tolist() == [5.0, 2.0, 0.5]
        assert labels.dtype == np.float32

    def test_test_labels_are_none(self, rows):
        rows["label"], rows["split"] = [-1, -1, -1], "test"
        assert read_examples(TASKS["RTE"], "tfds", "test").labels is None

    def test_task_that_tfds_lacks(self):
        with pytest.raises(UserError, match="MRPC-MSR is not in TensorFlow"):
            read_examples(TASKS["MRPC-MSR"], "tfds", "dev")

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
        with pytest.raises(UserError, match="pip install tensorflow-datasets"):
            read_examples(TASKS["RTE"], "tfds", "dev")

    def test_without_a_network(self, monkeypatch):
        def fail(self, **kwargs):
            raise ConnectionError("no route")

        monkeypatch.setattr(
            tfds.core.DatasetBuilder, "download_and_prepare", fail
        )
        with pytest.raises(UserError, match="glue/rte: no route"):
            read_examples(TASKS["RTE"], "tfds", "dev")


class TestRealFiles:
    # Some mirrors of MRPC have lost one of its 3,668 training rows.
    COUNTS = (
        ("CoLA", "train", {8551}),
        ("CoLA", "dev", {1043}),
        ("CoLA", "test", {1063}),
        ("SST-2", "train", {67349}),
        ("SST-2", "dev", {872}),
        ("SST-2", "test", {1821}),
        ("MRPC", "train", {3667, 3668}),
        ("MRPC", "dev", {408}),
        ("MRPC", "test", {1725}),
        ("MRPC-MSR", "train", {4076}),
        ("MRPC-MSR", "dev", {1725}),
        ("STS-B", "train", {5749}),
        ("STS-B", "dev", {1500}),
        ("STS-B", "test", {1379}),
    )

    @pytest.mark.parametrize("name, split, counts", COUNTS)
    def test_number_of_rows(self, glue_dir, name, split, counts):
        task = TASKS[name]
        examples = read_examples(task, glue_dir, split)
        assert len(examples) in counts
        assert len(set(examples.ids)) == len(examples)
        assert examples.skipped == 0
        if split == "test":
            assert examples.labels is None
            assert len(examples) == task.splits["test"].num_rows
        else:
            assert len(examples.labels) == len(examples)

    def test_texts_are_verbatim(self, glue_dir):
        examples = read_examples(TASKS["MRPC"], glue_dir, "dev")
        assert examples.text_b[0] == (
            '" The foodservice pie business does not fit our long-term growth '
            "strategy ."
        )
        examples = read_examples(TASKS["SST-2"], glue_dir, "dev")
        assert examples.text_a[0].endswith("affecting journey . ")

    def test_msr_test_labels_are_those_of_the_original_file(self, glue_dir):
        examples = read_examples(TASKS["MRPC-MSR"], glue_dir, "dev")
        assert examples.labels.sum() == 1147  # 66.5 % are paraphrases.
