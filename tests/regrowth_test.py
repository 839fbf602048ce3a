"""Pruned weights that may come back, and patterns that must not change."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tiny_bert

from bert_pruning.compression import costs
from bert_pruning.compression.pruning import Pruner
from bert_pruning.compression.pruning import wrap
from bert_pruning.compression.sparsity import Sparsity
from bert_pruning.compression.sparsity import find_pattern
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.training.optimization import AdamW
from bert_pruning.training.step import DistillationModel

pytestmark = pytest.mark.usefixtures("eagerly")

CONFIG = tiny_bert.tiny_config(
    num_layers=1,
    hidden_size=16,
    intermediate_size=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    classifier_dropout=0.0,
)
KERNEL = "layer_0_intermediate"
HALF = Sparsity(final=0.5, initial=0.5)


def make_model(sparsity, weight_decay=0.0, weights=None, **options):
    student = bert.build_model(CONFIG, 2)
    weights = weights or tiny_bert.random_weights(CONFIG, 0, 2)
    bert.set_weights(student, weights)
    student = wrap(student, sparsity)
    pruner = Pruner(student, sparsity)
    model = DistillationModel(student, pruner=pruner, **options)
    model.compile(AdamW(1e-3, weight_decay=weight_decay))
    pruner.update(0)
    return model


def make_batch(seed=0):
    batch = tiny_bert.random_inputs(CONFIG, 4, length=6, seed=seed)
    batch["label"] = np.int32([0, 1, 1, 0])
    return {name: tf.constant(array) for name, array in batch.items()}


def kernel_of(model, name=KERNEL):
    return bert.get_weights(model.student)[f"{name}/kernel"]


def regrowing(kind, **options):
    return dataclasses.replace(HALF, regrowth=kind, **options)


# === The schedule of Prune Once for All ===


def test_the_ramp_ends_before_the_updates_do():
    sparsity = Sparsity(
        final=0.9,
        end_step=50_000,
        update_end_step=80_000,
        frequency=1_000,
        regrowth="shadow",
    )
    published = {
        **{1_000: 0.05293, 5_000: 0.2439, 10_000: 0.4392, 20_000: 0.7056},
        **{25_000: 0.7875, 30_000: 0.8424, 40_000: 0.8928, 50_000: 0.9},
    }
    for step, value in published.items():
        assert sparsity.at(step) == pytest.approx(value, abs=5e-5)
    assert sparsity.at(0) == 0.0
    updates = [step for step in range(100_001) if sparsity.updates_at(step)]
    assert updates == list(range(0, 80_001, 1_000))


@pytest.mark.parametrize(
    ("sparsity", "nonzero"), [(0.9, 8_493_504), (0.85, 12_740_232)]
)
def test_as_many_weights_stay_as_in_the_published_models(sparsity, nonzero):
    shapes = [(768, 768)] * 48 + [(768, 3072), (3072, 768)] * 12
    found = Sparsity(final=sparsity, regrowth="shadow").kept_counts(shapes, 0)
    assert sum(found) == nonzero


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regrowth": "some"}, "--pruning_regrowth must be none or shadow"),
        ({"distribution": "even"}, "--pruning_distribution must be uniform"),
        ({"end_step": 5, "update_end_step": 9}, "needs --pruning_regrowth"),
        (
            {"end_step": 5, "update_end_step": 4, "regrowth": "shadow"},
            "steps 4 and 5",
        ),
        ({"distribution": "global", "block_size": (4, 1)}, "single weights"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Sparsity(final=0.5, **options)


# === Regrowth ===


def test_a_shadow_moves_only_by_decay_while_it_is_pruned():
    for decay in (0.0, 0.1):
        model = make_model(regrowing("shadow"), decay)
        shadow = model.pruner.shadows[KERNEL]
        before, mask = shadow.numpy(), kernel_of(model) != 0
        for step in range(3):
            model.train_step(make_batch(step))
        after = shadow.numpy()
        np.testing.assert_allclose(
            after[~mask], before[~mask] * (1 - 1e-3 * decay) ** 3, rtol=1e-6
        )
        assert (after[mask] != before[mask]).all()
        np.testing.assert_array_equal(kernel_of(model), after * mask)


def test_a_gradient_that_passes_straight_through_moves_the_shadow():
    model = make_model(regrowing("straight_through"))
    shadow = model.pruner.shadows[KERNEL]
    before, mask = shadow.numpy(), kernel_of(model) != 0
    batch = make_batch()
    with tf.GradientTape() as tape:
        loss = model.losses_of(batch)["loss"]
    variables = model.student.trainable_variables
    place = [variable.shape for variable in variables].index((16, 32))
    gradient = tape.gradient(loss, variables)[place].numpy()
    model.train_step(batch)
    # Adam's first step is the sign of the gradient times the rate.
    moved = np.abs(gradient) > 1e-3
    assert moved[~mask].any()
    np.testing.assert_allclose(
        (shadow.numpy() - before)[moved],
        -1e-3 * np.sign(gradient[moved]),
        rtol=0.02,
    )
    assert (kernel_of(model)[~mask] == 0).all()


@pytest.mark.parametrize("kind", ["shadow", "straight_through"])
def test_a_pruned_weight_comes_back_when_it_is_larger_than_others(kind):
    model = make_model(regrowing(kind, update_end_step=10))
    shadow = model.pruner.shadows[KERNEL]
    place = tuple(np.argwhere(kernel_of(model) == 0)[0])
    values = shadow.numpy()
    values[place] = 3.0
    shadow.assign(values)
    model.pruner.update(5)
    found = kernel_of(model)
    assert found[place] == 3.0
    assert costs.count(found).sparsity == 0.5


def test_without_regrowth_it_does_not():
    model = make_model(HALF)
    zeros = kernel_of(model) == 0
    assert not model.pruner.shadows
    for step in range(3):
        model.train_step(make_batch(step))
    model.pruner.update(0)
    assert (kernel_of(model)[zeros] == 0).all()


def test_blocks_come_back_as_one():
    model = make_model(
        regrowing("shadow", block_size=(4, 1), update_end_step=9)
    )
    shadow = model.pruner.shadows[KERNEL]
    rows = kernel_of(model).reshape(4, 4, 32)
    block, column = np.argwhere((rows == 0).all(1))[0]
    values = shadow.numpy()
    values[4 * block : 4 * block + 4, column] = 2.0
    shadow.assign(values)
    model.pruner.update(4)
    found = kernel_of(model)
    assert (found[4 * block : 4 * block + 4, column] == 2.0).all()
    kept = np.count_nonzero(found.reshape(4, 4, 32), axis=1)
    assert set(kept.ravel()) == {0, 4}
    assert costs.count(found).sparsity == 0.5


def test_a_model_that_does_not_know_its_pruner_cannot_regrow():
    model = make_model(regrowing("shadow"))
    plain = DistillationModel(model.student)
    plain.compile(AdamW(1e-3))
    model.pruner.set_model(plain)
    with pytest.raises(ValueError, match="before_update"):
        model.pruner.on_train_begin()


# === Distribution ===


def test_globally_the_kernels_share_the_zeros():
    sparsity = Sparsity(final=0.8, initial=0.8, distribution="global")
    weights = tiny_bert.random_weights(CONFIG, 0, 2)
    weights[f"{KERNEL}/kernel"] *= 10
    model = make_model(sparsity, weights=weights)
    counts = model.pruner.measured()
    # A fifth of 4 * 16 * 16 + 2 * 16 * 32, rounded down.
    assert sum(counts.values(), costs.Count(0, 0)).kept == 409
    assert counts[KERNEL].sparsity < 0.5 < counts["layer_0_query"].sparsity
    model.pruner.check_reached()


def test_by_erdos_and_renyi_small_kernels_keep_more():
    sparsity = Sparsity(final=0.8, initial=0.8, distribution="erdos_renyi")
    model = make_model(sparsity)
    counts = model.pruner.measured()
    # A fifth of 4 * 16 * 16 + 2 * 16 * 32 by 16 + 16 and 16 + 32: 58.5 of each
    # small one and 87.8 of each large one, rounded down.
    for name, count in counts.items():
        large = name in (KERNEL, "layer_0_output")
        assert count.kept == (87 if large else 58), name
    model.pruner.check_reached()


# === Lock ===


def sparse_weights():
    weights = tiny_bert.random_weights(CONFIG, 0, 2)
    random = np.random.default_rng(0)
    for name in (*bert.encoder_kernels(CONFIG), "pooler/kernel"):
        weights[name] *= random.random(weights[name].shape) < 0.1
    # One that was not pruned, with a zero by chance.
    weights["layer_0_key/kernel"] = np.ones((16, 16), np.float32)
    weights["layer_0_key/kernel"][0, 0] = 0.0
    return weights


def kernels_of(weights):
    return {
        name.removesuffix("/kernel"): array
        for name, array in weights.items()
        if name.endswith("/kernel") and not name.startswith("classifier")
    }


def test_a_pattern_is_found_where_it_is():
    found = find_pattern(kernels_of(sparse_weights()), least=0.75)
    assert found.locked
    assert found.final == pytest.approx(0.9, abs=0.02)
    assert set(found.targets) == {
        *("layer_0_query", "layer_0_value", "layer_0_attention_output"),
        *("layer_0_intermediate", "layer_0_output", "pooler"),
    }
    # Of all six kernels of the encoder, one of them dense.
    with pytest.raises(UserError, match=r"=0.8, but only 0.7793 .* 6 of 7"):
        find_pattern(kernels_of(sparse_weights()), least=0.8)
    with pytest.raises(UserError, match="this one is dense"):
        find_pattern(kernels_of(tiny_bert.random_weights(CONFIG, 0, 2)))


def test_locked_zeros_stay_and_everything_else_learns():
    weights = sparse_weights()
    sparsity = find_pattern(kernels_of(weights))
    model = make_model(sparsity, weight_decay=0.1, weights=weights)
    for step in range(5):
        model.train_step(make_batch(step))
        model.pruner.update(step + 1)
    after = bert.get_weights(model.student)
    for name, before in weights.items():
        zeros = before == 0
        if name.removesuffix("/kernel") in sparsity.targets:
            np.testing.assert_array_equal(after[name] == 0, zeros, name)
        if name.endswith("/kernel"):
            assert (after[name] != before)[~zeros].all(), name
    model.pruner.check_reached()


def test_gradients_of_locked_zeros_do_not_count_in_the_norm():
    weights = sparse_weights()
    model = make_model(find_pattern(kernels_of(weights)), weights=weights)
    variables = model.student.trainable_variables
    ones = [tf.ones_like(variable) for variable in variables]
    seen = model.pruner.before_update(ones, variables)
    total = sum(float(tf.reduce_sum(gradient)) for gradient in seen)
    locked = sum(count.zeros for count in model.pruner.measured().values())
    assert total == sum(v.shape.num_elements() for v in variables) - locked
