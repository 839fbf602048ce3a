"""The graph equals three other BERTs, for any length, whatever the padding.

The references: Hugging Face's on real weights (recorded, and live where torch
is installed), keras-hub's on random weights, and NumPy's below, written from
the definition in the official code.
"""

import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tiny_bert

from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling import layers
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.modeling.config import BertConfig

GOLDENS = pathlib.Path(__file__).parent / "goldens"


def numpy_bert(config, weights, inputs):
    """The official definition: returns hidden states and pooled output."""

    def dense(x, name):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    def norm(x, name):
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        x = (x - mean) / np.sqrt(variance + 1e-12)
        return x * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def gelu(x):
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + np.tanh(inner))

    def softmax(x):
        x = np.exp(x - x.max(-1, keepdims=True))
        return x / x.sum(-1, keepdims=True)

    weights = {name: w.astype(np.float64) for name, w in weights.items()}
    ids, mask = inputs["input_word_ids"], inputs["input_mask"]
    batch, length = ids.shape
    x = weights["word_embeddings/embeddings"][ids]
    x = (
        x
        + weights["token_type_embeddings/embeddings"][inputs["input_type_ids"]]
    )
    x = x + weights["position_embeddings/embeddings"][:length]
    x = norm(x, "embeddings_norm")
    hidden_states = [x]
    for i, heads in enumerate(config.num_heads):
        shape = (batch, length, heads, config.head_size)
        query, key, value = (
            dense(x, f"layer_{i}_{part}").reshape(shape).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2)
        scores = scores / math.sqrt(config.head_size)
        scores = scores + (1 - mask)[:, None, None, :] * -10000.0
        context = (softmax(scores) @ value).transpose(0, 2, 1, 3)
        context = context.reshape(batch, length, -1)
        attention = dense(context, f"layer_{i}_attention_output")
        x = norm(x + attention, f"layer_{i}_attention_norm")
        neurons = gelu(dense(x, f"layer_{i}_intermediate"))
        x = norm(
            x + dense(neurons, f"layer_{i}_output"), f"layer_{i}_output_norm"
        )
        hidden_states.append(x)
    return hidden_states, np.tanh(dense(x[:, 0], "pooler"))


def model_with(config, weights, **kwargs):
    model = bert.build_model(config, **kwargs)
    bert.set_weights(model, weights)
    return model


def difference(actual, expected):
    return np.max(np.abs(np.asarray(actual) - np.asarray(expected)))


def test_equals_the_official_definition_in_numpy():
    config = BertConfig.uniform(
        vocab_size=99,
        hidden_size=32,
        num_layers=5,
        num_heads=4,
        intermediate_size=37,
        type_vocab_size=16,
        hidden_act="gelu_new",
    )
    weights = tiny_bert.random_weights(config)
    inputs = tiny_bert.random_inputs(config, batch_size=13, length=7)
    outputs = model_with(config, weights)(inputs)
    hidden_states, pooled = numpy_bert(config, weights, inputs)
    assert len(outputs["hidden_states"]) == len(hidden_states) == 6
    for actual, expected in zip(
        outputs["hidden_states"], hidden_states, strict=True
    ):
        assert actual.shape == (13, 7, 32)
        assert difference(actual, expected) < 1e-5
    assert outputs["pooled_output"].shape == (13, 32)
    assert difference(outputs["pooled_output"], pooled) < 1e-5


def test_uneven_layers_equal_the_definition():
    config = tiny_bert.uneven_config()
    config = BertConfig.from_dict(
        {**config.to_dict(), "hidden_act": "gelu_new"}
    )
    weights = tiny_bert.random_weights(config)
    inputs = tiny_bert.random_inputs(config, batch_size=3, length=7)
    outputs = model_with(config, weights)(inputs)
    full = dict(weights)
    full["word_embeddings/embeddings"] = (
        weights["word_embeddings/embeddings"]
        @ weights["embedding_projection/kernel"]
    )
    hidden_states, pooled = numpy_bert(config, full, inputs)
    for actual, expected in zip(
        outputs["hidden_states"], hidden_states, strict=True
    ):
        assert difference(actual, expected) < 1e-5
    assert difference(outputs["pooled_output"], pooled) < 1e-5


@pytest.fixture(scope="module")
def minilm(minilm_dir):
    return load_checkpoint(str(minilm_dir))


def minilm_outputs(checkpoint, inputs, classifier):
    weights = {
        **checkpoint.weights,
        "classifier/kernel": classifier,
        "classifier/bias": np.zeros(classifier.shape[1], np.float32),
    }
    outputs = model_with(checkpoint.config, weights, num_outputs=3)(inputs)
    return {
        "hidden_states": np.stack(outputs["hidden_states"]),
        "pooled_output": outputs["pooled_output"],
        "logits": outputs["logits"],
    }


def check_equal(outputs, expected, mask):
    assert difference(outputs["logits"], expected["logits"]) <= 1e-5
    pooled = expected["pooled_output"]
    assert difference(outputs["pooled_output"], pooled) <= 1e-5
    actual, expected = outputs["hidden_states"], expected["hidden_states"]
    assert actual.shape == expected.shape
    real = mask.astype(bool)
    assert difference(actual[:, real], expected[:, real]) <= 1e-5
    # Nobody reads a padded position, and there this model is so badly
    # conditioned that the reference is itself 2e-5 from its float64 values.
    assert difference(actual[:, ~real], expected[:, ~real]) <= 2e-4


def test_minilm_equals_what_transformers_computed(minilm):
    golden = np.load(GOLDENS / "minilm.npz")
    inputs = {
        name: golden[name]
        for name in ("input_word_ids", "input_mask", "input_type_ids")
    }
    assert not inputs["input_mask"].all()
    outputs = minilm_outputs(minilm, inputs, golden["classifier"])
    check_equal(outputs, golden, inputs["input_mask"])


def test_minilm_equals_transformers_live(minilm, minilm_dir):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import record_goldens

    inputs = tiny_bert.random_inputs(minilm.config, 3, 40)
    inputs["input_type_ids"] = inputs["input_mask"] * 0
    generator = np.random.RandomState(1)
    classifier = generator.standard_normal((384, 3)).astype(np.float32) * 0.05
    reference = transformers.BertModel.from_pretrained(str(minilm_dir)).eval()
    expected = record_goldens.minilm_values(reference, inputs, classifier)
    outputs = minilm_outputs(minilm, inputs, classifier)
    check_equal(outputs, expected, inputs["input_mask"])


def test_equals_keras_hub():
    keras_hub = pytest.importorskip("keras_hub")
    from bert_pruning.modeling import keras_hub_preset

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=50,
        num_layers=3,
        num_heads=4,
        hidden_dim=32,
        intermediate_dim=37,
        max_sequence_length=20,
        num_segments=3,
    )
    generator = np.random.RandomState(0)
    for variable in backbone.weights:
        noise = 0.2 * generator.standard_normal(variable.shape)
        variable.assign(np.asarray(variable) + noise)
    config = keras_hub_preset.preset_config(backbone)
    weights = keras_hub_preset.preset_weights(backbone, config)
    inputs = tiny_bert.random_inputs(config, batch_size=4, length=9)
    expected = backbone(
        {
            "token_ids": inputs["input_word_ids"],
            "padding_mask": inputs["input_mask"],
            "segment_ids": inputs["input_type_ids"],
        }
    )
    outputs = model_with(config, weights)(inputs)
    last = np.asarray(outputs["hidden_states"][-1])
    real = inputs["input_mask"].astype(bool)
    sequence = np.asarray(expected["sequence_output"])
    assert difference(last[real], sequence[real]) <= 1e-5
    pooled = np.asarray(expected["pooled_output"])
    assert difference(outputs["pooled_output"], pooled) <= 1e-5


@pytest.fixture(scope="module")
def tiny():
    config = tiny_bert.tiny_config()
    weights = tiny_bert.random_weights(config, num_outputs=3)
    return config, model_with(config, weights, num_outputs=3)


@pytest.mark.parametrize("length", [1, 5, 16])
def test_any_length_up_to_the_maximum(tiny, length):
    config, model = tiny
    inputs = tiny_bert.random_inputs(config, 2, length)
    outputs = model(inputs)
    assert outputs["logits"].shape == (2, 3)
    assert outputs["logits"].dtype == tf.float32
    assert outputs["hidden_states"][-1].shape == (2, length, 8)
    assert outputs["attention_scores"][-1].shape == (2, 2, length, length)


def test_longer_than_the_maximum_is_an_error_that_says_so(tiny):
    config, model = tiny
    with pytest.raises(UserError, match="at most 16 tokens") as error:
        model(tiny_bert.random_inputs(config, 2, 17))
    assert "17" in str(error.value)


def test_longer_than_the_maximum_is_an_error_inside_a_function(tiny):
    config, model = tiny
    spec = tf.TensorSpec((None, None), tf.int32)

    @tf.function(input_signature=[spec, spec, spec])
    def logits(ids, mask, types):
        return model([ids, mask, types])["logits"]

    inputs = list(tiny_bert.random_inputs(config, 2, 16).values())
    assert logits(*inputs).shape == (2, 3)
    inputs = list(tiny_bert.random_inputs(config, 2, 17).values())
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="at most 16 tokens"
    ):
        logits(*inputs)


def test_padding_changes_no_real_token(tiny):
    config, model = tiny
    inputs = tiny_bert.random_inputs(config, 1, 6)
    padded = {
        name: np.pad(values, [(0, 0), (0, 5)])
        for name, values in inputs.items()
    }
    padded["input_word_ids"][:, 6:] = 7
    short, long = model(inputs), model(padded)
    assert difference(short["logits"], long["logits"]) < 1e-6
    for a, b in zip(short["hidden_states"], long["hidden_states"], strict=True):
        assert difference(a, b[:, :6]) < 1e-6


def test_padding_gets_no_gradient(tiny):
    config, model = tiny
    inputs = tiny_bert.random_inputs(config, 1, 6)
    inputs["input_word_ids"] = np.array([[2, 6, 7, 8, 19, 19]], np.int32)
    inputs["input_mask"] = np.array([[1, 1, 1, 1, 0, 0]], np.int32)
    table = bert.named_variables(model)["word_embeddings/embeddings"]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(inputs)["logits"] ** 2)
    gradient = tf.convert_to_tensor(tape.gradient(loss, table)).numpy()
    assert np.abs(gradient[[2, 6, 7, 8]]).max(axis=1).min() > 0
    assert not gradient[19].any()


def test_attention_scores_are_scaled_masked_and_before_the_softmax(tiny):
    config, model = tiny
    inputs = tiny_bert.random_inputs(config, 3, 6)
    outputs = model(inputs)
    weights = bert.get_weights(model)
    x = np.asarray(outputs["hidden_states"][1])

    def heads(part):
        kernel = weights[f"layer_1_{part}/kernel"]
        values = x @ kernel + weights[f"layer_1_{part}/bias"]
        return values.reshape(3, 6, 2, 4).transpose(0, 2, 1, 3)

    expected = heads("query") @ heads("key").transpose(0, 1, 3, 2) / 2.0
    penalty = -10000.0 * (1 - inputs["input_mask"])
    expected = expected + penalty[:, None, None, :]
    np.testing.assert_allclose(
        outputs["attention_scores"][1], expected, rtol=1e-5, atol=1e-5
    )


def test_no_two_dropouts_share_their_random_numbers():
    config = tiny_bert.tiny_config()
    model = bert.build_model(config, {"CoLA": 2, "STS-B": 1})
    dropouts = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, layers.Dropout)
    ]
    # Embeddings; probabilities, attention and output of each layer; two heads.
    assert len(dropouts) == 1 + 3 * config.num_layers + 2
    ones = tf.ones((1000,))
    with layers.dropout_seed(tf.constant([3, 5])):
        masks = {
            layer(ones, training=True).numpy().tobytes() for layer in dropouts
        }
    assert len(masks) == len(dropouts)


def test_dropout_acts_in_training_only(tiny):
    config, model = tiny
    inputs = tiny_bert.random_inputs(config, 2, 6)
    first, second = (model(inputs)["logits"] for _ in range(2))
    assert difference(first, second) == 0.0
    trained = model(inputs, training=True)["logits"]
    assert difference(first, trained) > 1e-3


def test_weights_move_by_name(tiny):
    config, model = tiny
    weights = bert.get_weights(model)
    other = bert.build_model(config, num_outputs=3)
    assert bert.set_weights(other, weights) == []
    inputs = tiny_bert.random_inputs(config, 2, 6)
    assert difference(model(inputs)["logits"], other(inputs)["logits"]) == 0.0


def test_a_new_classifier_is_reported(tiny):
    config, model = tiny
    weights = bert.get_weights(model)
    del weights["classifier/kernel"], weights["classifier/bias"]
    other = bert.build_model(config, num_outputs=5)
    assert bert.set_weights(other, weights) == [
        "classifier/kernel",
        "classifier/bias",
    ]


def test_missing_or_misshapen_weight_is_an_error_that_names_it(tiny):
    config, model = tiny
    weights = bert.get_weights(model)
    before = bert.get_weights(model)
    lacking = dict(weights)
    del lacking["layer_1_query/kernel"]
    lacking["layer_0_query/kernel"] = np.zeros((8, 8), np.float32)
    with pytest.raises(UserError, match="layer_1_query/kernel"):
        bert.set_weights(model, lacking)
    misshapen = {**weights, "layer_0_key/bias": np.zeros(9, np.float32)}
    with pytest.raises(UserError, match=r"layer_0_key/bias .*\(9,\).*\(8,\)"):
        bert.set_weights(model, misshapen)
    for name, values in bert.get_weights(model).items():
        assert difference(values, before[name]) == 0.0


def test_prune_targets_are_six_kernels_a_layer(tiny):
    config, model = tiny
    kernels = bert.encoder_kernels(config)
    assert len(kernels) == 6 * config.num_layers
    variables = bert.named_variables(model)
    assert all(len(variables[name].shape) == 2 for name in kernels)


def test_every_variable_has_one_name(tiny):
    _, model = tiny
    variables = bert.named_variables(model)
    assert len(variables) == len(model.weights) == 5 + 16 * 2 + 2 + 2
    assert {id(v) for v in variables.values()} == {id(v) for v in model.weights}
