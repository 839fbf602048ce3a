"""Tests of the metrics; any warning is a failure."""

import math
import subprocess
import sys

import numpy as np
import pytest

from bert_pruning.data.metrics import METRICS
from bert_pruning.data.metrics import compute_metrics
from bert_pruning.data.tasks import TASKS
from bert_pruning.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")


def one_hot(predictions, num_classes=2):
    return np.eye(num_classes)[predictions]


class TestClassification:
    # 3 true and 2 false positives, 1 false and 4 true negatives.
    LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    PREDICTIONS = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])

    def test_accuracy_and_f1(self):
        results = compute_metrics(
            TASKS["MRPC"], self.LABELS, one_hot(self.PREDICTIONS)
        )
        assert results == {
            "eval_accuracy": pytest.approx(0.7),
            "eval_f1": pytest.approx(6 / 9),
        }

    def test_matthews(self):
        results = compute_metrics(
            TASKS["CoLA"], self.LABELS, one_hot(self.PREDICTIONS)
        )
        expected = (3 * 4 - 2 * 1) / math.sqrt(5 * 4 * 6 * 5)
        assert results["eval_mcc"] == pytest.approx(expected)

    def test_three_classes(self):
        labels = np.array([0, 1, 2, 2])
        results = compute_metrics(TASKS["MNLI"], labels, one_hot(labels, 3))
        assert results == {"eval_accuracy": 1.0}

    def test_f1_is_that_of_class_one(self):
        results = compute_metrics(
            TASKS["QQP"], 1 - self.LABELS, one_hot(1 - self.PREDICTIONS)
        )
        assert results["eval_f1"] == pytest.approx(8 / 11)

    @pytest.mark.parametrize("prediction", [0, 1])
    def test_constant_predictions_have_matthews_0(self, prediction):
        logits = one_hot(np.full(10, prediction))
        results = compute_metrics(TASKS["CoLA"], self.LABELS, logits)
        assert results["eval_mcc"] == 0.0

    @pytest.mark.parametrize("label, prediction", [(0, 0), (1, 0), (0, 1)])
    def test_f1_without_true_positives_is_0(self, label, prediction):
        logits = one_hot(np.full(10, prediction))
        results = compute_metrics(TASKS["MRPC"], np.full(10, label), logits)
        assert results["eval_f1"] == 0.0


class TestRegression:
    def test_equals_the_definitions_over_the_whole_set(self):
        labels = np.array([0.0, 1.0, 2.0, 5.0])
        predictions = np.array([[0.0], [2.0], [1.0], [3.0]])
        results = compute_metrics(TASKS["STS-B"], labels, predictions)
        assert results["eval_spearman"] == pytest.approx(0.8)
        expected = np.corrcoef(labels, predictions[:, 0])[0, 1]
        assert results["eval_pearson"] == pytest.approx(expected)

    def test_ties_have_average_ranks(self):
        results = compute_metrics(
            TASKS["STS-B"], np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])
        )
        assert results["eval_spearman"] == pytest.approx(
            np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1]
        )

    def test_order_of_the_rows_does_not_matter(self):
        """The TF1 code ranked within batches of eight."""
        random = np.random.default_rng(0)
        labels = random.uniform(0, 5, 200)
        predictions = labels + random.normal(0, 1, 200)
        order = random.permutation(200)
        whole = compute_metrics(TASKS["STS-B"], labels, predictions)
        mixed = compute_metrics(
            TASKS["STS-B"], labels[order], predictions[order]
        )
        assert mixed == pytest.approx(whole)
        assert whole["eval_spearman"] > 0.75

    @pytest.mark.parametrize(
        "labels, predictions",
        [([1, 2, 3], [2, 2, 2]), ([2, 2, 2], [1, 2, 3]), ([1], [1])],
    )
    def test_constants_have_correlation_0(self, labels, predictions):
        results = compute_metrics(TASKS["STS-B"], labels, predictions)
        assert results == {"eval_pearson": 0.0, "eval_spearman": 0.0}

    def test_nearly_constant_predictions_give_no_warning(self):
        predictions = np.float32([2.5, 2.5, 2.5000002, 2.5])
        results = compute_metrics(TASKS["STS-B"], [1, 2, 4, 3], predictions)
        assert np.isfinite(list(results.values())).all()
        predictions = 1e8 + np.array([0, 1e-7, 2e-6, 0])
        results = compute_metrics(TASKS["STS-B"], [1, 2, 4, 3], predictions)
        assert np.isfinite(list(results.values())).all()


class TestBadInput:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_logits_that_are_not_finite(self, bad):
        logits = one_hot(np.array([0, 1, 1]))
        logits[1, 0] = bad
        with pytest.raises(UserError, match="1 of 3 .* first at example 1"):
            compute_metrics(TASKS["RTE"], np.array([0, 1, 1]), logits)

    @pytest.mark.parametrize("shape", [(3, 3), (2, 2), (3,), (3, 2, 1)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"Expected logits \[3, 2\]"):
            compute_metrics(TASKS["RTE"], np.zeros(3), np.zeros(shape))

    def test_no_examples(self):
        with pytest.raises(UserError, match="no examples"):
            compute_metrics(TASKS["RTE"], np.zeros(0), np.zeros((0, 2)))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_tasks_metrics_are_known(task):
    labels = np.arange(6) % task.num_outputs
    logits = np.random.default_rng(0).normal(size=(6, task.num_outputs))
    results = compute_metrics(task, labels, logits)
    assert set(results) == set(task.metrics) <= set(METRICS)
    assert task.primary_metric in results
    assert all(type(value) is float for value in results.values())


def test_needs_no_tensorflow():
    code = (
        "import sys, bert_pruning.data.metrics, bert_pruning.data.pipeline, "
        "bert_pruning.data.tasks; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
