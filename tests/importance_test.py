"""The scores are those of the definition, unit by unit."""

import dataclasses

import numpy as np
import pytest
import tiny_bert

from bert_pruning.compression import importance
from bert_pruning.compression.importance import Scores
from bert_pruning.errors import UserError


@pytest.fixture(scope="module")
def model():
    config = tiny_bert.uneven_config()
    return config, tiny_bert.random_weights(config)


def test_taylor_is_weight_times_gradient_summed_over_the_unit(model):
    config, weights = model
    generator = np.random.default_rng(0)
    gradients = {
        name: generator.random(array.shape)
        for name, array in weights.items()
        if name.startswith("layer_") and name.endswith("/kernel")
    }
    scores = importance.taylor_scores(config, weights, gradients)
    for layer, heads in enumerate(config.num_heads):
        name = f"layer_{layer}_attention_output/kernel"
        for head in range(heads):
            rows = slice(4 * head, 4 * head + 4)
            expected = np.sum(
                np.abs(weights[name][rows]) * gradients[name][rows]
            )
            assert scores.heads[layer][head] == pytest.approx(expected)
        into = f"layer_{layer}_intermediate/kernel"
        out = f"layer_{layer}_output/kernel"
        for j in range(config.intermediate_sizes[layer]):
            expected = np.sum(
                np.abs(weights[into][:, j]) * gradients[into][:, j]
            )
            expected += np.sum(np.abs(weights[out][j]) * gradients[out][j])
            assert scores.neurons[layer][j] == pytest.approx(expected)
        assert scores.layers[layer] == pytest.approx(
            scores.heads[layer].sum() + scores.neurons[layer].sum()
        )


def test_magnitude_sums_the_weights(model):
    config, weights = model
    scores = importance.magnitude_scores(config, weights)
    kernel = np.abs(weights["layer_0_attention_output/kernel"])
    np.testing.assert_allclose(
        scores.heads[0], [kernel[:4].sum(), kernel[4:].sum()], rtol=1e-6
    )
    scores.check_fits(config)


def test_chance_repeats_and_two_seeds_differ(model):
    config, _ = model
    a, b, c = (importance.random_scores(config, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.neurons[1], b.neurons[1])
    assert not np.array_equal(a.neurons[1], c.neurons[1])
    a.check_fits(config)


def test_the_fingerprint_knows_the_encoder(model):
    _, weights = model
    other = {**weights, "layer_1_query/bias": weights["layer_1_query/bias"] + 1}
    head = {**weights, "pooler/bias": weights["pooler/bias"] + 1}
    found = importance.fingerprint(weights)
    assert found == importance.fingerprint(dict(reversed(weights.items())))
    assert found == importance.fingerprint(head)
    assert found != importance.fingerprint(other)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="neurons of layer 0"):
        Scores(([1.0],), ([1.0, np.nan],))


class TestFile:
    def test_it_comes_back(self, tmp_path, model):
        scores = importance.random_scores(model[0], 3, {"method": "random"})
        scores = dataclasses.replace(scores, head_share=0.25)
        scores.save(tmp_path / "scores.npz")
        loaded = Scores.load(tmp_path / "scores.npz")
        assert loaded.about == {"method": "random"}
        assert loaded.head_share == 0.25
        for unit in ("heads", "neurons"):
            pairs = zip(
                getattr(scores, unit), getattr(loaded, unit), strict=True
            )
            for a, b in pairs:
                np.testing.assert_array_equal(a, b)

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="No such file"):
            Scores.load(tmp_path / "scores.npz")

    @pytest.mark.parametrize(
        "content", ["text", "empty", "cut", "other", "about"]
    )
    def test_another_file_is_refused(self, tmp_path, model, content):
        path = tmp_path / "scores.npz"
        importance.random_scores(model[0], 3).save(path)
        if content == "other":
            np.savez(path, weights=np.ones(3))
        elif content == "about":
            arrays = dict(np.load(path))
            np.savez(path, **{**arrays, "about": "[1]"})
        else:
            data = {"text": b"text", "empty": b""}
            path.write_bytes(data.get(content, path.read_bytes()[:900]))
        with pytest.raises(UserError, match="holds no scores"):
            Scores.load(path)
