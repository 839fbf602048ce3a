"""The layout in which weights of 8 bits are stored."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_bert
from tiny_int8 import CONFIG
from tiny_int8 import logits_of
from tiny_int8 import normal
from tiny_int8 import observed_weights

from bert_pruning.errors import UserError
from bert_pruning.modeling import int_quantized
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.modeling.checkpoints import save_huggingface
from bert_pruning.modeling.huggingface import Storage
from bert_pruning.modeling.mapping import stored_weights
from bert_pruning.modeling.quantization import Quantization
from bert_pruning.modeling.quantization import from_int8
from bert_pruning.modeling.quantization import to_int8

QUERY = "bert.encoder.layer.0.attention.self.query.weight"
TABLE = "bert.embeddings.word_embeddings.weight"


def write(directory, config, weights, storage):
    directory.mkdir()
    save_huggingface(
        *(str(directory), config, weights, tiny_bert.vocabulary(), True),
        storage=storage,
    )
    path = directory / "model.safetensors"
    values = json.loads((directory / "config.json").read_text())
    return safetensors.numpy.load_file(path), values["quantization_config"]


def sparse_weights(config, zeros=0.9):
    weights = observed_weights(config)
    random = np.random.default_rng(0)
    for name, array in weights.items():
        if name.startswith("layer_") and name.endswith("/kernel"):
            weights[name] = array * (random.random(array.shape) >= zeros)
    return weights


def quantized(config, weights):
    stored = stored_weights(config, weights, "huggingface")
    return stored, int_quantized.quantize(config, weights, stored)


@pytest.mark.parametrize(
    ("granularity", "shape"), [("per_channel", (8, 1)), ("per_tensor", (1,))]
)
def test_the_layout_is_that_of_compressed_tensors(granularity, shape):
    config = dataclasses.replace(
        CONFIG, quantization=Quantization(granularity, embeddings=True)
    )
    stored, found = quantized(config, observed_weights(config))
    assert found[QUERY].dtype == np.int8
    assert found[QUERY].shape == (8, 8)
    assert found[f"{QUERY}_scale"].shape == shape
    assert found[f"{TABLE}_scale"].shape == (1,)
    for name in (QUERY, TABLE):
        scale = found[f"{name}_scale"]
        assert scale.dtype == np.float32
        # In one row, or in all, the largest is 127 times the scale.
        axis = None if scale.ndim == 1 else 1
        assert (np.abs(found[name]).max(axis) == 127).all()
        error = np.abs(found[name] * scale - stored[name])
        assert (error <= 0.5001 * scale).all()
    assert found["classifier.weight"] is stored["classifier.weight"]
    assert found["classifier.weight"].dtype == np.float32
    assert int_quantized.quantized_layers(found)[
        QUERY.removesuffix(".weight")
    ] == ("channel" if len(shape) == 2 else "tensor")


@pytest.mark.parametrize("kept", [False, True])
def test_levels_and_scales_survive_to_the_bit(kept):
    name, quantization = "pooler/kernel", Quantization()
    weights = normal(64, 2000) * np.exp(normal(2000, seed=1) * 5)
    weights[:, 7] = 0.0
    levels, scale = to_int8(name, weights, quantization)
    again = from_int8(levels, scale, kept)
    assert (again[:, :7] == 0).any() != kept
    assert again.dtype == np.float32
    # Those that are kept and rounded to zero become a quarter of a level.
    bound = 0.7501 if kept else 0.5001
    assert (np.abs(again - weights) <= bound * scale).all()
    found, found_scale = to_int8(name, again, quantization)
    np.testing.assert_array_equal(found, levels)
    # The scale of nothing but zeros is of no account.
    kept = np.arange(2000) != 7
    np.testing.assert_array_equal(found_scale[0, kept], scale[0, kept])
    assert not again[:, 7].any()


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_what_is_rounded_to_zero_is_not_taken_for_pruned(granularity, tmp_path):
    config = dataclasses.replace(CONFIG, quantization=Quantization(granularity))
    weights = sparse_weights(config, zeros=0.5)
    # Most of a column rounds to zero.
    weights["layer_0_query/kernel"][1:, 3] = 1e-4
    weights["pooler/kernel"][1:, 2] = 1e-4
    storage = Storage("int8", is_packed=True)
    write(tmp_path / "file", config, weights, storage)
    loaded = load_checkpoint(str(tmp_path / "file")).weights
    for name in ("layer_0_query/kernel", "layer_1_output/kernel"):
        np.testing.assert_array_equal(loaded[name] == 0, weights[name] == 0)
    # The pooler is dense.
    assert loaded["pooler/kernel"][1:, 2].all()
    for name, array in weights.items():
        found = to_int8(name, array, config.quantization)
        again = to_int8(name, loaded[name], config.quantization)
        if found is not None:
            np.testing.assert_array_equal(again[0], found[0])
    # In a file that others have written, without ranges, what is zero is so.
    arrays = safetensors.numpy.load_file(tmp_path / "file/model.safetensors")
    arrays = {n: a for n, a in arrays.items() if not n.endswith("_range")}
    arrays = {n: a for n, a in arrays.items() if not n.endswith("_limits")}
    safetensors.numpy.save_file(arrays, tmp_path / "file/model.safetensors")
    foreign = load_checkpoint(str(tmp_path / "file")).weights
    assert not foreign["pooler/kernel"][1:, 2].any()


@pytest.mark.parametrize(
    "storage", [{"quantization": "int8"}, {"quantization": "dynamic_int8"}]
)
def test_storage_that_there_is_not_is_refused(storage):
    with pytest.raises(UserError, match="none or float16. Received"):
        Storage(**storage)


def test_few_zeros_are_kept_apart_though_that_takes_bytes(tmp_path):
    weights = observed_weights(CONFIG)
    weights["layer_0_query/kernel"][2, 3] = 0.0
    storage = Storage("int8", is_packed=True)
    arrays, _ = write(tmp_path / "file", CONFIG, weights, storage)
    assert QUERY not in arrays
    loaded = load_checkpoint(str(tmp_path / "file")).weights
    zeros = loaded["layer_0_query/kernel"] == 0
    assert zeros[2, 3] and zeros.sum() == 1


@pytest.mark.parametrize(
    ("config", "quantization"),
    [
        (CONFIG, Quantization()),
        (
            tiny_bert.uneven_config(),
            Quantization("per_tensor", embeddings=True),
        ),
        (CONFIG, Quantization(layers=("layer_0_*",))),
    ],
)
def test_a_file_in_8_bits_computes_what_the_model_does(
    config, quantization, tmp_path
):
    config = dataclasses.replace(config, quantization=quantization)
    weights = sparse_weights(config)
    storage = Storage("int8", is_packed=True)
    write(tmp_path / "file", config, weights, storage)
    loaded = load_checkpoint(str(tmp_path / "file"))
    assert loaded.config == config
    inputs = tiny_bert.random_inputs(config, 4, 7)
    np.testing.assert_array_equal(
        logits_of(config, weights, inputs),
        logits_of(loaded.config, loaded.weights, inputs),
    )
    # What is saved again is the same file.
    again = tmp_path / "again"
    write(again, loaded.config, loaded.weights, storage)
    for name in ("model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (
            tmp_path / "file" / name
        ).read_bytes()


def test_zeros_take_a_bit_and_the_others_a_byte(tmp_path):
    shape = {"hidden_size": 64, "intermediate_size": 512}
    config = tiny_bert.tiny_config(quantization=Quantization(), **shape)
    weights = sparse_weights(config)
    arrays, values = write(
        *(tmp_path / "file", config, weights, Storage("int8", is_packed=True)),
    )
    stem = QUERY.removesuffix(".weight")
    assert QUERY not in arrays
    assert arrays[f"{stem}.compressed"].dtype == np.int8
    kept = np.count_nonzero(weights["layer_0_query/kernel"])
    assert arrays[f"{stem}.compressed"].size == kept
    assert arrays[f"{stem}.bitmask"].size == 64 * 64 / 8
    assert values["format"] == "int-quantized"
    group = values["config_groups"]["channel"]
    assert group["weights"]["num_bits"] == 8
    assert group["weights"]["strategy"] == "channel"
    assert stem in group["targets"] and "classifier" in values["ignore"]
    assert values["sparsity_config"]["format"] == "sparse-bitmask"
    # A fourth of what the same weights take in float32, bits aside.
    plain, _ = write(
        tmp_path / "plain", config, weights, Storage(is_packed=True)
    )
    parts = [
        sum(
            array.nbytes
            for name, array in each.items()
            if name.endswith(".compressed")
        )
        for each in (arrays, plain)
    ]
    assert 0.23 < parts[0] / parts[1] <= 0.25


def test_without_zeros_the_weights_are_in_8_bits_all_the_same(tmp_path):
    weights = observed_weights(CONFIG)
    arrays, values = write(
        *(tmp_path / "file", CONFIG, weights, Storage("int8", is_packed=True)),
    )
    assert arrays[QUERY].dtype == np.int8
    assert values["format"] == "int-quantized"
    assert "sparsity_config" not in values
    assert load_checkpoint(str(tmp_path / "file")).config == CONFIG


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (f"{QUERY}_scale", np.ones((3, 1), np.float32)),
        (f"{QUERY}_scale", np.ones((8, 1), np.int32)),
        (f"{QUERY}_scale", np.full((8, 1), np.nan, np.float32)),
        (f"{QUERY}_scale", np.zeros((8, 1), np.float32)),
        (f"{QUERY}_scale", np.full((8, 1), -1.0, np.float32)),
        (QUERY, np.ones((8, 8), np.float32)),
        (QUERY, np.int8(3)),
        (QUERY, None),
    ],
)
def test_parts_that_do_not_fit_are_an_error(name, value):
    _, arrays = quantized(CONFIG, observed_weights(CONFIG))
    arrays[name] = value
    if value is None:
        del arrays[name]
    with pytest.raises(UserError, match=rf"{QUERY}.*model.safe.*again"):
        int_quantized.dequantize(arrays, {}, "model.safetensors")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_scales_may_be_halves(dtype):
    _, arrays = quantized(CONFIG, observed_weights(CONFIG))
    scale = arrays[f"{QUERY}_scale"].astype(dtype)
    arrays[f"{QUERY}_scale"] = scale
    found = int_quantized.dequantize(arrays, {}, "file")[QUERY]
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, arrays[QUERY] * scale.astype(np.float32), rtol=1e-6
    )


def test_a_lost_scale_is_told(tmp_path):
    write(
        *(tmp_path / "file", CONFIG, observed_weights(CONFIG)),
        Storage("int8", is_packed=True),
    )
    path = tmp_path / "file" / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    del arrays[f"{QUERY}_scale"]
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(UserError, match=f"int8, without a {QUERY}_scale"):
        load_checkpoint(str(tmp_path / "file"))


def test_the_library_reads_it(tmp_path):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("compressed_tensors")
    # Later versions have dropped the layout of zeros.
    pytest.importorskip(
        "compressed_tensors.compressors.sparse_compressors.sparse_bitmask"
    )
    forward = pytest.importorskip(
        "compressed_tensors.quantization.lifecycle.forward"
    )
    quantization = Quantization(embeddings=True)
    config = tiny_bert.tiny_config(hidden_size=64, quantization=quantization)
    weights = sparse_weights(config)
    storage = Storage("int8", is_packed=True)
    _, values = write(tmp_path / "file", config, weights, storage)
    compressor = library.ModelCompressor.from_compression_config(values)
    read = dict(
        compressor.sparsity_compressor.decompress(str(tmp_path / "file"))
    )
    _, expected = quantized(config, weights)
    restored = int_quantized.dequantize(expected, {}, "file")
    rounded = {
        name: group.weights
        for group in compressor.quantization_config.config_groups.values()
        for name in group.targets
    }
    assert rounded.keys() == int_quantized.quantized_layers(expected).keys()
    for name, scheme in rounded.items():
        levels = read[f"{name}.weight"]
        assert levels.dtype == torch.int8
        np.testing.assert_array_equal(levels, expected[f"{name}.weight"])
        found = forward.dequantize(
            levels, read[f"{name}.weight_scale"], args=scheme
        )
        np.testing.assert_allclose(found, restored[f"{name}.weight"], rtol=1e-6)
