"""Every checkpoint format: what goes in comes out, and nothing else does."""

import dataclasses
import io
import json
import os
import pathlib
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
import tiny_bert
from bert_test import numpy_bert

from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.modeling.checkpoints import resolve_do_lower_case
from bert_pruning.modeling.checkpoints import save_huggingface
from bert_pruning.modeling.checkpoints import save_official
from bert_pruning.modeling.files import is_lower_case
from bert_pruning.modeling.mapping import stored_weights
from bert_pruning.modeling.names import weight_table
from bert_pruning.modeling.torch_pickle import read_torch_tensors

GOLDENS = pathlib.Path(__file__).parent / "goldens"
ALL_HEADS = ("pooler", "mlm", "next_sentence", "span")
OFFICIAL = {"hidden_act": "gelu_new"}


def check_same(actual, expected):
    assert set(actual) == set(expected)
    for name, values in expected.items():
        assert actual[name].dtype == np.float32, name
        np.testing.assert_array_equal(actual[name], values, err_msg=name)


def write_official(directory, config, arrays, prefix="bert_model.ckpt"):
    """Writes an official checkpoint from raw names, without our writer."""
    directory.mkdir(exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(directory / prefix),
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=list(arrays.values()),
    )
    (directory / "bert_config.json").write_text(
        json.dumps(config.to_official())
    )
    write_vocabulary(directory, tiny_bert.vocabulary(config.vocab_size))


def write_vocabulary(directory, vocabulary):
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n")


def write_huggingface(directory, config, arrays, **changes):
    """Writes a Hugging Face checkpoint from raw names, without our writer."""
    directory.mkdir(exist_ok=True)
    values = {**config.to_huggingface(), **changes}
    del values["bert_pruning"]
    (directory / "config.json").write_text(json.dumps(values))
    write_vocabulary(directory, tiny_bert.vocabulary(config.vocab_size))
    safetensors.numpy.save_file(arrays, directory / "model.safetensors")


def official_arrays(config, weights):
    return stored_weights(config, weights, "official")


def huggingface_arrays(config, weights):
    return stored_weights(config, weights, "huggingface")


# === The table ===


@pytest.mark.parametrize("file_format", ["official", "huggingface"])
def test_every_weight_of_the_graph_has_one_row_of_its_shape(file_format):
    config = tiny_bert.tiny_config()
    shapes = {
        name: tuple(variable.shape)
        for name, variable in bert.named_variables(
            bert.build_model(config, num_outputs=3)
        ).items()
    }
    rows = weight_table(config, file_format)
    table = {row.name: row for row in rows}
    assert len(table) == len(rows)
    assert len({row.stored_name for row in rows}) == len(rows)
    assert set(shapes) <= set(table)
    for name, shape in shapes.items():
        expected = [3 if n is None else n for n in table[name].shape]
        assert list(shape) == expected, name


def test_a_pruned_graph_has_a_row_for_every_weight():
    config = tiny_bert.uneven_config()
    variables = bert.named_variables(bert.build_model(config, num_outputs=3))
    table = {row.name: row for row in weight_table(config, "huggingface")}
    for name, variable in variables.items():
        expected = [3 if n is None else n for n in table[name].shape]
        assert list(variable.shape) == expected, name


def test_official_names_are_those_of_the_released_models():
    config = tiny_bert.tiny_config(**OFFICIAL)
    weights = tiny_bert.random_weights(
        config, heads=("pooler", "mlm", "next_sentence")
    )
    stored = official_arrays(config, weights)
    assert len(stored) == 16 * 2 + 14
    assert stored["bert/embeddings/word_embeddings"].shape == (20, 8)
    name = "bert/encoder/layer_1/attention/output/LayerNorm/gamma"
    assert stored[name].shape == (8,)
    assert stored["bert/encoder/layer_0/intermediate/dense/kernel"].shape == (
        8,
        12,
    )
    assert stored["cls/seq_relationship/output_weights"].shape == (2, 8)
    assert stored["cls/predictions/output_bias"].shape == (20,)
    assert "cls/predictions/transform/LayerNorm/beta" in stored


# === Official TF1 ===


@pytest.mark.parametrize("num_outputs", [None, 1, 3])
def test_official_survives(tmp_path, num_outputs):
    config = tiny_bert.tiny_config(**OFFICIAL)
    weights = tiny_bert.random_weights(
        config, num_outputs=num_outputs, heads=ALL_HEADS
    )
    vocabulary = tiny_bert.vocabulary()
    save_official(str(tmp_path), config, weights, vocabulary)
    assert sorted(os.listdir(tmp_path)) == [
        "bert_config.json",
        "bert_model.ckpt.data-00000-of-00001",
        "bert_model.ckpt.index",
        "vocab.txt",
    ]
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.config == config
    assert checkpoint.vocabulary == vocabulary
    assert checkpoint.source == "official"
    assert checkpoint.task is None
    assert checkpoint.notes == ()
    check_same(checkpoint.weights, weights)
    shape = tf.train.load_checkpoint(str(tmp_path / "bert_model.ckpt"))
    shape = shape.get_variable_to_shape_map()
    assert shape.get("output_weights") == (num_outputs and [num_outputs, 8])


def test_official_weights_mean_what_the_official_code_makes_of_them(tmp_path):
    config = tiny_bert.tiny_config(num_layers=1, **OFFICIAL)
    layer = "bert/encoder/layer_0"
    names = {
        "word_embeddings": "bert/embeddings/word_embeddings",
        "token_type_embeddings": "bert/embeddings/token_type_embeddings",
        "position_embeddings": "bert/embeddings/position_embeddings",
        "embeddings_norm": "bert/embeddings/LayerNorm",
        "layer_0_query": f"{layer}/attention/self/query",
        "layer_0_key": f"{layer}/attention/self/key",
        "layer_0_value": f"{layer}/attention/self/value",
        "layer_0_attention_output": f"{layer}/attention/output/dense",
        "layer_0_attention_norm": f"{layer}/attention/output/LayerNorm",
        "layer_0_intermediate": f"{layer}/intermediate/dense",
        "layer_0_output": f"{layer}/output/dense",
        "layer_0_output_norm": f"{layer}/output/LayerNorm",
        "pooler": "bert/pooler/dense",
    }
    weights = tiny_bert.random_weights(config)
    arrays = {
        f"{names[name.split('/')[0]]}/{name.split('/')[1]}".removesuffix(
            "/embeddings"
        ): values
        for name, values in weights.items()
    }
    arrays["output_weights"] = np.arange(24, dtype=np.float32).reshape(3, 8)
    arrays["output_bias"] = np.arange(3, dtype=np.float32)
    write_official(tmp_path, config, arrays)
    checkpoint = load_checkpoint(str(tmp_path))
    model = bert.build_model(checkpoint.config, num_outputs=3)
    bert.set_weights(model, checkpoint.weights)
    inputs = tiny_bert.random_inputs(config, batch_size=4, length=7)
    _, pooled = numpy_bert(config, weights, inputs)
    expected = pooled @ arrays["output_weights"].T + arrays["output_bias"]
    np.testing.assert_allclose(model(inputs)["logits"], expected, rtol=1e-4)


@pytest.fixture
def fine_tuned(tmp_path):
    """A run of the official fine-tuning code, with all it leaves behind."""
    config = tiny_bert.tiny_config(**OFFICIAL)
    weights = tiny_bert.random_weights(config, num_outputs=3)
    arrays = official_arrays(config, weights)
    slots = {
        f"{name}/{slot}": np.ones_like(values)
        for name, values in arrays.items()
        for slot in ("adam_m", "adam_v")
    }
    others = {
        "global_step": np.int64(343),
        "lambda_1": np.float32(0.5),
        "lambda_2": np.float32(0.5),
        "lambda_1/adam_m": np.float32(0.5),
    }
    directory = tmp_path / "mrpc_output"
    write_official(
        directory, config, {**arrays, **slots, **others}, "model.ckpt-343"
    )
    return directory, weights


def test_fine_tuned_checkpoint_gives_its_classifier_not_its_slots(fine_tuned):
    directory, weights = fine_tuned
    check_same(load_checkpoint(str(directory)).weights, weights)
    prefix = str(directory / "model.ckpt-343")
    checkpoint = load_checkpoint(prefix)
    check_same(checkpoint.weights, weights)
    assert checkpoint.path == prefix


def test_latest_of_several_checkpoints_is_the_one_tensorflow_names(fine_tuned):
    directory, weights = fine_tuned
    config = tiny_bert.tiny_config(**OFFICIAL)
    other = tiny_bert.random_weights(config, seed=1)
    arrays = official_arrays(config, other)
    write_official(directory, config, arrays, "model.ckpt-900")
    with pytest.raises(UserError, match=r"model.ckpt-343, model.ckpt-900"):
        load_checkpoint(str(directory))
    check_same(
        load_checkpoint(str(directory / "model.ckpt-343")).weights, weights
    )
    (directory / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt-343"\n'
        'all_model_checkpoint_paths: "model.ckpt-900"\n'
        'all_model_checkpoint_paths: "model.ckpt-343"\n'
    )
    check_same(load_checkpoint(str(directory)).weights, weights)


def test_object_based_checkpoint_is_refused(tmp_path):
    config = tiny_bert.tiny_config(**OFFICIAL)
    weights = tiny_bert.random_weights(config)
    save_official(str(tmp_path), config, weights, tiny_bert.vocabulary())
    variable = tf.Variable(1.0)
    tf.train.Checkpoint(x=variable).write(str(tmp_path / "bert_model.ckpt"))
    with pytest.raises(UserError, match="object-based TF2"):
        load_checkpoint(str(tmp_path))


def test_official_of_a_pruned_or_erf_model_is_refused(tmp_path):
    for config in (tiny_bert.uneven_config(), tiny_bert.tiny_config()):
        weights = tiny_bert.random_weights(config)
        with pytest.raises(UserError, match="official BERT code"):
            save_official(
                str(tmp_path / "x"), config, weights, tiny_bert.vocabulary()
            )


# === Hugging Face and runs ===


@pytest.mark.parametrize(
    "config",
    [
        tiny_bert.tiny_config(),
        tiny_bert.uneven_config(),
        tiny_bert.blockless_config(),
    ],
)
@pytest.mark.parametrize("num_outputs", [None, 1, 3])
def test_run_survives(tmp_path, config, num_outputs):
    weights = tiny_bert.random_weights(
        config, num_outputs=num_outputs, heads=ALL_HEADS
    )
    vocabulary = tiny_bert.vocabulary()
    task = {"name": "custom", "labels": ["a", "b", "c"]}
    if num_outputs != 3:
        task = {"name": "STS-B", "labels": []}
    save_huggingface(str(tmp_path), config, weights, vocabulary, False, task)
    assert sorted(os.listdir(tmp_path)) == [
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.config == config
    assert checkpoint.vocabulary == vocabulary
    assert checkpoint.do_lower_case is False
    assert checkpoint.task == task
    assert checkpoint.source == "run"
    check_same(checkpoint.weights, weights)
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_checkpoint(str(tmp_path)).do_lower_case is False


def test_saving_a_model_that_was_loaded_changes_no_byte(tmp_path):
    config = tiny_bert.tiny_config()
    weights = tiny_bert.random_weights(config, num_outputs=3)
    first, second = tmp_path / "first", tmp_path / "second"
    save_huggingface(str(first), config, weights, tiny_bert.vocabulary(), True)
    checkpoint = load_checkpoint(str(first))
    model = bert.build_model(checkpoint.config, num_outputs=3)
    bert.set_weights(model, checkpoint.weights)
    save_huggingface(
        str(second),
        checkpoint.config,
        bert.get_weights(model),
        checkpoint.vocabulary,
        checkpoint.do_lower_case,
        checkpoint.task,
    )
    for name in os.listdir(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def rename(arrays, prefix, old_norm):
    renamed = {}
    for name, values in arrays.items():
        if not prefix:
            name = name.removeprefix("bert.")
        if old_norm:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        renamed[name] = values
    return renamed


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("old_norm", [True, False])
def test_names_of_all_ages_are_read(tmp_path, prefix, old_norm):
    config = tiny_bert.tiny_config()
    weights = tiny_bert.random_weights(config, num_outputs=2, heads=ALL_HEADS)
    arrays = rename(huggingface_arrays(config, weights), prefix, old_norm)
    arrays[("bert." if prefix else "") + "embeddings.position_ids"] = np.arange(
        16
    )[np.newaxis]
    write_huggingface(tmp_path, config, arrays)
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.source == "huggingface"
    assert checkpoint.config == config
    assert checkpoint.do_lower_case is True
    check_same(checkpoint.weights, weights)


def test_a_weight_under_two_names_is_refused(tmp_path):
    config = tiny_bert.tiny_config()
    weights = tiny_bert.random_weights(config)
    arrays = huggingface_arrays(config, weights)
    arrays["pooler.dense.bias"] = arrays["bert.pooler.dense.bias"] + 1
    write_huggingface(tmp_path, config, arrays)
    with pytest.raises(UserError, match="bert.pooler.dense.bias twice"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_become_float32(tmp_path, dtype):
    config = tiny_bert.tiny_config()
    weights = tiny_bert.random_weights(config)
    arrays = {
        name: values.astype(dtype)
        for name, values in huggingface_arrays(config, weights).items()
    }
    write_huggingface(tmp_path, config, arrays)
    check_same(
        load_checkpoint(str(tmp_path)).weights,
        {n: w.astype(dtype).astype(np.float32) for n, w in weights.items()},
    )


def test_integer_weights_are_refused(tmp_path):
    config = tiny_bert.tiny_config()
    arrays = huggingface_arrays(config, tiny_bert.random_weights(config))
    name = "bert.encoder.layer.0.output.dense.weight"
    arrays[name] = arrays[name].astype(np.int8)
    write_huggingface(tmp_path, config, arrays)
    with pytest.raises(UserError, match=f"{name}.*int8"):
        load_checkpoint(str(tmp_path))


def test_shards_are_put_together(tmp_path):
    config = tiny_bert.tiny_config()
    weights = tiny_bert.random_weights(config)
    arrays = huggingface_arrays(config, weights)
    write_huggingface(tmp_path, config, arrays)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(arrays)
    files = (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    )
    for file_name, part in zip(files, (names[:9], names[9:]), strict=True):
        safetensors.numpy.save_file(
            {name: arrays[name] for name in part}, tmp_path / file_name
        )
    index = {name: files[i >= 9] for i, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    check_same(load_checkpoint(str(tmp_path)).weights, weights)
    (tmp_path / files[1]).unlink()
    with pytest.raises(UserError, match=f"lacks {files[1]}"):
        load_checkpoint(str(tmp_path))


def test_vocabulary_of_a_tokenizer_json_is_read(tmp_path):
    config = tiny_bert.tiny_config()
    arrays = huggingface_arrays(config, tiny_bert.random_weights(config))
    write_huggingface(tmp_path, config, arrays)
    (tmp_path / "vocab.txt").unlink()
    vocabulary = tiny_bert.vocabulary()
    ids = {token: i for i, token in enumerate(vocabulary)}
    added = vocabulary[-1]
    tokenizer = {
        "added_tokens": [{"id": ids.pop(added), "content": added}],
        "normalizer": {"type": "BertNormalizer", "lowercase": False},
        "model": {"type": "WordPiece", "vocab": ids},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.vocabulary == vocabulary
    assert checkpoint.do_lower_case is False
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert load_checkpoint(str(tmp_path)).do_lower_case is True
    ids["word3"] = str(ids["word3"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="without a gap"):
        load_checkpoint(str(tmp_path))
    del ids["word3"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="without a gap"):
        load_checkpoint(str(tmp_path))


def test_tied_decoder_is_ignored_and_an_untied_one_noted(tmp_path):
    config = tiny_bert.tiny_config()
    weights = tiny_bert.random_weights(config, heads=("pooler", "mlm"))
    arrays = huggingface_arrays(config, weights)
    table = arrays["bert.embeddings.word_embeddings.weight"]
    arrays["cls.predictions.decoder.weight"] = table.copy()
    arrays["cls.predictions.decoder.bias"] = arrays.pop("cls.predictions.bias")
    write_huggingface(tmp_path, config, arrays)
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.notes == ()
    check_same(checkpoint.weights, weights)
    arrays["cls.predictions.decoder.weight"] = table + 1
    write_huggingface(tmp_path, config, arrays)
    checkpoint = load_checkpoint(str(tmp_path))
    assert "not tied" in checkpoint.notes[0]
    check_same(
        checkpoint.weights,
        {n: w for n, w in weights.items() if not n.startswith("mlm_")},
    )


def test_classifier_of_single_tokens_is_not_taken_for_ours(tmp_path):
    config = tiny_bert.tiny_config()
    weights = tiny_bert.random_weights(config, num_outputs=3)
    arrays = huggingface_arrays(config, weights)
    architectures = ["BertForTokenClassification"]
    write_huggingface(tmp_path, config, arrays, architectures=architectures)
    checkpoint = load_checkpoint(str(tmp_path))
    assert "classifier/kernel" not in checkpoint.weights
    assert "BertForTokenClassification" in checkpoint.notes[0]


def test_missing_pooler_is_noted_and_may_stay_new(tmp_path):
    config = tiny_bert.tiny_config()
    weights = tiny_bert.random_weights(config, heads=("mlm",))
    write_huggingface(tmp_path, config, huggingface_arrays(config, weights))
    checkpoint = load_checkpoint(str(tmp_path))
    assert "no pooler" in checkpoint.notes[0]
    model = bert.build_model(config, num_outputs=2)
    kept = bert.set_weights(model, checkpoint.weights, checkpoint.new_layers)
    assert set(kept) == {
        "pooler/kernel",
        "pooler/bias",
        "classifier/kernel",
        "classifier/bias",
    }


def test_repository_with_both_formats_is_read(tmp_path):
    config = tiny_bert.tiny_config(**OFFICIAL)
    weights = tiny_bert.random_weights(config)
    save_official(str(tmp_path), config, weights, tiny_bert.vocabulary())
    values = config.to_huggingface()
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_checkpoint(str(tmp_path)).source == "official"
    other = tiny_bert.random_weights(config, seed=1)
    arrays = huggingface_arrays(config, other)
    write_huggingface(tmp_path, config, arrays)
    check_same(load_checkpoint(str(tmp_path)).weights, other)


# === Run directories in Transformers ===


@pytest.mark.parametrize("name", ["classification", "regression"])
def test_run_is_what_transformers_loaded_when_recorded(tmp_path, name):
    golden = json.loads((GOLDENS / "runs.json").read_text())[name]
    assert golden["not_loaded"] == golden["not_used"] == []
    inputs = tiny_bert.save_run(str(tmp_path), name)
    checkpoint = load_checkpoint(str(tmp_path))
    model = bert.build_model(checkpoint.config, len(golden["labels"]))
    bert.set_weights(model, checkpoint.weights)
    np.testing.assert_allclose(
        model(inputs)["logits"], golden["logits"], atol=1e-5
    )
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        shapes = {n: file.get_slice(n).get_shape() for n in file.keys()}
    assert shapes == golden["weights"]
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["architectures"] == ["BertForSequenceClassification"]
    assert values["problem_type"] == golden["problem_type"]
    assert list(values["id2label"].values()) == golden["labels"]


@pytest.mark.parametrize("name", ["classification", "regression"])
def test_run_has_equal_logits_in_transformers(tmp_path, name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import record_goldens

    inputs = tiny_bert.save_run(str(tmp_path), name)
    values = record_goldens.run_values(str(tmp_path), inputs)
    assert values["not_loaded"] == values["not_used"] == []
    checkpoint = load_checkpoint(str(tmp_path))
    model = bert.build_model(checkpoint.config, len(values["labels"]))
    bert.set_weights(model, checkpoint.weights)
    np.testing.assert_allclose(
        model(inputs)["logits"], values["logits"], atol=1e-5
    )


@pytest.mark.parametrize("lower_case", [True, False])
def test_run_loads_as_a_tokenizer_in_transformers(tmp_path, lower_case):
    transformers = pytest.importorskip("transformers")
    config = tiny_bert.tiny_config()
    save_huggingface(
        str(tmp_path),
        config,
        tiny_bert.random_weights(config),
        tiny_bert.vocabulary(cased=not lower_case),
        lower_case,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer.model_max_length == config.max_position_embeddings
    ids = tokenizer("Word3", "Word0 other")["input_ids"]
    assert ids == [2, 8, 3, 5, 1, 3]
    assert tokenizer("WORD3")["input_ids"] == [2, 8 if lower_case else 1, 3]


def test_all_heads_load_in_transformers(tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = tiny_bert.tiny_config()
    for heads, name in (
        (("pooler", "mlm", "next_sentence"), "BertForPreTraining"),
        (("mlm",), "BertForMaskedLM"),
        (("span",), "BertForQuestionAnswering"),
        (("pooler",), "BertModel"),
    ):
        directory = str(tmp_path / name)
        weights = tiny_bert.random_weights(config, heads=heads)
        save_huggingface(
            directory, config, weights, tiny_bert.vocabulary(), True
        )
        values = json.loads((tmp_path / name / "config.json").read_text())
        assert values["architectures"] == [name]
        model, report = getattr(transformers, name).from_pretrained(
            directory, output_loading_info=True
        )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        model.save_pretrained(directory)
        check_same(load_checkpoint(directory).weights, weights)


# === pytorch_model.bin ===


def torch_golden_weights():
    """What the golden files hold, by Hugging Face's present names."""
    config = tiny_bert.tiny_config(num_layers=1)
    weights = tiny_bert.random_weights(config, num_outputs=2)
    arrays = huggingface_arrays(config, weights)
    return config, {
        name: tiny_bert.golden_tensor(index, arrays[name].shape)
        for index, name in enumerate(sorted(arrays))
    }


@pytest.mark.parametrize("layout", ["torch_zip.bin", "torch_stream.bin"])
def test_file_of_torch_is_read_without_torch(tmp_path, layout):
    config, arrays = torch_golden_weights()
    write_huggingface(tmp_path, config, {})
    (tmp_path / "model.safetensors").unlink()
    shutil.copy(GOLDENS / layout, tmp_path / "pytorch_model.bin")
    rows = weight_table(config, "huggingface")
    expected = {
        row.name: row.convert(arrays[row.stored_name])
        for row in rows
        if row.stored_name in arrays
    }
    check_same(load_checkpoint(str(tmp_path)).weights, expected)


@pytest.mark.parametrize("layout", [True, False])
def test_tensors_of_torch_are_read_as_torch_reads_them(tmp_path, layout):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32)
    tensors = {
        "strided": base.reshape(4, 6)[1:, ::2],
        "transposed": base.reshape(4, 6).T,
        "expanded": base[:3].expand(5, 3),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "half": base.half(),
        "brain": base.bfloat16() / 3,
        "double": base.double() / 3,
        "long": base.long(),
        "bool": base > 3,
        "parameter": torch.nn.Parameter(base * 2),
    }
    path = tmp_path / "x.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=layout)
    arrays = read_torch_tensors(str(path))
    assert set(arrays) == set(tensors)
    for name, tensor in tensors.items():
        expected = tensor.detach()
        if name == "brain":
            assert arrays[name].dtype == ml_dtypes.bfloat16
            expected = expected.float()
        np.testing.assert_array_equal(
            arrays[name].astype(expected.numpy().dtype), expected.numpy()
        )
        assert arrays[name].shape == tuple(tensor.shape)


class Marker:
    """Unpickled for real, it would make a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write_torch_zip(path, pickled, data=(), byteorder="little"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", byteorder)
        for key, content in data:
            archive.writestr(f"archive/data/{key}", content)


def test_malicious_pickle_is_refused_and_not_run(tmp_path):
    config = tiny_bert.tiny_config()
    write_huggingface(tmp_path, config, {})
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    evil = {"bert.pooler.dense.bias": Marker(tmp_path / "ran")}
    write_torch_zip(path, pickle.dumps(evil))
    with pytest.raises(UserError, match=r"mkdir.*malicious"):
        load_checkpoint(str(tmp_path))
    path.write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C)
        + pickle.dumps(1001)
        + pickle.dumps({"little_endian": True})
        + pickle.dumps(evil)
    )
    with pytest.raises(UserError, match=r"mkdir.*malicious"):
        load_checkpoint(str(tmp_path))
    path.write_bytes(pickle.dumps(Marker(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"mkdir.*malicious"):
        load_checkpoint(str(tmp_path))
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_builtins_are_refused(tmp_path, name):
    path = tmp_path / "x.bin"
    write_torch_zip(path, f"cbuiltins\n{name}\n.".encode())
    with pytest.raises(UserError, match=f"builtins.{name}"):
        read_torch_tensors(str(path))


@pytest.fixture
def torch_pickle(monkeypatch):
    """Pickles tensors as torch does, without torch.

    Returns a function from {name: (storage key, number of elements, offset,
    shape, strides)} to bytes.
    """
    modules = {
        "torch": types.ModuleType("torch"),
        "torch._utils": types.ModuleType("torch._utils"),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def rebuild(*_):
        raise NotImplementedError

    rebuild.__module__ = "torch._utils"
    rebuild.__name__ = rebuild.__qualname__ = "_rebuild_tensor_v2"
    modules["torch._utils"]._rebuild_tensor_v2 = rebuild
    storage_type = type("FloatStorage", (), {"__module__": "torch"})
    modules["torch"].FloatStorage = storage_type

    @dataclasses.dataclass
    class Storage:
        key: str
        size: int

    @dataclasses.dataclass
    class Tensor:
        storage: Storage
        view: tuple

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return "storage", storage_type, value.key, "cpu", value.size
            return None

        def reducer_override(self, value):
            if isinstance(value, Tensor):
                return rebuild, (value.storage, *value.view, False, {})
            return NotImplemented

    def dump(tensors):
        buffer = io.BytesIO()
        Pickler(buffer, protocol=2).dump(
            {
                name: Tensor(Storage(key, size), tuple(view))
                for name, (key, size, *view) in tensors.items()
            }
        )
        return buffer.getvalue()

    return dump


def test_views_and_big_endian_bytes_are_read(tmp_path, torch_pickle):
    path = tmp_path / "x.bin"
    pickled = torch_pickle(
        {
            "a": ("0", 6, 1, (2, 2), (1, 3)),
            "b": ("0", 6, 0, (6,), (1,)),
        }
    )
    values = np.arange(6, dtype=np.float32)
    for order, dtype in (("little", "<f4"), ("big", ">f4")):
        data = [("0", values.astype(dtype).tobytes())]
        write_torch_zip(path, pickled, data, order)
        arrays = read_torch_tensors(str(path))
        np.testing.assert_array_equal(arrays["a"], [[1, 4], [2, 5]])
        np.testing.assert_array_equal(arrays["b"], values)


@pytest.mark.parametrize(
    "view",
    [
        (0, (7,), (1,)),
        (3, (4,), (1,)),
        (0, (2, 2), (5, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
    ],
)
def test_tensor_beyond_its_storage_is_refused(tmp_path, torch_pickle, view):
    path = tmp_path / "x.bin"
    pickled = torch_pickle({"a": ("0", 6, *view)})
    write_torch_zip(path, pickled, [("0", bytes(24))])
    with pytest.raises(UserError, match="x.bin"):
        read_torch_tensors(str(path))


def test_storage_of_another_size_is_refused(tmp_path, torch_pickle):
    path = tmp_path / "x.bin"
    pickled = torch_pickle({"a": ("0", 6, 0, (6,), (1,))})
    write_torch_zip(path, pickled, [("0", bytes(20))])
    with pytest.raises(UserError, match="20 bytes for 6 elements"):
        read_torch_tensors(str(path))


def test_something_else_than_a_dict_of_tensors_is_refused(tmp_path):
    path = tmp_path / "x.bin"
    for value in ([1, 2], {"epoch": 3}, {"model": {}}):
        write_torch_zip(path, pickle.dumps(value))
        with pytest.raises(UserError, match="weights of one model"):
            read_torch_tensors(str(path))


# === keras-hub ===


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    keras_hub = pytest.importorskip("keras_hub")
    directory = tmp_path_factory.mktemp("preset")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=20,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        max_sequence_length=16,
    )
    backbone.save_to_preset(str(directory))
    tokenizer = keras_hub.models.BertTokenizer(
        tiny_bert.vocabulary(), lowercase=True
    )
    tokenizer.save_to_preset(str(directory))
    return directory, backbone


@pytest.mark.parametrize("prefix", ["preset:", ""])
def test_preset_is_read(preset, prefix):
    directory, backbone = preset
    checkpoint = load_checkpoint(f"{prefix}{directory}")
    assert checkpoint.source == "preset"
    assert checkpoint.config == tiny_bert.tiny_config(**OFFICIAL)
    assert checkpoint.vocabulary == tiny_bert.vocabulary()
    assert checkpoint.do_lower_case is True
    model = bert.build_model(checkpoint.config)
    bert.set_weights(model, checkpoint.weights)
    inputs = tiny_bert.random_inputs(checkpoint.config, 3, 7)
    expected = backbone(
        {
            "token_ids": inputs["input_word_ids"],
            "padding_mask": inputs["input_mask"],
            "segment_ids": inputs["input_type_ids"],
        }
    )
    np.testing.assert_allclose(
        model(inputs)["pooled_output"],
        np.asarray(expected["pooled_output"]),
        atol=1e-5,
    )


def test_unknown_preset_is_refused(tmp_path):
    pytest.importorskip("keras_hub")
    with pytest.raises(UserError, match="no_such_preset"):
        load_checkpoint("preset:no_such_preset")


def test_preset_without_keras_hub_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(UserError, match="pip install keras-hub"):
        load_checkpoint("preset:bert_tiny_en_uncased")


# === Casing ===


@pytest.mark.parametrize("cased", [True, False])
@pytest.mark.parametrize("name", ["cased_L-2", "my_uncased_vs", "showcased"])
def test_vocabulary_tells_the_casing_whatever_its_folder_is_called(
    tmp_path, name, cased
):
    config = tiny_bert.tiny_config(**OFFICIAL)
    vocabulary = list(tiny_bert.vocabulary(cased=cased))
    vocabulary[6:8] = ["[unused1]", "<S>"]
    directory = str(tmp_path / name)
    weights = tiny_bert.random_weights(config)
    save_official(directory, config, weights, vocabulary)
    checkpoint = load_checkpoint(directory)
    assert checkpoint.do_lower_case is not cased
    assert resolve_do_lower_case(checkpoint, not cased) is not cased


@pytest.mark.parametrize("claim", [True, False, None])
@pytest.mark.parametrize("cased", [True, False])
def test_files_tell_the_casing_of_a_vocabulary_without_capitals_alone(
    tmp_path, cased, claim
):
    config = tiny_bert.tiny_config()
    arrays = huggingface_arrays(config, tiny_bert.random_weights(config))
    write_huggingface(tmp_path, config, arrays)
    write_vocabulary(tmp_path, tiny_bert.vocabulary(cased=cased))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": claim})
    )
    checkpoint = load_checkpoint(str(tmp_path))
    expected = not cased and claim is not False
    assert checkpoint.do_lower_case is expected
    for flag in (None, expected, not cased):
        resolved = resolve_do_lower_case(checkpoint, flag)
        assert resolved is (expected if flag is None else flag)
    if cased:
        with pytest.raises(UserError, match="a cased vocabulary"):
            resolve_do_lower_case(checkpoint, True)


def test_few_capitals_make_no_cased_vocabulary():
    words = [f"word{i}" for i in range(99)]
    assert is_lower_case(["[PAD]", *words, "A"])
    assert not is_lower_case(["[PAD]", *words, "A", "B"])
    assert is_lower_case(["[PAD]"])


@pytest.mark.parametrize("lower_case", [True, False])
def test_flag_that_contradicts_the_vocabulary_is_refused(tmp_path, lower_case):
    config = tiny_bert.tiny_config()
    save_huggingface(
        str(tmp_path),
        config,
        tiny_bert.random_weights(config),
        tiny_bert.vocabulary(cased=not lower_case),
        lower_case,
    )
    checkpoint = load_checkpoint(str(tmp_path))
    assert resolve_do_lower_case(checkpoint, None) is lower_case
    assert resolve_do_lower_case(checkpoint, lower_case) is lower_case
    kind = "an uncased" if lower_case else "a cased"
    with pytest.raises(UserError, match=f"{kind} vocabulary.*do_lower_case"):
        resolve_do_lower_case(checkpoint, not lower_case)


# === Bad input ===


@pytest.fixture(params=["official", "huggingface"])
def saved(request, tmp_path):
    """A directory in each format, and the file with its weights."""
    config = tiny_bert.tiny_config(**OFFICIAL)
    weights = tiny_bert.random_weights(config)
    directory = tmp_path / "model"
    vocabulary = tiny_bert.vocabulary()
    if request.param == "official":
        save_official(str(directory), config, weights, vocabulary)
        return directory, "bert_model.ckpt.data-00000-of-00001"
    save_huggingface(str(directory), config, weights, vocabulary, True)
    return directory, "model.safetensors"


def test_a_run_is_read_without_tensorflow(tmp_path):
    tiny_bert.save_run(str(tmp_path), "classification")
    code = (
        "import sys\n"
        "from bert_pruning.commands import shrink, tickets\n"
        "from bert_pruning.compression import costs, surgery\n"
        "from bert_pruning.modeling.checkpoints import load_checkpoint\n"
        f"load_checkpoint({str(tmp_path)!r})\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_path_is_named(tmp_path):
    path = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"no checkpoint {path}"):
        load_checkpoint(path)


def test_directory_of_something_else_says_what_it_holds(tmp_path):
    with pytest.raises(UserError, match="It holds: nothing"):
        load_checkpoint(str(tmp_path))
    (tmp_path / "train.tsv").touch()
    with pytest.raises(UserError, match=r"config.json.*train.tsv"):
        load_checkpoint(str(tmp_path))


def test_file_instead_of_its_directory_is_refused(saved):
    directory, weights_file = saved
    with pytest.raises(UserError, match="Pass the checkpoint's directory"):
        load_checkpoint(str(directory / weights_file))


def test_each_missing_file_is_named(saved):
    directory, _ = saved
    names = os.listdir(directory)
    for name in names:
        if name == "tokenizer_config.json":
            continue
        moved = directory.parent / name
        (directory / name).rename(moved)
        with pytest.raises(UserError) as error:
            load_checkpoint(str(directory))
        assert name in str(error.value)
        for other in names:
            if "data-" not in name and other != name:
                assert other in str(error.value)
        moved.rename(directory / name)
    load_checkpoint(str(directory))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_weights_are_named(saved, share):
    directory, weights_file = saved
    path = directory / weights_file
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="truncated.*Copy or download") as error:
        load_checkpoint(str(directory))
    assert weights_file.split(".data")[0] in str(error.value)


@pytest.mark.parametrize("layout", ["torch_zip.bin", "torch_stream.bin"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_torch_file_is_named(tmp_path, layout, share):
    content = (GOLDENS / layout).read_bytes()
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=f"{path} is truncated"):
        read_torch_tensors(str(path))


def test_truncated_official_index_is_named(tmp_path):
    config = tiny_bert.tiny_config(**OFFICIAL)
    weights = tiny_bert.random_weights(config)
    save_official(str(tmp_path), config, weights, tiny_bert.vocabulary())
    path = tmp_path / "bert_model.ckpt.index"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"bert_model.ckpt.* is truncated"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bert_pruning": None}, "bert_pruning .* Received: null"),
        ({"bert_pruning": []}, "bert_pruning "),
        ({"bert_pruning": {"config": None}}, r"bert_pruning\.config "),
        ({"bert_pruning": {"config": {}}}, "lacks vocab_size, .*: none"),
        ({"bert_pruning": {"task": "MRPC"}}, r"bert_pruning\.task .*MRPC"),
        ({"id2label": {"0": "no", "one": "yes"}}, "id2label .*: 0, one"),
        ({"id2label": ["no", "yes"]}, "id2label "),
        ({"hidden_act": []}, r"hidden_act .*: \[\]"),
    ],
)
def test_config_of_other_types_is_named(tmp_path, change, message):
    config = tiny_bert.tiny_config()
    arrays = huggingface_arrays(config, tiny_bert.random_weights(config))
    write_huggingface(tmp_path, config, arrays)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        load_checkpoint(str(tmp_path))


def test_official_config_of_other_types_is_named(tmp_path):
    config = tiny_bert.tiny_config(**OFFICIAL)
    weights = tiny_bert.random_weights(config)
    save_official(str(tmp_path), config, weights, tiny_bert.vocabulary())
    path = tmp_path / "bert_config.json"
    path.write_text(json.dumps({**config.to_official(), "hidden_act": 5}))
    with pytest.raises(UserError, match=f"{path}: hidden_act .*: 5"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": None}, "model in PATH"),
        ({"model": {"vocab": ["a"]}}, r"model\.vocab in PATH"),
        ({"added_tokens": [{"id": 1}]}, "added_tokens in PATH .*content"),
        ({"added_tokens": ["a"]}, "added_tokens in PATH"),
        ({"normalizer": ["lower"]}, "normalizer in PATH"),
    ],
)
def test_tokenizer_of_other_types_is_named(tmp_path, change, message):
    config = tiny_bert.tiny_config()
    arrays = huggingface_arrays(config, tiny_bert.random_weights(config))
    write_huggingface(tmp_path, config, arrays)
    (tmp_path / "vocab.txt").unlink()
    ids = {token: i for i, token in enumerate(tiny_bert.vocabulary())}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": ids}, **change}))
    with pytest.raises(UserError, match=message.replace("PATH", str(path))):
        load_checkpoint(str(tmp_path))


def test_index_without_its_shards_is_named(tmp_path):
    config = tiny_bert.tiny_config()
    arrays = huggingface_arrays(config, tiny_bert.random_weights(config))
    write_huggingface(tmp_path, config, arrays)
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": null}')
    with pytest.raises(UserError, match=f"weight_map in {path}"):
        load_checkpoint(str(tmp_path))


def test_truncated_config_is_named(saved):
    directory, _ = saved
    for name in ("config.json", "bert_config.json"):
        path = directory / name
        if path.exists():
            path.write_text(path.read_text()[:30])
    with pytest.raises(UserError, match="config.json is not JSON"):
        load_checkpoint(str(directory))


@pytest.mark.parametrize("size", [0, 19, 21])
def test_vocabulary_of_another_size_is_refused(saved, size):
    directory, _ = saved
    words = "".join(f"w{i}\n" for i in range(size))
    (directory / "vocab.txt").write_text(words)
    message = f"has {size} entries, .* 20" if size else "vocab.txt is empty"
    with pytest.raises(UserError, match=message):
        load_checkpoint(str(directory))


def test_vocabulary_is_split_at_newlines_only(saved):
    directory, _ = saved
    words = [f"w{i}" for i in range(18)] + ["a\u2028b", "e\u0301 "]
    (directory / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    vocabulary = load_checkpoint(str(directory)).vocabulary
    assert vocabulary[18:] == ("a\u2028b", "e\u0301")


@pytest.mark.parametrize("file_format", ["official", "huggingface"])
def test_missing_surplus_and_misshapen_weights_are_named(tmp_path, file_format):
    config = tiny_bert.tiny_config(**OFFICIAL)
    weights = tiny_bert.random_weights(config)
    arrays = stored_weights(config, weights, file_format)
    write = write_official
    if file_format == "huggingface":
        write = write_huggingface
    names = [name for name in arrays if "encoder" in name]
    cases = [
        ({names[3]: None}, f"lacks {names[3]}"),
        (dict.fromkeys(names[:7]), "and 2 more"),
        ({"bert.encoder.layer.2.x": names[0]}, r"bert.encoder.layer.2.x"),
        ({names[0]: "wide"}, f"{names[0]} is .* instead of"),
        ({names[-1]: "flat"}, f"{names[-1]} is .* instead of"),
    ]
    for i, (change, message) in enumerate(cases):
        changed = dict(arrays)
        for name, value in change.items():
            if value is None:
                del changed[name]
            elif value in changed:
                changed[name] = changed[value]
            elif value == "wide":
                changed[name] = np.zeros((8, 9), np.float32)
            else:
                changed[name] = np.zeros((1, 8), np.float32)
        write(tmp_path / str(i), config, changed)
        with pytest.raises(UserError, match=message):
            load_checkpoint(str(tmp_path / str(i)))


def test_configuration_of_another_depth_is_refused(tmp_path):
    config = tiny_bert.tiny_config(**OFFICIAL)
    weights = tiny_bert.random_weights(config)
    save_official(str(tmp_path), config, weights, tiny_bert.vocabulary())
    path = tmp_path / "bert_config.json"
    content = path.read_text()
    for depth, message in (
        (1, "layer_1.* and 11 more"),
        (3, "lacks .*layer_2"),
    ):
        values = {**json.loads(content), "num_hidden_layers": depth}
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match=message):
            load_checkpoint(str(tmp_path))


def test_half_a_head_is_refused(tmp_path):
    config = tiny_bert.tiny_config()
    weights = tiny_bert.random_weights(config, num_outputs=2)
    arrays = huggingface_arrays(config, weights)
    for name in ("classifier.bias", "bert.pooler.dense.weight"):
        rest = {n: values for n, values in arrays.items() if n != name}
        write_huggingface(tmp_path, config, rest)
        with pytest.raises(UserError, match=f"lacks {name}"):
            load_checkpoint(str(tmp_path))


# === Writing ===


def test_weights_that_do_not_fit_are_not_saved(tmp_path):
    config = tiny_bert.tiny_config()
    weights = tiny_bert.random_weights(config, num_outputs=2)
    vocabulary = tiny_bert.vocabulary()
    lacking = {n: w for n, w in weights.items() if n != "layer_1_key/bias"}
    strange = {**weights, "layer_7_key/bias": weights["layer_1_key/bias"]}
    wrong = {**weights, "layer_1_key/bias": np.zeros(9, np.float32)}
    for changed in (lacking, strange, wrong):
        with pytest.raises(UserError, match="layer_[17]_key/bias"):
            save_huggingface(str(tmp_path), config, changed, vocabulary, True)
    with pytest.raises(UserError, match="2 outputs.*labels a, b, c"):
        task = {"labels": ["a", "b", "c"]}
        save_huggingface(str(tmp_path), config, weights, vocabulary, True, task)
    with pytest.raises(UserError, match="19 entries"):
        save_huggingface(str(tmp_path), config, weights, vocabulary[1:], True)
    assert os.listdir(tmp_path) == []


def test_saving_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    path = str(tmp_path / "file" / "model")
    config = tiny_bert.tiny_config(**OFFICIAL)
    weights = tiny_bert.random_weights(config)
    for save in (
        lambda *args: save_huggingface(*args, True),
        save_official,
    ):
        with pytest.raises(UserError, match=f"Cannot write .*{path}"):
            save(path, config, weights, tiny_bert.vocabulary())


@pytest.fixture
def read_only_dir():
    """A directory that this process may not write to, root or not."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield directory
        finally:
            os.seteuid(user)
            os.chmod(directory, 0o755)


def test_read_only_directory_is_refused(read_only_dir):
    config = tiny_bert.tiny_config(**OFFICIAL)
    weights = tiny_bert.random_weights(config)
    args = (read_only_dir, config, weights, tiny_bert.vocabulary())
    with pytest.raises(UserError, match=f"Cannot write .*{read_only_dir}"):
        save_huggingface(*args, True)
    with pytest.raises(UserError, match=f"Cannot write .*{read_only_dir}"):
        save_official(*args)
    assert os.listdir(read_only_dir) == []


def test_full_disk_leaves_the_old_checkpoint(saved):
    directory, _ = saved
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    checkpoint = load_checkpoint(str(directory))
    weights = {n: w + 1 for n, w in checkpoint.weights.items()}
    args = (str(directory), checkpoint.config, weights, checkpoint.vocabulary)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        with pytest.raises(UserError, match=f"Cannot write .*{directory}"):
            if checkpoint.source == "official":
                save_official(*args)
            else:
                save_huggingface(*args, True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert before == {p.name: p.read_bytes() for p in directory.iterdir()}
    check_same(load_checkpoint(str(directory)).weights, checkpoint.weights)


def test_saving_again_replaces_and_leaves_other_files(saved):
    directory, weights_file = saved
    (directory / "metrics.jsonl").write_text("{}\n")
    checkpoint = load_checkpoint(str(directory))
    weights = {n: w + 1 for n, w in checkpoint.weights.items()}
    args = (str(directory), checkpoint.config, weights, checkpoint.vocabulary)
    names = sorted(os.listdir(directory))
    old = (directory / weights_file).read_bytes()
    with open(directory / weights_file, "rb") as reader:
        if checkpoint.source == "official":
            save_official(*args)
        else:
            save_huggingface(*args, True)
        # Who had it open keeps the old file, whole.
        assert reader.read() == old
    assert sorted(os.listdir(directory)) == names
    check_same(load_checkpoint(str(directory)).weights, weights)
