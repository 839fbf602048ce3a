"""BertConfig: both file formats, defaults and refusals."""

import dataclasses
import json

import pytest
import tiny_bert

from bert_pruning.errors import UserError
from bert_pruning.modeling.config import BertConfig

OFFICIAL_TINY = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}


@pytest.mark.parametrize(
    "config",
    [
        tiny_bert.tiny_config(),
        tiny_bert.uneven_config(),
        tiny_bert.blockless_config(),
    ],
)
def test_survives_json(config):
    text = json.dumps(config.to_dict())
    assert BertConfig.from_dict(json.loads(text)) == config
    text = json.dumps(config.to_huggingface())
    assert BertConfig.from_huggingface(json.loads(text)) == config


def test_official_file_survives():
    config = BertConfig.from_official(OFFICIAL_TINY)
    assert config.num_layers == 2
    assert config.num_heads == (2, 2)
    assert config.head_size == 64
    assert config.intermediate_sizes == (512, 512)
    assert config.to_official() == OFFICIAL_TINY
    assert list(config.to_official()) == sorted(OFFICIAL_TINY)


def test_official_shape_test_of_the_original_code():
    config = BertConfig.from_official({"vocab_size": 99, "hidden_size": 36})
    assert config.vocab_size == 99
    assert config.hidden_size == 36
    assert config.type_vocab_size == 16
    assert config.num_layers == 12
    assert config.layer_norm_eps == 1e-12


def test_official_gelu_is_the_tanh_form_and_huggingface_the_erf_form():
    assert BertConfig.from_official(OFFICIAL_TINY).hidden_act == "gelu_new"
    assert BertConfig.from_huggingface(OFFICIAL_TINY).hidden_act == "gelu"


def test_multilingual_extras_are_tolerated():
    extras = {"directionality": "bidi", "pooler_fc_size": 768}
    config = BertConfig.from_official({**OFFICIAL_TINY, **extras})
    assert config == BertConfig.from_official(OFFICIAL_TINY)


@pytest.mark.parametrize(
    "name, expected",
    [("", "linear"), (None, "linear"), ("GELU", "gelu_new"), ("relu", "relu")],
)
def test_official_activation_names(name, expected):
    values = {**OFFICIAL_TINY, "hidden_act": name}
    assert BertConfig.from_official(values).hidden_act == expected


def test_huggingface_defaults_are_those_of_transformers():
    values = {
        key: OFFICIAL_TINY[key]
        for key in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
        )
    }
    config = BertConfig.from_huggingface(values)
    assert config.intermediate_sizes == (3072, 3072)
    assert config.classifier_dropout == 0.1
    values["hidden_dropout_prob"] = 0.3
    assert BertConfig.from_huggingface(values).classifier_dropout == 0.3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "swish"}, "swish"),
        ({"hidden_act": 5}, "hidden_act .* 5"),
        ({"hidden_act": []}, r"hidden_act .* \[\]"),
        ({"hidden_size": 130, "num_attention_heads": 4}, "130 and 4"),
        ({"type_vocab_size": 0}, "type_vocab_size"),
        ({"hidden_size": "768"}, "hidden_size .* Received: '768'"),
        ({"num_hidden_layers": None}, "num_hidden_layers .* None"),
        ({"num_attention_heads": 0}, "num_attention_heads .* 0"),
        ({"hidden_dropout_prob": "0.1"}, "hidden_dropout_prob .* '0.1'"),
        ({"initializer_range": 0.0}, "initializer_range .* 0.0"),
    ],
)
@pytest.mark.parametrize("reader", ["from_official", "from_huggingface"])
def test_impossible_values_are_refused(reader, change, message):
    with pytest.raises(UserError, match=message):
        getattr(BertConfig, reader)({**OFFICIAL_TINY, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "roberta"}, "roberta"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
    ],
)
def test_other_models_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        BertConfig.from_huggingface({**OFFICIAL_TINY, **change})


def test_file_of_something_else_is_refused():
    with pytest.raises(UserError, match="bert_config.json lacks vocab_size"):
        BertConfig.from_official({"n_layer": 12})
    with pytest.raises(UserError, match="config.json lacks vocab_size"):
        BertConfig.from_huggingface({"n_layer": 12})


def test_unknown_field_is_refused():
    values = tiny_bert.tiny_config().to_dict()
    with pytest.raises(UserError, match="num_heds"):
        BertConfig.from_dict({**values, "num_heds": 3})


def test_missing_field_is_refused():
    values = tiny_bert.tiny_config().to_dict()
    del values["head_size"]
    with pytest.raises(UserError, match="BertConfig lacks head_size"):
        BertConfig.from_dict(values)


def test_layers_need_one_entry_each():
    with pytest.raises(UserError, match="2 and 1 entries"):
        dataclasses.replace(tiny_bert.tiny_config(), intermediate_sizes=(12,))


def test_uniform_is_told_from_pruned():
    config = tiny_bert.tiny_config()
    assert config.is_uniform
    assert not tiny_bert.uneven_config().is_uniform
    plain = tiny_bert.tiny_config()
    without = dataclasses.replace(plain, intermediate_sizes=(0, 0))
    assert plain.is_uniform and not without.is_uniform
    for size in (-1, 1.5, "3"):
        with pytest.raises(UserError, match=r"intermediate_sizes\[1\]"):
            dataclasses.replace(plain, intermediate_sizes=(12, size))
    assert not dataclasses.replace(config, num_heads=(1, 1)).is_uniform
    assert not dataclasses.replace(config, embedding_rank=3).is_uniform


def test_official_file_of_a_shape_it_cannot_hold_is_refused():
    with pytest.raises(UserError, match=r"heads \[2, 1\]"):
        tiny_bert.uneven_config().to_official()
    with pytest.raises(UserError, match="tanh"):
        tiny_bert.tiny_config(hidden_act="gelu").to_official()
