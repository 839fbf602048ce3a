"""Scores are over the whole set, each row with its own prediction."""

import numpy as np
import pytest
import scipy.special
import tf_keras as keras
import tiny_runs

from bert_pruning.data.pipeline import EncodedDataset
from bert_pruning.data.tasks import get_task
from bert_pruning.modeling import bert
from bert_pruning.training import evaluation
from bert_pruning.training.evaluation import Evaluator

pytestmark = pytest.mark.usefixtures("eagerly")


def make_dataset(rows=11):
    random = np.random.default_rng(0)
    lengths = random.integers(2, 12, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return EncodedDataset(
        token_ids=random.integers(5, 20, offsets[-1]).astype(np.int32),
        offsets=offsets,
        type_boundaries=(lengths // 2).astype(np.int32),
        labels=(np.arange(rows) % 2).astype(np.int32),
        max_seq_length=16,
    )


def make_model(num_outputs=2):
    keras.utils.set_random_seed(0)
    model = bert.build_model(
        tiny_runs.tiny_config(initializer_range=0.5), num_outputs
    )
    return model


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_each_row_has_its_own_prediction_whatever_the_batches(batch_size):
    dataset, model = make_dataset(), make_model()
    logits = Evaluator(model).predict(dataset, batch_size)
    assert logits.shape == (11, 2)
    assert logits.dtype == np.float32
    for row in range(11):
        batch = dataset.batch(np.array([row]))
        del batch["label"]
        np.testing.assert_allclose(
            logits[row], model(batch)["logits"][0], rtol=1e-4, atol=1e-5
        )


def test_dropout_is_off():
    dataset, model = make_dataset(), make_model()
    evaluator = Evaluator(model)
    np.testing.assert_array_equal(
        evaluator.predict(dataset), evaluator.predict(dataset)
    )


def test_the_weights_of_the_moment_are_scored():
    dataset, model = make_dataset(), make_model()
    evaluator = Evaluator(model)
    before = evaluator.predict(dataset)
    bias = bert.named_variables(model)["classifier/bias"]
    bias.assign_add([1.0, 0.0])
    after = evaluator.predict(dataset)
    np.testing.assert_allclose(after - before, [[1.0, 0.0]] * 11, atol=1e-5)


def test_the_loss_is_the_mean_over_examples_not_over_batches():
    task = get_task("SST-2")
    random = np.random.default_rng(0)
    logits = random.standard_normal((9, 2))
    labels = random.integers(0, 2, 9)
    logs = scipy.special.log_softmax(logits, axis=-1)
    results = evaluation.score(task, labels, logits)
    assert results.keys() == {"eval_accuracy", "eval_loss"}
    assert results["eval_loss"] == pytest.approx(
        -np.mean([logs[i, label] for i, label in enumerate(labels)])
    )
    assert results["eval_accuracy"] == np.mean(logits.argmax(-1) == labels)


def test_huge_logits_have_a_finite_loss():
    results = evaluation.score(
        get_task("SST-2"), np.array([0]), np.float32([[-1e4, 1e4]])
    )
    assert results["eval_loss"] == pytest.approx(2e4)


def test_the_loss_of_a_regression_is_the_squared_error():
    labels = np.array([1.0, 2.0, 4.0])
    logits = np.array([[1.5], [2.0], [3.0]])
    results = evaluation.score(get_task("STS-B"), labels, logits)
    assert results["eval_loss"] == pytest.approx((0.25 + 0 + 1) / 3)
    assert results["eval_spearman"] == pytest.approx(1.0)


def test_evaluate_scores_what_it_predicts():
    dataset, evaluator = make_dataset(), Evaluator(make_model())
    task = get_task("CoLA")
    assert evaluator.evaluate(task, dataset, 4) == pytest.approx(
        evaluation.score(task, dataset.labels, evaluator.predict(dataset)),
        rel=1e-5,
    )


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("SST-2", [0, 1, 1, 1], 0.75),
        ("MNLI", [2, 1, 2, 0, 2], 0.6),
        # Of a constant, correlations are 0.
        ("CoLA", [0, 1, 1, 1], 0.0),
        ("STS-B", [0.0, 1.0, 5.0], 0.0),
    ],
)
def test_chance_is_the_commonest_answer(name, labels, expected):
    level = evaluation.chance_level(get_task(name), np.array(labels))
    assert level == pytest.approx(expected)
