"""A model cut down computes what the whole one does without the cut units."""

import numpy as np
import pytest
import tiny_bert

from bert_pruning.compression import costs
from bert_pruning.compression import surgery
from bert_pruning.compression.structure import Structure
from bert_pruning.compression.structure import keep_top
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling.config import BertConfig

STRUCTURE = Structure(
    num_heads=(2, 2),
    intermediate_sizes=(12, 12),
    heads=((1,), (0, 1)),
    neurons=((0, 3, 4, 11), (2,)),
)


@pytest.fixture(scope="module")
def whole():
    config = tiny_bert.tiny_config()
    return config, tiny_bert.random_weights(config, num_outputs=2)


def outputs_of(config, weights):
    model = bert.build_model(config, 2)
    bert.set_weights(model, weights, initialized=())
    return model(tiny_bert.random_inputs(config, 5, 9))


def without_units(config, weights, structure):
    """The whole model with the outgoing weights of the cut units at zero."""
    weights = {name: array.copy() for name, array in weights.items()}
    for i in range(config.num_layers):
        for head in set(range(config.num_heads[i])) - set(structure.heads[i]):
            rows = slice(head * config.head_size, (head + 1) * config.head_size)
            weights[f"layer_{i}_attention_output/kernel"][rows] = 0
        gone = set(range(config.intermediate_sizes[i]))
        gone -= set(structure.neurons[i])
        weights[f"layer_{i}_output/kernel"][sorted(gone)] = 0
    return weights


def test_masked_equals_shrunk(whole):
    config, weights = whole
    smaller, cut = surgery.shrink(config, weights, STRUCTURE)
    masked = outputs_of(config, without_units(config, weights, STRUCTURE))
    shrunk = outputs_of(smaller, cut)
    for name in ("logits", "hidden_states"):
        for a, b in zip(masked[name], shrunk[name], strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)
    assert smaller.num_heads == (1, 2)
    assert smaller.intermediate_sizes == (4, 1)
    assert cut["layer_0_query/kernel"].shape == (8, 4)
    assert not np.allclose(shrunk["logits"], outputs_of(*whole)["logits"])


def test_without_its_neurons_a_layer_has_no_feed_forward_block(whole):
    config, weights = whole
    ticket = Structure((2, 2), (12, 12), ((1,), (0, 1)), ((), (2, 5)))
    smaller, cut = surgery.shrink(config, weights, ticket)
    masked = without_units(config, weights, ticket)
    masked["layer_0_output/bias"][:] = 0
    masked, shrunk = outputs_of(config, masked), outputs_of(smaller, cut)
    np.testing.assert_allclose(
        masked["hidden_states"][1], shrunk["hidden_states"][1], atol=2e-6
    )
    np.testing.assert_allclose(masked["logits"], shrunk["logits"], atol=2e-6)
    assert smaller.intermediate_sizes == (0, 2)
    assert sorted(n for n in cut if n.startswith("layer_0_output")) == [
        *("layer_0_output_norm/beta", "layer_0_output_norm/gamma")
    ]
    assert costs.parameters(smaller, 2) == sum(a.size for a in cut.values())
    # What is left can be cut again, and its other layer loses its block too.
    again = Structure((1, 2), (0, 2), ((0,), (0,)), ((), ()))
    smallest, least = surgery.shrink(smaller, cut, again)
    assert smallest.intermediate_sizes == (0, 0)
    assert not smallest.is_uniform
    assert np.isfinite(outputs_of(smallest, least)["logits"]).all()


def test_all_units_are_the_same_model(whole):
    config, weights = whole
    same, kept = surgery.shrink(config, weights, keep_top(config))
    assert same == config
    before, after = outputs_of(*whole), outputs_of(same, kept)
    np.testing.assert_array_equal(before["logits"], after["logits"])


def test_a_dropped_layer_is_skipped(whole):
    config, weights = whole
    structure = Structure(
        (2, 2), (12, 12), ((), (0, 1)), ((), tuple(range(12)))
    )
    smaller, cut = surgery.shrink(config, weights, structure)
    assert smaller.num_layers == 1
    for part in ("query/kernel", "output/bias", "output_norm/gamma"):
        np.testing.assert_array_equal(
            cut[f"layer_0_{part}"], weights[f"layer_1_{part}"]
        )
    assert not [name for name in cut if name.startswith("layer_1_")]
    np.testing.assert_array_equal(
        outputs_of(smaller, cut)["hidden_states"][0],
        outputs_of(config, weights)["hidden_states"][0],
    )


def test_layers_are_dropped_from_the_top(whole):
    config, weights = whole
    structure = keep_top(config, num_layers=1)
    smaller, cut = surgery.shrink(config, weights, structure)
    np.testing.assert_array_equal(
        outputs_of(smaller, cut)["hidden_states"][1],
        outputs_of(config, weights)["hidden_states"][1],
    )


def test_uneven_models_are_cut_further(whole):
    config = tiny_bert.uneven_config()
    weights = tiny_bert.random_weights(config, num_outputs=2)
    structure = Structure((2, 1), (5, 12), ((0,), (0,)), ((1, 4), (0, 11)))
    smaller, cut = surgery.shrink(config, weights, structure)
    masked = outputs_of(config, without_units(config, weights, structure))
    shrunk = outputs_of(smaller, cut)
    np.testing.assert_allclose(masked["logits"], shrunk["logits"], atol=2e-6)
    assert smaller.embedding_rank == 3


def test_a_structure_of_another_model_is_refused(whole):
    config, weights = whole
    other = tiny_bert.tiny_config(num_layers=3)
    with pytest.raises(UserError, match=r"heads \[2, 2\].*has \[2, 2, 2\]"):
        surgery.shrink(other, weights, STRUCTURE)


class TestFactorizeEmbeddings:
    def table(self, weights):
        left = weights["word_embeddings/embeddings"]
        return left @ weights["embedding_projection/kernel"]

    def test_it_is_the_best_approximation(self, whole):
        config, weights = whole
        config, factors = surgery.factorize_embeddings(config, weights, 3)
        table = weights["word_embeddings/embeddings"]
        u, values, vt = np.linalg.svd(table, full_matrices=False)
        best = (u[:, :3] * values[:3]) @ vt[:3]
        np.testing.assert_allclose(self.table(factors), best, atol=1e-6)
        # The singular values are in the left factor.
        right = factors["embedding_projection/kernel"]
        np.testing.assert_allclose(right @ right.T, np.eye(3), atol=1e-6)
        assert config.embedding_rank == 3
        assert factors["word_embeddings/embeddings"].shape == (20, 3)

    def test_full_rank_changes_nothing_but_the_rounding(self, whole):
        config, weights = whole
        full = surgery.factorize_embeddings(config, weights, 8)
        np.testing.assert_allclose(
            outputs_of(*full)["logits"],
            outputs_of(*whole)["logits"],
            atol=2e-6,
        )

    def test_trained_factors_are_decomposed_anew(self, whole):
        config = tiny_bert.uneven_config()
        weights = tiny_bert.random_weights(config)
        before = self.table(weights)
        u, values, vt = np.linalg.svd(before, full_matrices=False)
        config, factors = surgery.factorize_embeddings(config, weights, 2)
        best = (u[:, :2] * values[:2]) @ vt[:2]
        np.testing.assert_allclose(self.table(factors), best, atol=1e-6)
        assert config.embedding_rank == 2

    @pytest.mark.parametrize("rank", [0, -1, 9])
    def test_an_impossible_rank_is_refused(self, whole, rank):
        with pytest.raises(UserError, match=f"1 to 8.*Received: {rank}"):
            surgery.factorize_embeddings(*whole, rank)
        with pytest.raises(UserError, match="1 to 3"):
            config = tiny_bert.uneven_config()
            surgery.factorize_embeddings(config, {}, 4)


def test_rosita_s_architecture_has_its_size():
    config = BertConfig.uniform(
        vocab_size=30522, hidden_size=768, num_layers=12, num_heads=12
    )
    weights = {
        name: np.broadcast_to(np.float32(0), shape)
        for name, shape in shapes_of(config).items()
    }
    depth = keep_top(config, num_layers=8)
    config, weights = surgery.shrink(config, weights, depth)
    structure = Structure(
        config.num_heads,
        config.intermediate_sizes,
        ((3, 7),) * 8,
        (tuple(range(100, 612)),) * 8,
    )
    config, weights = surgery.shrink(config, weights, structure)
    assert config.short_name == "a2_l8_f512_e-1"
    weights["word_embeddings/embeddings"] = np.zeros((30522, 128))
    weights["embedding_projection/kernel"] = np.zeros((128, 768))
    assert sum(array.size for array in weights.values()) == 14_474_754
    assert costs.parameters(config, 2) - 14_474_754 == 30522 * 640 - 128 * 768


def shapes_of(config):
    from bert_pruning.modeling.names import weight_table

    return {
        row.name: tuple(size or 2 for size in row.shape)
        for row in weight_table(config, "huggingface")
        if row.group in (None, "pooler", "classifier")
    }
