"""The layout in which sparse matrices are stored."""

import json

import numpy as np
import pytest
import safetensors.numpy
import tiny_bert

from bert_pruning.errors import UserError
from bert_pruning.modeling import bitmask
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.modeling.checkpoints import save_huggingface
from bert_pruning.modeling.huggingface import Storage


def sparse(*shape, zeros=0.9, seed=0):
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape).astype(np.float32)
    return values * (random.random(shape) >= zeros)


def test_the_layout_is_that_of_compressed_tensors():
    matrix = np.zeros((3, 10), np.float32)
    matrix[0, [0, 9]] = 1.5, -2.0
    matrix[2, 3] = 4.0
    packed = bitmask.pack({"x.weight": matrix, "x.bias": matrix[0]})
    np.testing.assert_array_equal(packed["x.compressed"], [1.5, -2.0, 4.0])
    # The lowest bit is the first column; two bytes hold ten columns.
    np.testing.assert_array_equal(
        packed["x.bitmask"], [[0b1, 0b10], [0, 0], [0b1000, 0]]
    )
    np.testing.assert_array_equal(packed["x.row_offsets"], [0, 2, 2])
    np.testing.assert_array_equal(packed["x.shape"], [3, 10])
    assert [a.dtype for a in packed.values()] == [
        *(np.float32, np.uint8, np.int64, np.int64),
        np.float32,
    ]
    assert packed["x.bias"] is not None and "x.weight" not in packed


def test_the_library_reads_it_and_we_read_what_it_writes(tmp_path):
    torch = pytest.importorskip("torch")
    # Later versions have dropped the layout.
    library = pytest.importorskip(
        "compressed_tensors.compressors.sparse_compressors.sparse_bitmask"
    )
    config = pytest.importorskip("compressed_tensors.config")
    compressor = library.BitmaskCompressor(config=config.BitmaskConfig())
    arrays = {"x.y.weight": sparse(13, 21), "x.y.bias": sparse(13)}
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(bitmask.pack(arrays), path)
    theirs = dict(compressor.decompress(str(path)))
    assert theirs.keys() == arrays.keys()
    tensors = {name: torch.from_numpy(a) for name, a in arrays.items()}
    written = compressor.compress(tensors)
    ours = bitmask.unpack({n: t.numpy() for n, t in written.items()}, "file")
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name].numpy(), array)
        np.testing.assert_array_equal(ours[name], array)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_packing_and_unpacking_change_nothing(dtype):
    arrays = {
        "a.weight": sparse(16, 24).astype(dtype),
        "dense.weight": np.ones((8, 8), dtype),
        "zeros.weight": np.zeros((64, 8), dtype),
        "norm.weight": np.ones(5, dtype),
        "a.bias": np.zeros(16, dtype),
    }
    packed = bitmask.pack(arrays)
    assert bitmask.packed_layers(packed) == ["a", "zeros"]
    found = bitmask.unpack(packed, "file")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], array)


def test_95_percent_zeros_take_their_theoretical_bytes():
    matrix = sparse(512, 512, zeros=0.95)
    packed = bitmask.pack({"x.weight": matrix})
    size = sum(array.nbytes for array in packed.values())
    theory = 4 * np.count_nonzero(matrix) + matrix.size / 8
    assert theory < size < 1.05 * theory
    assert size < 0.09 * matrix.nbytes


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("compressed", np.ones(3, np.float32)),
        ("bitmask", np.zeros((16, 2), np.uint8)),
        ("shape", np.array([16, 40])),
        ("shape", np.array([16])),
        ("compressed", np.ones((8, 8), np.float32)),
        ("compressed", np.float32(1.0)),
        ("bitmask", np.zeros((16, 3), np.int8)),
        ("shape", np.int64(16)),
        ("shape", np.array([16.0, np.nan])),
        ("shape", None),
        ("bitmask", None),
    ],
)
def test_parts_that_do_not_fit_are_an_error(part, value):
    packed = bitmask.pack({"x.weight": sparse(16, 24)})
    packed[f"x.{part}"] = value
    if value is None:
        del packed[f"x.{part}"]
    with pytest.raises(UserError, match=r"model.safetensors.*again"):
        bitmask.unpack(packed, "model.safetensors")


def test_a_sparse_checkpoint_is_small_and_loads_as_it_was(tmp_path):
    config = tiny_bert.tiny_config(hidden_size=64, intermediate_size=256)
    weights = tiny_bert.random_weights(config, num_outputs=2)
    for name, array in weights.items():
        if name.startswith("layer_") and name.endswith("/kernel"):
            # A mask makes negative zeros of negative weights.
            weights[name] = sparse(*array.shape, zeros=0.95) * np.float32(-1)
    sizes, files = {}, []
    for storage in (Storage(), Storage(is_packed=True)):
        folder = tmp_path / str(storage.is_packed)
        save_huggingface(
            *(str(folder), config, weights, tiny_bert.vocabulary(), True),
            storage=storage,
        )
        loaded = load_checkpoint(str(folder)).weights
        for name, array in weights.items():
            np.testing.assert_array_equal(loaded[name], array)
        files.append({name: loaded[name].tobytes() for name in loaded})
        sizes[storage] = (folder / "model.safetensors").stat().st_size
    # To the bit.
    assert files[0] == files[1]
    plain, packed = sizes.values()
    assert packed < 0.25 * plain
    values = json.loads((tmp_path / "True" / "config.json").read_text())
    sparsity = values["quantization_config"]["sparsity_config"]
    assert sparsity["format"] == "sparse-bitmask"
    assert sparsity["global_sparsity"] == pytest.approx(0.95, abs=0.01)
    assert "classifier" in sparsity["ignore"]
    assert "bert.encoder.layer.0.output.dense" not in sparsity["ignore"]
