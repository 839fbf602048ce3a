"""A DistilBERT is read as a BERT of the same states."""

import json

import numpy as np
import pytest
import safetensors.numpy
import tiny_bert

from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling.checkpoints import load_checkpoint

CONFIG = {
    "model_type": "distilbert",
    "vocab_size": 20,
    "max_position_embeddings": 16,
    "dim": 8,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 12,
    "activation": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.2,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.3,
    "initializer_range": 0.02,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
}

# As Transformers names and shapes them.
SHAPES = {
    "distilbert.embeddings.word_embeddings.weight": (20, 8),
    "distilbert.embeddings.position_embeddings.weight": (16, 8),
    "distilbert.embeddings.LayerNorm.weight": (8,),
    "distilbert.embeddings.LayerNorm.bias": (8,),
    **{
        f"distilbert.transformer.layer.{i}.{layer}.{part}": shape
        for i in range(2)
        for layer, shapes in {
            "attention.q_lin": {"weight": (8, 8), "bias": (8,)},
            "attention.k_lin": {"weight": (8, 8), "bias": (8,)},
            "attention.v_lin": {"weight": (8, 8), "bias": (8,)},
            "attention.out_lin": {"weight": (8, 8), "bias": (8,)},
            "sa_layer_norm": {"weight": (8,), "bias": (8,)},
            "ffn.lin1": {"weight": (12, 8), "bias": (12,)},
            "ffn.lin2": {"weight": (8, 12), "bias": (8,)},
            "output_layer_norm": {"weight": (8,), "bias": (8,)},
        }.items()
        for part, shape in shapes.items()
    },
}
HEADS = {
    "mlm": {
        "vocab_transform.weight": (8, 8),
        "vocab_transform.bias": (8,),
        "vocab_layer_norm.weight": (8,),
        "vocab_layer_norm.bias": (8,),
        "vocab_projector.bias": (20,),
    },
    "span": {"qa_outputs.weight": (2, 8), "qa_outputs.bias": (2,)},
    "classifier": {
        "pre_classifier.weight": (8, 8),
        "pre_classifier.bias": (8,),
        "classifier.weight": (3, 8),
        "classifier.bias": (3,),
    },
}


def write(directory, head=None, is_bare=False, **changes):
    """Writes a DistilBERT of random weights; returns them."""
    random = np.random.default_rng(1)
    arrays = {
        name.removeprefix("distilbert." if is_bare else ""): (
            0.2 * random.standard_normal(shape)
        ).astype(np.float32)
        for name, shape in {**SHAPES, **HEADS.get(head, {})}.items()
    }
    values = {**CONFIG, **changes}
    values = {key: value for key, value in values.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "vocab.txt").write_text("\n".join(tiny_bert.vocabulary()))
    safetensors.numpy.save_file(arrays, directory / "model.safetensors")
    return arrays


@pytest.mark.parametrize("is_bare", [True, False])
def test_states_are_those_of_a_bert_without_token_types(tmp_path, is_bare):
    arrays = write(tmp_path, is_bare=is_bare)
    checkpoint = load_checkpoint(str(tmp_path))
    config = checkpoint.config
    assert config.num_heads == (2, 2)
    assert config.intermediate_sizes == (12, 12)
    assert (config.hidden_act, config.layer_norm_eps) == ("gelu", 1e-12)
    assert config.attention_probs_dropout_prob == 0.2
    assert config.classifier_dropout == 0.3
    start = "" if is_bare else "distilbert."
    for name, theirs in {
        "layer_1_query": "attention.q_lin",
        "layer_1_key": "attention.k_lin",
        "layer_1_value": "attention.v_lin",
        "layer_1_attention_output": "attention.out_lin",
        "layer_1_intermediate": "ffn.lin1",
        "layer_1_output": "ffn.lin2",
    }.items():
        stored = f"{start}transformer.layer.1.{theirs}"
        np.testing.assert_array_equal(
            checkpoint.weights[f"{name}/kernel"], arrays[f"{stored}.weight"].T
        )
        np.testing.assert_array_equal(
            checkpoint.weights[f"{name}/bias"], arrays[f"{stored}.bias"]
        )
    for name, theirs in {
        "layer_0_attention_norm": "sa_layer_norm",
        "layer_0_output_norm": "output_layer_norm",
    }.items():
        np.testing.assert_array_equal(
            checkpoint.weights[f"{name}/gamma"],
            arrays[f"{start}transformer.layer.0.{theirs}.weight"],
        )
    types = checkpoint.weights["token_type_embeddings/embeddings"]
    np.testing.assert_array_equal(types, np.zeros((2, 8)))
    assert "no pooler" in checkpoint.notes[0]
    model = bert.build_model(config, num_outputs=2)
    bert.set_weights(model, checkpoint.weights, checkpoint.new_layers)


def test_heads_that_a_bert_has_are_read(tmp_path):
    arrays = write(tmp_path, "span")
    weights = load_checkpoint(str(tmp_path)).weights
    np.testing.assert_array_equal(
        weights["span/kernel"], arrays["qa_outputs.weight"].T
    )
    arrays = write(tmp_path, "mlm")
    weights = load_checkpoint(str(tmp_path)).weights
    for name, theirs in {
        "mlm_transform/bias": "vocab_transform.bias",
        "mlm_norm/gamma": "vocab_layer_norm.weight",
        "mlm_output/bias": "vocab_projector.bias",
    }.items():
        np.testing.assert_array_equal(weights[name], arrays[theirs])


def test_a_classifier_that_a_bert_cannot_have_is_left_out(tmp_path):
    write(tmp_path, "classifier")
    checkpoint = load_checkpoint(str(tmp_path))
    assert "classifier/kernel" not in checkpoint.weights
    assert "a ReLU where a BERT has the tanh" in checkpoint.notes[0]


def test_a_field_that_is_missing_is_named(tmp_path):
    write(tmp_path, n_layers=None)
    with pytest.raises(UserError, match="DistilBERT lacks n_layers"):
        load_checkpoint(str(tmp_path))


def test_states_equal_those_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write(tmp_path)
    checkpoint = load_checkpoint(str(tmp_path))
    model = bert.build_model(checkpoint.config)
    bert.set_weights(model, checkpoint.weights, checkpoint.new_layers)
    inputs = tiny_bert.random_inputs(checkpoint.config, 3, 7)
    ours = model(inputs)["hidden_states"][-1].numpy()
    theirs = transformers.DistilBertModel.from_pretrained(str(tmp_path)).eval()
    with torch.no_grad():
        states = theirs(
            input_ids=torch.tensor(np.asarray(inputs["input_word_ids"])),
            attention_mask=torch.tensor(np.asarray(inputs["input_mask"])),
        ).last_hidden_state.numpy()
    kept = np.asarray(inputs["input_mask"]).astype(bool)
    np.testing.assert_allclose(ours[kept], states[kept], atol=1e-5)
