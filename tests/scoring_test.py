"""Scores from a pass over the data are those of their definition."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tiny_bert
import tiny_runs
from tiny_training import make_dataset

from bert_pruning.compression import surgery
from bert_pruning.compression.structure import Structure
from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.modeling import bert
from bert_pruning.training import scoring
from bert_pruning.training.distillation import build_matches
from bert_pruning.training.optimization import build_optimizer
from bert_pruning.training.step import INPUT_NAMES
from bert_pruning.training.step import DistillationModel

pytestmark = pytest.mark.usefixtures("eagerly")

CONFIG = dataclasses.replace(
    tiny_runs.tiny_config(num_layers=2),
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    classifier_dropout=0.0,
)


def make_batches(rows=10, batch_size=4):
    return TrainBatches(
        make_dataset(CONFIG, rows), batch_size, seed=1, drop_remainder=False
    )


def make_model(config=CONFIG, distill=False, **options):
    student = bert.build_model(config, 2)
    bert.set_weights(student, tiny_bert.random_weights(config, 0, 2))
    teacher, matches = None, ()
    if distill:
        teacher = bert.build_model(config, 2)
        bert.set_weights(teacher, tiny_bert.random_weights(config, 1, 2))
        matches = build_matches(("logits", "hidden"), config, config)
    return DistillationModel(
        student, teacher, matches, 0.0 if distill else 1.0, **options
    )


def tensors(batch):
    return {
        name: tf.constant(array)
        for name, array in batch.items()
        if name in (*INPUT_NAMES, "label")
    }


def loss_of(model, batch):
    """The mean loss of a batch, without dropout."""
    return float(model.losses_of(tensors(batch))["loss"])


@pytest.mark.parametrize("distill", [False, True])
def test_taylor_sums_the_magnitude_of_each_batch_s_gradient(distill):
    model, batches = make_model(distill=distill), make_batches()
    scores = scoring.score_by_taylor(model, CONFIG, batches)
    variables = bert.named_variables(model.student)
    kernel = variables["layer_1_attention_output/kernel"]
    into = variables["layer_0_intermediate/kernel"]
    out = variables["layer_0_output/kernel"]
    totals = [0.0, 0.0, 0.0]
    for batch in batches.epoch(0):
        with tf.GradientTape() as tape:
            loss = model.losses_of(tensors(batch))["loss"]
        gradients = tape.gradient(loss, [kernel, into, out])
        totals = [t + np.abs(g) for t, g in zip(totals, gradients, strict=True)]
    parts = [
        np.abs(variable.numpy()) * total
        for variable, total in zip((kernel, into, out), totals, strict=True)
    ]
    size = CONFIG.head_size
    expected = parts[0].reshape(-1, size, CONFIG.hidden_size).sum((1, 2))
    np.testing.assert_allclose(scores.heads[1], expected, rtol=1e-5)
    expected = parts[1].sum(0) + parts[2].sum(1)
    np.testing.assert_allclose(scores.neurons[0], expected, rtol=1e-5)


def test_a_pass_leaves_the_weights_alone_and_repeats():
    config = dataclasses.replace(CONFIG, hidden_dropout_prob=0.3)
    found = []
    for _ in range(2):
        model = make_model(config)
        before = bert.get_weights(model.student)
        found.append(scoring.score_by_taylor(model, config, make_batches()))
        for name, array in bert.get_weights(model.student).items():
            np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(found[0].neurons[1], found[1].neurons[1])
    without = scoring.score_by_taylor(make_model(), CONFIG, make_batches())
    assert not np.allclose(found[0].neurons[1], without.neurons[1])


def test_sensitivity_is_the_slope_of_a_gate():
    """Against finite differences: the gate scales what leaves the unit."""
    model, batches = make_model(), make_batches(batch_size=1)
    scores = scoring.score_by_sensitivity(model, CONFIG, batches)
    variables = bert.named_variables(model.student)
    size, step = CONFIG.head_size, 1e-2

    def slope(name, rows):
        kernel = variables[name]
        whole, total = kernel.numpy(), 0.0
        for batch in batches.epoch(0):
            losses = []
            for gate in (1 - step, 1 + step):
                scaled = whole.copy()
                scaled[rows] *= gate
                kernel.assign(scaled)
                losses.append(loss_of(model, batch))
            kernel.assign(whole)
            total += abs(losses[1] - losses[0]) / (2 * step)
        return total

    for head in range(CONFIG.num_heads[0]):
        rows = slice(head * size, (head + 1) * size)
        expected = slope("layer_1_attention_output/kernel", rows)
        assert scores.heads[1][head] == pytest.approx(expected, rel=0.02)
    for neuron in (0, 7):
        expected = slope("layer_0_output/kernel", slice(neuron, neuron + 1))
        assert scores.neurons[0][neuron] == pytest.approx(
            expected, rel=0.02, abs=1e-4
        )


def test_a_block_s_sensitivity_is_the_slope_of_its_gate():
    model, batches = make_model(), make_batches(batch_size=1)
    scores = scoring.score_by_sensitivity(model, CONFIG, batches)
    variables = bert.named_variables(model.student)
    parts = [variables[f"layer_1_output/{x}"] for x in ("kernel", "bias")]
    whole, step, total = [p.numpy() for p in parts], 1e-2, 0.0
    for batch in batches.epoch(0):
        losses = []
        for gate in (1 - step, 1 + step):
            for variable, array in zip(parts, whole, strict=True):
                variable.assign(gate * array)
            losses.append(loss_of(model, batch))
        for variable, array in zip(parts, whole, strict=True):
            variable.assign(array)
        total += abs(losses[1] - losses[0]) / (2 * step)
    assert scores.blocks[1] == pytest.approx(total, rel=0.02)


def test_a_gate_for_each_token_lets_none_cancel():
    examples, tokens = (
        scoring.score_by_sensitivity(
            make_model(), CONFIG, make_batches(), sum_over=unit
        )
        for unit in ("examples", "tokens")
    )
    assert (tokens.blocks >= examples.blocks).all()
    assert (tokens.heads[0] > examples.heads[0]).all()
    # Only the first token of the last layer's states is read.
    np.testing.assert_allclose(tokens.blocks[1], examples.blocks[1], rtol=1e-5)


def test_a_layer_without_a_block_has_no_score_of_one():
    config = dataclasses.replace(CONFIG, intermediate_sizes=(0, 32))
    for score in (scoring.score_by_sensitivity, scoring.score_by_taylor):
        scores = score(make_model(config), config, make_batches())
        scores.check_fits(config)
        assert scores.blocks[0] == 0 < scores.blocks[1]
        assert (scores.heads[0] > 0).all()


def test_sensitivity_is_by_example_whatever_the_batch():
    one, four = (
        scoring.score_by_sensitivity(
            make_model(), CONFIG, make_batches(batch_size=size)
        )
        for size in (1, 4)
    )
    for unit in ("heads", "neurons"):
        for a, b in zip(getattr(one, unit), getattr(four, unit), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(one.blocks, four.blocks, rtol=1e-3)


def test_a_unit_without_influence_has_no_importance():
    model = make_model()
    kernel = bert.named_variables(model.student)["layer_0_output/kernel"]
    array = kernel.numpy()
    array[3] = 0
    kernel.assign(array)
    scores = scoring.score_by_sensitivity(model, CONFIG, make_batches())
    assert scores.neurons[0][3] == 0
    assert np.count_nonzero(scores.neurons[0]) > 1


def test_uneven_models_are_scored():
    structure = Structure(
        CONFIG.num_heads,
        CONFIG.intermediate_sizes,
        ((1,), (0, 1)),
        ((0, 5), tuple(range(32))),
    )
    config, weights = surgery.shrink(
        CONFIG, tiny_bert.random_weights(CONFIG, 0, 2), structure
    )
    student = bert.build_model(config, 2)
    bert.set_weights(student, weights)
    for score in scoring.METHODS.values():
        scores = score(DistillationModel(student), config, make_batches())
        scores.check_fits(config)


class TestGradientMagnitudes:
    def train(self, model, count, accumulate):
        model.compile(build_optimizer(model.student, "adamw", 1e-3))
        for batch in list(make_batches().epoch(0))[:count]:
            batch = tensors(batch)
            if accumulate:
                for part in range(2):
                    rows = {k: v[part::2] for k, v in batch.items()}
                    model.accumulate_step(rows, 0.5, part)
                model.apply_step()
            else:
                model.train_step(batch)
        return model.magnitudes.numpy()

    def make_model(self):
        model = make_model()
        model.magnitudes = scoring.GradientMagnitudes(model.student)
        return model

    def test_the_first_step_is_that_of_a_pass(self):
        model = self.make_model()
        batch = next(iter(make_batches().epoch(0)))
        name = "layer_0_output/kernel"
        kernel = bert.named_variables(model.student)[name]
        with tf.GradientTape() as tape:
            loss = model.losses_of(tensors(batch))["loss"]
        expected = np.abs(tape.gradient(loss, kernel))
        found = self.train(model, 1, accumulate=False)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)
        assert sorted(found) == sorted(scoring.scored_kernels(model.student))

    def test_micro_batches_count_as_the_batch_they_make(self):
        whole = self.train(self.make_model(), 2, accumulate=False)
        parts = self.train(self.make_model(), 2, accumulate=True)
        for name, array in whole.items():
            np.testing.assert_allclose(parts[name], array, rtol=1e-3, atol=1e-6)

    def test_an_overflow_does_not_count(self):
        model = self.make_model()
        # In one variable, that is not even scored.
        gradients = [
            tf.ones(variable.shape)
            for variable in model.student.trainable_variables
        ]
        gradients[0] = gradients[0] * np.nan
        model.magnitudes.add(gradients)
        for array in model.magnitudes.numpy().values():
            assert not array.any()
