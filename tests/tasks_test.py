"""Tests of the tasks' rows, their names, and a person's own task."""

import json

import pytest
from absl import logging

from bert_pruning.data.tasks import TASKS
from bert_pruning.data.tasks import Task
from bert_pruning.data.tasks import custom_task
from bert_pruning.data.tasks import get_task
from bert_pruning.errors import UserError


class TestNames:
    @pytest.mark.parametrize(
        "name, expected",
        [
            ("STS-B", "STS-B"),
            ("stsb", "STS-B"),
            ("sts-b", "STS-B"),
            ("Sts_B", "STS-B"),
            ("sst2", "SST-2"),
            ("cola", "CoLA"),
            ("mrpc", "MRPC"),
            ("mrpc-msr", "MRPC-MSR"),
            ("MNLI", "MNLI"),
            ("ax", "AX"),
        ],
    )
    def test_case_and_dashes_do_not_matter(self, name, expected):
        assert get_task(name) is TASKS[expected]

    def test_typo_of_the_tf1_readme(self, caplog):
        logging.get_absl_logger().propagate = True
        assert get_task("SST-B").name == "STS-B"
        assert "'SST-B' for STS-B" in caplog.text

    @pytest.mark.parametrize("name", ["sst", "", "MNLI-mm"])
    def test_unknown_name_lists_the_tasks(self, name):
        with pytest.raises(UserError) as error:
            get_task(name)
        assert all(task in str(error.value) for task in TASKS)
        assert f"Received: --task_name={name}" in str(error.value)


class TestRows:
    def test_label_order(self):
        for name in ("MNLI", "AX"):
            assert TASKS[name].labels == (
                "contradiction",
                "entailment",
                "neutral",
            )
        for name in ("QNLI", "RTE"):
            assert TASKS[name].labels == ("entailment", "not_entailment")
        for name in ("CoLA", "SST-2", "MRPC", "QQP", "WNLI"):
            assert TASKS[name].labels == ("0", "1")
        for task in TASKS.values():
            turned = task.labels[::-1] if task.name in ("QNLI", "RTE") else ()
            assert task.tf1_labels == turned

    @pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
    def test_rows_are_consistent(self, task):
        assert task.primary_metric in task.metrics
        assert len(task.label_names) in (0, len(task.labels))
        assert task.is_regression == (task.name == "STS-B")
        assert task.num_outputs == (len(task.labels) or 1)
        for name, split in task.splits.items():
            assert bool(split.label) != name.startswith("test")
            assert bool(split.submission) == name.startswith("test")

    def test_labels_by_any_spelling(self):
        assert TASKS["SST-2"].label_id("1") == 1
        assert TASKS["SST-2"].label_id("positive") == 1
        assert TASKS["WNLI"].label_id("not_entailment") == 0
        assert TASKS["RTE"].label_id("not_entailment") == 1
        assert TASKS["RTE"].label_id("LABEL_0") is None

    def test_models_that_serve_another_task(self):
        assert TASKS["AX"].model_task == "MNLI"
        assert TASKS["MRPC-MSR"].model_task == "MRPC"
        assert TASKS["RTE"].model_task == "RTE"

    @pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
    def test_json_and_back(self, task):
        assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task

    @pytest.mark.parametrize(
        "change",
        [
            lambda values: values.update(colour="red"),
            lambda values: values.pop("name"),
            lambda values: values.pop("splits"),
            lambda values: values.update(splits=["dev"]),
            lambda values: values["splits"]["dev"].update(colour="red"),
        ],
    )
    def test_broken_description(self, change):
        values = TASKS["RTE"].to_dict()
        change(values)
        with pytest.raises(UserError, match="does not describe a task"):
            Task.from_dict(values)


class TestCustom:
    @pytest.fixture
    def make(self, tmp_path):
        def make_task(labels, name="train.csv", **options):
            separator = "," if name.endswith(".csv") else "\t"
            lines = [f"{i}{separator}{label}" for i, label in enumerate(labels)]
            header = f"text_a{separator}label"
            (tmp_path / name).write_text("\n".join([header, *lines]))
            return custom_task(str(tmp_path), **options)

        return make_task

    @pytest.mark.parametrize("name", ["train.csv", "train.tsv"])
    def test_words_are_classes_in_sorted_order(self, make, name):
        task = make(["no", "yes", "no", "maybe"], name)
        assert task.labels == ("maybe", "no", "yes")
        assert task.metrics == ("eval_accuracy",)

    def test_two_classes_have_f1(self, make):
        task = make(["1", "0"])
        assert task.labels == ("0", "1")
        assert task.metrics == ("eval_accuracy", "eval_f1")
        assert task.primary_metric == "eval_accuracy"

    def test_whole_numbers_are_classes_by_size(self, make):
        assert make(["10", "9", "-1"]).labels == ("-1", "9", "10")

    @pytest.mark.parametrize("labels", [["1.5", "2"], ["1", "2", "3e-1"]])
    def test_fractions_are_scores(self, make, labels):
        task = make(labels)
        assert task.is_regression
        assert task.num_outputs == 1
        assert task.primary_metric == "eval_spearman"

    def test_saying_what_the_labels_are(self, make):
        assert make(["1", "2"], regression=True).is_regression
        task = make(["1.0", "0.0", "1.0"], regression=False)
        assert task.labels == ("0.0", "1.0")

    @pytest.mark.parametrize("odd", ["x", "", "nan"])
    def test_scores_with_something_else_among_them(self, make, odd):
        with pytest.raises(UserError, match=r"train\.csv:4: .*such as 1\.5"):
            make(["1.5", "2", odd])

    def test_one_label_only(self, make):
        with pytest.raises(UserError, match="nothing to learn"):
            make(["1", "1"])

    def test_missing_label(self, make):
        with pytest.raises(UserError, match=r"train\.csv:3: no label"):
            make(["yes", "", "no"])

    def test_as_many_classes_as_rows(self, make):
        with pytest.raises(UserError, match="20 different labels in 20 rows"):
            make(map(str, range(20)))

    def test_unknown_columns(self, make):
        with pytest.raises(UserError, match="no column 'text'.*'text_a'"):
            make(["1", "0"], text_a="text")
        with pytest.raises(UserError, match="no column 'stars'"):
            make(["1", "0"], label="stars")

    @pytest.mark.parametrize("column", ["text_a", "label"])
    def test_a_column_without_a_name(self, make, column):
        with pytest.raises(UserError, match=f"--{column}_column needs the nam"):
            make(["1", "0"], **{column: ""})

    def test_the_advice_is_a_flag(self, make):
        with pytest.raises(UserError, match=r"\(--regression\)"):
            make(map(str, range(20)))
        with pytest.raises(UserError, match=r"\(--noregression\)"):
            make(["1.5", "x"])

    def test_it_is_called_after_its_folder(self, make, tmp_path):
        assert make(["1", "0"]).title == tmp_path.name
        assert TASKS["RTE"].title == "RTE"

    def test_files_by_path(self, tmp_path):
        train, dev = tmp_path / "a.csv", tmp_path / "b.tsv"
        train.write_text("text_a,label\nx,0\ny,1\n")
        files = {"train": str(train), "dev": str(dev)}
        task = custom_task("", files=files)
        assert task.splits["train"].file == str(train)
        assert task.splits["dev"].file == str(dev)

    def test_through_get_task(self, make, tmp_path):
        expected = make(["yes", "no"])
        assert get_task("custom", data_dir=str(tmp_path)) == expected

    def test_json_and_back_without_the_training_file(self, make, tmp_path):
        text = json.dumps(make(["yes", "no"]).to_dict())
        (tmp_path / "train.csv").unlink()
        assert Task.from_dict(json.loads(text)).labels == ("no", "yes")

    def test_missing_training_file(self, tmp_path):
        with pytest.raises(UserError, match=r"train\.tsv or .*train\.csv"):
            custom_task(str(tmp_path))
