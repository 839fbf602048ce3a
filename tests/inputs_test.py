"""What the flags name, loaded: classifiers in the task's order, tasks."""

import dataclasses
import logging

import numpy as np
import pytest
import tiny_runs
from defined_flags import defined_flags

from bert_pruning.commands import assembly
from bert_pruning.commands import flags as shared
from bert_pruning.commands import inputs
from bert_pruning.data.tasks import TASKS
from bert_pruning.data.tasks import custom_task
from bert_pruning.data.tasks import get_task
from bert_pruning.data.tasks import read_examples
from bert_pruning.errors import UserError
from bert_pruning.modeling.checkpoints import load_checkpoint

MNLI = get_task("MNLI")


def checkpoint_of(directory, *labels):
    return load_checkpoint(
        tiny_runs.write_checkpoint(directory, {"labels": labels})
    )


def run_of(directory, task):
    path = tiny_runs.write_checkpoint(directory, task.to_dict())
    return load_checkpoint(path)


def unnamed(directory, task, source):
    """A classifier of a program that does not store its labels."""
    checkpoint = checkpoint_of(directory, *task.labels)
    return dataclasses.replace(checkpoint, source=source, task=None)


@pytest.fixture
def log(caplog, monkeypatch):
    """What the commands say."""
    monkeypatch.setattr(logging.getLogger("bert_pruning"), "propagate", True)
    caplog.set_level(logging.INFO, "bert_pruning")
    return caplog


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
def test_outputs_are_matched_by_their_labels(tmp_path, spell):
    theirs = ("entailment", "contradiction", "neutral")
    checkpoint = checkpoint_of(tmp_path, *map(spell, theirs))
    weights = inputs.classifier_weights(checkpoint, MNLI)
    for index, label in enumerate(MNLI.labels):
        for name in ("classifier/kernel", "classifier/bias"):
            np.testing.assert_array_equal(
                weights[name][..., index],
                checkpoint.weights[name][..., theirs.index(label)],
            )


def test_labels_of_something_else_are_refused(tmp_path):
    checkpoint = checkpoint_of(tmp_path, "joy", "anger", "fear")
    with pytest.raises(UserError, match="joy, anger, fear; MNLI has"):
        inputs.classifier_weights(checkpoint, MNLI)


@pytest.mark.parametrize(
    "name", [task.name for task in TASKS.values() if "train" in task.splits]
)
def test_a_run_of_every_task_can_be_evaluated_and_carried_on(tmp_path, name):
    task = TASKS[name]
    checkpoint = run_of(tmp_path, task)
    with defined_flags("evaluate") as flags:
        flags(["evaluate"])
        assert inputs.evaluation_task(checkpoint) == task
    for weights in (
        inputs.classifier_weights(checkpoint, task),
        assembly._initial_weights(checkpoint, task),
    ):
        np.testing.assert_array_equal(
            weights["classifier/kernel"],
            checkpoint.weights["classifier/kernel"],
        )


@pytest.mark.parametrize(
    ("name", "source", "columns"),
    [
        ("RTE", "official", [1, 0]),
        ("QNLI", "official", [1, 0]),
        ("MNLI", "official", [0, 1, 2]),
        ("RTE", "huggingface", [0, 1]),
    ],
)
def test_outputs_without_names_are_in_the_order_of_their_program(
    tmp_path, log, name, source, columns
):
    checkpoint = unnamed(tmp_path, TASKS[name], source)
    weights = inputs.classifier_weights(checkpoint, TASKS[name])
    for part in ("classifier/kernel", "classifier/bias"):
        np.testing.assert_array_equal(
            weights[part], checkpoint.weights[part][..., columns]
        )
    labels = ", ".join(TASKS[name].labels[column] for column in columns)
    assert f"assuming this order: {labels}" in log.text


class TestOwnData:
    @pytest.fixture
    def make(self, tmp_path):
        """Makes a regression on a folder of one's own."""

        def make_task(folder, text="text", label="score"):
            (tmp_path / folder).mkdir(exist_ok=True)
            rows = [["fine", 0.5], ["poor", 1.5]]
            for split in ("train", "dev"):
                path = tmp_path / folder / f"{split}.tsv"
                tiny_runs.write_table(path, [text, label], rows)
            return custom_task(str(tmp_path / folder), text_a=text, label=label)

        return make_task

    @pytest.fixture
    def evaluated(self):
        """The task that `evaluate` takes by its flags."""

        def evaluation_task(checkpoint, *arguments):
            with defined_flags("evaluate") as flags:
                flags(["evaluate", *arguments])
                return inputs.evaluation_task(checkpoint)

        return evaluation_task

    def test_the_flags_say_what_the_labels_are(self, tmp_path):
        rows = [["fine", 4], ["poor", 2]]
        tiny_runs.write_table(tmp_path / "train.tsv", ["text_a", "label"], rows)
        for given, labels in (
            ([], ("2", "4")),
            (["--noregression"], ("2", "4")),
            (["--regression"], ()),
        ):
            with defined_flags("train") as flags:
                data = f"--data_dir={tmp_path}"
                flags(["train", "--task_name=custom", data, *given])
                assert shared.find_task().labels == labels

    def test_a_classifier_is_kept_for_the_same_data(self, make, tmp_path):
        checkpoint = run_of(tmp_path / "run", make("mine"))
        weights = assembly._initial_weights(checkpoint, make("mine"))
        assert "classifier/kernel" in weights

    @pytest.mark.parametrize(
        "other", [("theirs",), ("mine", "review"), ("mine", "text", "mean")]
    )
    def test_a_classifier_of_other_data_is_not_taken_over(
        self, make, tmp_path, log, other
    ):
        checkpoint = run_of(tmp_path / "run", make("mine"))
        weights = assembly._initial_weights(checkpoint, make(*other))
        assert "classifier/kernel" not in weights
        assert "other data, mine (text, score). A new classifier" in log.text

    def test_runs_that_did_not_keep_the_folder_are_known_by_columns(
        self, make, tmp_path
    ):
        values = make("mine").to_dict()
        for name in ("data_name", "tf1_labels"):
            del values[name]
        path = tiny_runs.write_checkpoint(tmp_path / "run", values)
        checkpoint = load_checkpoint(path)
        assert not inputs.other_data(checkpoint, make("theirs"))
        assert inputs.other_data(checkpoint, make("mine", "review")) == (
            "(text, score)"
        )

    def test_columns_of_the_flags_are_read(self, make, tmp_path, evaluated):
        checkpoint = run_of(tmp_path / "run", make("mine"))
        other = make("other", "review", "stars")
        for task_name in ([], ["--task_name=custom"]):
            task = evaluated(
                checkpoint,
                *("--text_a_column=review", "--label_column=stars"),
                *task_name,
            )
            assert task.splits == other.splits
            assert task.is_regression
            examples = read_examples(task, str(tmp_path / "other"), "dev")
            assert examples.text_a == ["fine", "poor"]
        task = evaluated(checkpoint, "--text_a_column=review")
        assert task.splits["dev"].label == "score"
        assert evaluated(checkpoint).splits == make("mine").splits

    def test_a_run_of_glue_on_ones_own_data(self, tmp_path, evaluated):
        checkpoint = run_of(tmp_path / "run", TASKS["MRPC"])
        task = evaluated(
            checkpoint,
            *("--task_name=custom", "--text_a_column=a", "--text_b_column=b"),
        )
        assert task.labels == TASKS["MRPC"].labels
        assert task.metrics == TASKS["MRPC"].metrics
        inputs.classifier_weights(checkpoint, task)
        for label, fits in (("1", True), ("yes", False)):
            path = tmp_path / "dev.tsv"
            tiny_runs.write_table(
                path, ["a", "b", "label"], [["x", "y", label]]
            )
            if fits:
                assert read_examples(task, str(tmp_path), "dev").labels == [1]
                continue
            with pytest.raises(UserError, match=r"dev\.tsv:2: .*one of 0, 1"):
                read_examples(task, str(tmp_path), "dev")

    def test_what_contradicts_the_run_is_refused(
        self, make, tmp_path, evaluated
    ):
        mrpc = run_of(tmp_path / "mrpc", TASKS["MRPC"])
        mine = run_of(tmp_path / "mine_run", make("mine"))
        for checkpoint, arguments, message in (
            (mrpc, ["--text_a_column=a"], "--text_a_column needs --task_name"),
            (mrpc, ["--task_name=MRPC", "--regression"], "needs --task_name"),
            (mrpc, ["--task_name=custom", "--regression"], "classes.*--reg"),
            (mine, ["--noregression"], "scores.*--noregression"),
            (mine, ["--label_column="], "--label_column needs the name"),
        ):
            with pytest.raises(UserError, match=message):
                evaluated(checkpoint, *arguments)


@pytest.mark.parametrize(
    ("arguments", "gpus", "multiple"),
    [
        ([], [], 1),
        ([], ["a GPU"], 8),
        (["--mixed_precision=bfloat16"], [], 8),
        (["--jit_compile"], ["a GPU"], 32),
    ],
)
def test_padding_is_what_the_device_likes(
    monkeypatch, arguments, gpus, multiple
):
    monkeypatch.setattr(
        assembly.tf.config, "list_physical_devices", lambda kind: gpus
    )
    with defined_flags("train") as flags:
        flags(["train", *arguments])
        assert assembly._pad_multiple() == multiple


def test_gpus_take_memory_as_they_need_it(monkeypatch):
    grown = []
    config = inputs.tf.config
    monkeypatch.setattr(config, "list_physical_devices", lambda kind: [kind])
    monkeypatch.setattr(
        config.experimental, "set_memory_growth", lambda *a: grown.append(a)
    )
    inputs.find_gpus()
    assert grown == [("GPU", True)]
