"""As many weights stay as should, and the largest."""

import math

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras

from bert_pruning.compression.masks import erdos_renyi_sparsities
from bert_pruning.compression.masks import global_masks
from bert_pruning.compression.masks import kept_count
from bert_pruning.compression.masks import m_by_n_mask
from bert_pruning.compression.masks import magnitude_mask
from bert_pruning.compression.sparsity import Sparsity


def sort_based_mask(weights, kept, mask):
    """The definition: the `kept` largest of those that the mask has left."""
    order = sorted(
        np.flatnonzero(mask), key=lambda i: (-abs(weights.flat[i]), i)
    )
    selected = np.zeros(weights.size, bool)
    selected[order[:kept]] = True
    return selected.reshape(weights.shape)


@pytest.mark.parametrize(
    ("size", "sparsity", "kept"),
    [
        (768 * 768, 0.95, 29_491),
        (768 * 3072, 0.95, 117_964),
        (384 * 384, 0.95, 7_372),
        (384 * 1536, 0.95, 29_491),
        (1000, 0.9, 100),  # 1000 * (1 - 0.9) is 99.99999999999997.
        (1000, 0.7, 300),
        (10, 0.99, 1),
        (3, 0.0, 3),
    ],
)
def test_as_many_weights_are_kept_as_the_paper_keeps(size, sparsity, kept):
    assert kept_count(size, sparsity) == kept


def test_selection_equals_a_sort():
    random = np.random.default_rng(0)
    for case in range(300):
        shape = tuple(random.integers(1, 12, 2))
        weights = random.standard_normal(shape).astype(np.float32)
        if case % 3 == 0:
            # Many ties, zeros among them.
            weights = np.round(weights)
        mask = random.random(shape) < random.random()
        sparsity = random.random()
        kept = min(kept_count(weights.size, sparsity), mask.sum())
        expected = sort_based_mask(weights, kept, mask)
        threshold, selected = magnitude_mask(weights, kept, mask)
        np.testing.assert_array_equal(selected, expected)
        if kept:
            assert threshold == np.abs(weights[expected]).min()


def test_without_a_mask_all_weights_compete():
    weights = np.array([[0.1, -3.0], [2.0, 0.5]], np.float32)
    threshold, selected = magnitude_mask(weights, 2)
    assert threshold == 2.0
    assert selected.tolist() == [[False, True], [True, False]]


def test_of_equal_magnitudes_the_first_in_memory_stay():
    selected = magnitude_mask(np.array([1.0, -1.0, 1.0, -1.0]), 2)[1]
    assert selected.tolist() == [True, True, False, False]
    assert magnitude_mask(np.zeros((3, 4)), 3)[1].sum() == 3


def test_near_100_percent_one_weight_stays():
    weights = np.array([0.1, -0.3, 0.2], np.float32)
    mask = magnitude_mask(weights, kept_count(3, 0.999999))[1]
    assert mask.tolist() == [False, True, False]


def test_a_pruned_weight_never_returns_under_strong_noise():
    random = np.random.default_rng(1)
    sparsity = Sparsity(final=0.95, end_step=100)
    weights = random.standard_normal((40, 50)).astype(np.float32)
    mask = np.ones(weights.shape, bool)
    for step in range(1, 101):
        # Unmasked weights, as after an optimizer step.
        weights = weights * mask + 3 * random.standard_normal(weights.shape)
        kept = kept_count(weights.size, sparsity.at(step))
        _, new = magnitude_mask(weights, kept, mask)
        assert not (new & ~mask).any()
        mask = new
    assert mask.sum() == 100


def test_masks_are_those_of_tfmot():
    """Same thresholds; tfmot rounds the count, the paper cuts it off."""
    random = np.random.default_rng(2)
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        0.0, 0.9, begin_step=0, end_step=20, power=3, frequency=1
    )
    layer = tfmot.sparsity.keras.prune_low_magnitude(
        keras.layers.Dense(30, kernel_initializer="glorot_normal"),
        pruning_schedule=schedule,
    )
    layer.build((None, 40))
    (weight, mask, threshold) = layer.pruning_vars[0]
    sparsity = Sparsity(final=0.9, end_step=20, frequency=1)
    ours = np.ones(weight.shape, bool)
    for step in range(1, 21):
        noise = 0.05 * random.standard_normal(weight.shape)
        weight.assign((weight.numpy() + noise) * mask.numpy())
        layer.pruning_step.assign(step)
        layer.pruning_obj.conditional_mask_update()
        theirs = mask.numpy() != 0
        kept = kept_count(weight.shape.num_elements(), sparsity.at(step))
        limit, ours = magnitude_mask(weight.numpy(), kept, ours)
        differing = np.flatnonzero(theirs != ours)
        assert len(differing) <= 1
        if len(differing):
            # The one more that rounding keeps is the smallest.
            assert theirs.flat[differing[0]]
            value = abs(weight.numpy().flat[differing[0]])
            assert value == threshold.numpy() < limit
        else:
            assert limit == threshold.numpy()
        ours = theirs


# === Across matrices ===


def test_one_threshold_chooses_among_all_matrices():
    random = np.random.default_rng(3)
    for case in range(50):
        weights = [
            random.standard_normal(random.integers(1, 9, 2)) for _ in range(3)
        ]
        if case % 2:
            weights = [np.round(array) for array in weights]
        masks = [random.random(array.shape) < 0.7 for array in weights]
        joined = np.concatenate([array.ravel() for array in weights])
        mask = np.concatenate([array.ravel() for array in masks])
        kept = min(kept_count(joined.size, random.random()), mask.sum())
        expected = sort_based_mask(joined, kept, mask)
        _, found = global_masks(weights, kept, masks)
        assert [m.shape for m in found] == [w.shape for w in weights]
        found = np.concatenate([array.ravel() for array in found])
        np.testing.assert_array_equal(found, expected)


def test_densities_follow_rows_and_columns_and_their_sum_is_exact():
    shapes = [(768, 768), (768, 3072), (3072, 768)]
    sparsities = erdos_renyi_sparsities(shapes, 0.9)
    densities = [1 - sparsity for sparsity in sparsities]
    wanted = [(rows + columns) / (rows * columns) for rows, columns in shapes]
    ratios = [d / w for d, w in zip(densities, wanted, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 3)
    sizes = [math.prod(shape) for shape in shapes]
    kept = sum(d * size for d, size in zip(densities, sizes, strict=True))
    assert kept == pytest.approx(0.1 * sum(sizes))


def test_a_matrix_that_would_need_more_than_it_has_stays_dense():
    sparsities = erdos_renyi_sparsities([(2, 2), (100, 100)], 0.5)
    assert sparsities[0] == 0.0
    assert sparsities[1] == pytest.approx(0.5002)
    assert erdos_renyi_sparsities([(2, 2), (9, 9)], 0.0) == [0.0, 0.0]


# === Groups ===


def test_only_the_smallest_of_a_group_may_go():
    # Two groups of one column; all of the second are smaller.
    weights = np.array([[9.0], [8.0], [7.0], [6.0], [4.0], [3.0], [2.0], [1.0]])
    for kept, expected in (
        (7, [1, 1, 1, 1, 1, 1, 1, 0]),
        (6, [1, 1, 1, 1, 1, 1, 0, 0]),
        (5, [1, 1, 1, 0, 1, 1, 0, 0]),
        (4, [1, 1, 0, 0, 1, 1, 0, 0]),
    ):
        threshold, mask = m_by_n_mask(weights, kept, (2, 4))
        assert mask.ravel().tolist() == [bool(x) for x in expected]
        assert threshold == np.abs(weights[mask]).min()


def test_groups_are_those_of_columns():
    weights = np.array([[1.0, 5.0], [2.0, 6.0]])
    _, mask = m_by_n_mask(weights, 2, (1, 2))
    assert mask.tolist() == [[False, False], [True, True]]


def test_of_a_group_what_is_gone_stays_gone():
    weights = np.array([[0.0], [0.0], [2.0], [1.0]])
    before = np.array([[1.0], [0.0], [1.0], [1.0]])
    _, mask = m_by_n_mask(weights, 3, (2, 4), before)
    assert mask.ravel().tolist() == [True, False, True, True]
    _, mask = m_by_n_mask(weights, 2, (2, 4), before)
    assert mask.ravel().tolist() == [False, False, True, True]
