"""A structure keeps what matters, as much as was asked for."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_bert

from bert_pruning.compression import costs
from bert_pruning.compression.importance import Scores
from bert_pruning.compression.importance import magnitude_scores
from bert_pruning.compression.importance import random_scores
from bert_pruning.compression.structure import Structure
from bert_pruning.compression.structure import keep_top
from bert_pruning.compression.structure import within_budget
from bert_pruning.errors import UserError
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.names import weight_table

CONFIG = BertConfig.uniform(
    vocab_size=20,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    intermediate_size=3,
)
SCORES = Scores(
    heads=([1.0, 4.0, 2.0, 3.0], [8.0, 7.0, 6.0, 5.0]),
    neurons=([3.0, 1.0, 2.0], [5.0, 5.0, 5.0]),
)
# Of what is left of the second layer.
SECOND = Scores(heads=([3.0, 1.0, 2.0],), neurons=([1.0, 2.0],))


def test_the_best_of_each_layer_are_kept_in_their_order():
    structure = keep_top(CONFIG, SCORES, num_heads=2, num_neurons=2)
    assert structure.heads == ((1, 3), (0, 1))
    assert structure.neurons == ((0, 2), (0, 1))
    assert structure.shrink(CONFIG).short_name == "a2_l2_f2_e-1"
    shape = structure.shrink(CONFIG)
    assert shape.num_heads == (2, 2)
    assert shape.intermediate_sizes == (2, 2)


def test_heads_are_chosen_by_the_scores_of_their_own_layer():
    # Of heads alone too, where no neurons are cut.
    structure = keep_top(CONFIG, SCORES, num_heads=1)
    assert structure.heads == ((1,), (0,))
    assert structure.neurons == ((0, 1, 2), (0, 1, 2))


def test_two_cuts_are_one():
    first = Structure((4, 4), (3, 3), ((), (0, 2, 3)), ((), (1, 2)))
    second = keep_top(first.shrink(CONFIG), SECOND, num_heads=2, num_neurons=1)
    both = first.then(second)
    assert both.heads == ((), (0, 3))
    assert both.neurons == ((), (2,))
    assert both.shrink(CONFIG) == second.shrink(first.shrink(CONFIG))
    with pytest.raises(
        UserError, match=r"with \[4, 4\] heads; .* leaves \[3\]"
    ):
        first.then(keep_top(CONFIG))


def test_layers_go_from_the_top():
    structure = keep_top(CONFIG, num_layers=1)
    assert structure.layers == (0,)
    assert structure.heads == ((0, 1, 2, 3), ())


def test_nothing_asked_keeps_everything():
    assert keep_top(CONFIG).shrink(CONFIG) == CONFIG


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"num_heads": 0}, "--keep_heads must lie in 1 to 4.*Received: 0"),
        ({"num_heads": 5}, "--keep_heads.*layer 0 has. Received: 5"),
        ({"num_neurons": 4}, "--ffn_hidden_dim must lie in 1 to 3"),
        ({"num_layers": 3}, "--num_layers must lie in 1 to 2"),
    ],
)
def test_impossible_budgets_are_refused(budget, message):
    with pytest.raises(UserError, match=message):
        keep_top(CONFIG, SCORES, **budget)


def test_cutting_without_scores_is_refused():
    with pytest.raises(UserError, match="--keep_heads=2 needs --scores"):
        keep_top(CONFIG, num_heads=2)


def test_scores_of_another_shape_are_refused():
    other = tiny_bert.tiny_config()
    with pytest.raises(UserError, match=r"heads \[4, 4\].*has \[2, 2\]"):
        keep_top(other, SCORES, num_heads=1)
    with pytest.raises(UserError, match=r"heads \[4, 4\]"):
        within_budget(other, SCORES, "macs", 0.5)


class TestWithinBudget:
    config = BertConfig.uniform(
        vocab_size=20, hidden_size=64, num_layers=3, num_heads=8
    )

    @pytest.mark.parametrize("ratio", [0.9, 0.5, 0.1])
    @pytest.mark.parametrize("cost", ["macs", "parameters"])
    def test_the_budget_is_used_and_kept(self, cost, ratio):
        scores = random_scores(self.config, 0)
        structure = within_budget(self.config, scores, cost, ratio, length=128)
        shape = structure.shrink(self.config)

        def spent(config):
            if cost == "macs":
                return costs.encoder_macs(config, 128)
            head, neuron, fixed = costs.unit_costs(config, cost)
            return (
                fixed
                + head * sum(config.num_heads)
                + neuron * sum(config.intermediate_sizes)
            )

        whole = spent(self.config)
        one_head = costs.unit_costs(self.config, cost, 128)[0]
        assert spent(shape) <= ratio * whole
        assert spent(shape) > ratio * whole - one_head

    def test_the_worth_decides_in_all_layers_together(self):
        heads = [[9.0] * 8, [1.0] * 8, [9.0] * 8]
        neurons = [[9.0] * 256, [1e-3] * 256, [9.0] * 256]
        structure = within_budget(
            self.config, Scores(heads, neurons), "macs", 0.7
        )
        assert structure.shrink(self.config).num_heads == (8, 1, 8)
        assert structure.shrink(self.config).intermediate_sizes[1] == 1

    @pytest.mark.parametrize("cost", ["macs", "parameters"])
    def test_chance_cuts_heads_and_neurons_alike(self, cost):
        scores = random_scores(self.config, 0)
        # On few tokens, where scores and context cost next to nothing.
        shape = within_budget(self.config, scores, cost, 0.5, length=4).shrink(
            self.config
        )
        assert 6 <= sum(shape.num_heads) <= 18
        assert 300 <= sum(shape.intermediate_sizes) <= 460

    def test_a_head_is_priced_for_what_its_score_is_of(self):
        # Every weight alike: a head's score is of a quarter of its weights.
        weights = {
            row.name: np.ones(row.shape)
            for row in weight_table(self.config, "huggingface")
            if row.name.startswith("layer_")
        }
        scores = magnitude_scores(self.config, weights)
        noise = np.random.default_rng(0)
        scores = dataclasses.replace(
            scores,
            heads=[row * noise.uniform(0.9, 1.1, 8) for row in scores.heads],
            neurons=[
                row * noise.uniform(0.9, 1.1, 256) for row in scores.neurons
            ],
        )
        shape = within_budget(self.config, scores, "parameters", 0.5).shrink(
            self.config
        )
        assert 6 <= sum(shape.num_heads) <= 18
        assert 300 <= sum(shape.intermediate_sizes) <= 460

    def test_everything_fits_into_the_whole(self):
        scores = random_scores(self.config, 0)
        structure = within_budget(self.config, scores, "macs", 1.0)
        assert structure == keep_top(self.config)

    @pytest.mark.parametrize("ratio", [0.0, -1.0, 1.1])
    def test_a_ratio_out_of_range_is_refused(self, ratio):
        scores = random_scores(self.config, 0)
        with pytest.raises(UserError, match=r"--mac_ratio .* \(0, 1\]"):
            within_budget(self.config, scores, "macs", ratio)

    def test_a_ratio_out_of_reach_is_refused(self):
        scores = random_scores(self.config, 0)
        with pytest.raises(UserError, match="0.001 cannot be reached"):
            within_budget(self.config, scores, "parameters", 0.001)


class TestFile:
    def test_it_comes_back(self, tmp_path):
        structure = keep_top(CONFIG, SCORES, 1, 2, 1)
        structure.save(tmp_path / "structure.json")
        assert Structure.load(tmp_path / "structure.json") == structure
        text = (tmp_path / "structure.json").read_text()
        assert json.loads(text)["heads"] == [[1, 3], []]
        keep_top(CONFIG).save(tmp_path / "structure.json")
        assert Structure.load(tmp_path / "structure.json") == keep_top(CONFIG)
        text = (tmp_path / "structure.json").read_text()
        assert json.loads(text)["neurons"] == ["all", "all"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "not JSON"),
            ("[]", "must hold a JSON object"),
            ('{"heads": []}', "needs the keys num_heads"),
        ],
    )
    def test_another_file_is_refused(self, tmp_path, text, message):
        path = tmp_path / "structure.json"
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            Structure.load(path)

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="No such file"):
            Structure.load(tmp_path / "structure.json")

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("heads", [[0, 4], [0]], r"Layer 0 has 4 heads.*\(0, 4\)"),
            ("heads", [[1, 1], [0]], "once each"),
            ("heads", [[1, 0], [0]], "rising"),
            ("heads", [[-1], [0]], "Layer 0 has 4 heads"),
            ("heads", [[0]], "a list of heads for each. Received: 1"),
            ("num_heads", [4], "1 layers with heads, 2 with neurons"),
            ("about", 3, "needs the keys"),
            ("heads", [[], [0]], "Layer 0 must keep one head at least"),
            ("heads", [[0.5], [0]], "whole numbers"),
            ("neurons", 3, "needs lists of whole numbers"),
            ("neurons", [[0, True], [0]], "whole numbers"),
        ],
    )
    def test_impossible_units_are_refused(self, tmp_path, key, value, message):
        path = tmp_path / "structure.json"
        keep_top(CONFIG).save(path)
        path.write_text(
            json.dumps({**json.loads(path.read_text()), key: value})
        )
        with pytest.raises(UserError, match=message):
            Structure.load(path)


def test_a_structure_without_a_layer_is_refused():
    with pytest.raises(UserError, match="keeps no layer"):
        Structure((2,), (3,), ((),), ((),))


def test_uneven_shapes_have_a_name():
    structure = Structure(
        (4, 4), (3, 3), ((0,), (1, 2)), ((0,), tuple(np.arange(3)))
    )
    assert structure.shrink(CONFIG).short_name == "a1-2_l2_f1-3_e-1"
