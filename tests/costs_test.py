"""Every ratio is right, and says what it is over."""

import dataclasses
import gzip

import numpy as np
import pytest
import tiny_bert

from bert_pruning.compression import costs
from bert_pruning.compression.costs import Count
from bert_pruning.modeling import bert
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.names import weight_table

BERT_BASE = BertConfig.uniform(
    vocab_size=30522, hidden_size=768, num_layers=12, num_heads=12
)


def bert_base_sizes():
    """Weights of BERT-base with two labels, by canonical name."""
    return {
        row.name: int(np.prod([n or 2 for n in row.shape]))
        for row in weight_table(BERT_BASE, "huggingface")
        if row.group in (None, "pooler", "classifier")
    }


def test_an_arrays_zeros_are_counted():
    array = np.array([[0.0, 1.0, -0.0], [2.0, 1e-38, np.nan]], np.float32)
    count = costs.count(array)
    assert count == Count(size=6, zeros=2)
    assert count.kept == 4
    assert count.sparsity == 2 / 6
    assert count.ratio == 1.5


def test_counts_add_up():
    assert Count(4, 1) + Count(6, 5) == Count(10, 6)
    assert costs.total([np.zeros(3), np.ones((2, 2))]) == Count(7, 3)


def test_nothing_and_all_zeros_have_a_sparsity():
    assert costs.total([]).sparsity == 0.0
    assert costs.count(np.zeros(3)).sparsity == 1.0
    assert costs.count(np.zeros(3)).ratio == float("inf")


def test_bert_base_at_95_percent_has_the_papers_ratios():
    sizes = bert_base_sizes()
    kernels = bert.encoder_kernels(BERT_BASE)
    kept = {768 * 768: 29_491, 768 * 3072: 117_964}
    encoder = Count(0, 0)
    for name in kernels:
        encoder += Count(sizes[name], sizes[name] - kept[sizes[name]])
    whole = encoder + Count(sum(sizes.values()) - encoder.size, 0)
    assert len(kernels) == len(set(kernels)) == 72
    assert encoder == Count(size=84_934_656, zeros=80_687_952)
    assert round(encoder.sparsity, 7) == 0.9500003
    assert round(encoder.ratio, 4) == 20.0001
    assert whole.size == 109_483_778
    assert round(whole.sparsity, 4) == 0.7370
    assert round(whole.ratio, 2) == 3.80


def test_stored_bytes_are_those_of_the_arrays_and_of_their_gzip():
    random = np.random.default_rng(0)
    arrays = [
        random.standard_normal((64, 32)).astype(np.float32),
        np.zeros((100, 7), np.float32).T,
        np.float32(3.0),
    ]
    raw, compressed = costs.stored_bytes(arrays)
    data = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    assert raw == len(data)
    # Gzip adds a header of 12 bytes at most to the same stream.
    assert 0 <= len(gzip.compress(data, 6)) - compressed <= 12


def test_zeros_are_compressed():
    dense = np.random.default_rng(0).standard_normal(10_000)
    sparse = np.where(np.arange(10_000) % 20, 0.0, dense)
    assert costs.stored_bytes([sparse])[1] < costs.stored_bytes([dense])[1] / 5


def test_packed_are_the_weights_that_are_kept_and_a_bit_for_each():
    sparse = np.zeros((10, 10), np.int8)
    sparse[0, :7] = -3
    dense = np.ones((4, 4), np.float32)
    few_zeros = np.ones(64, np.float32)
    few_zeros[:2] = 0.0
    assert costs.packed_bytes([sparse], [sparse]) == 7 + 13
    wide = sparse.astype(np.float32)
    assert costs.packed_bytes([wide], [wide]) == 7 * 4 + 13
    # What is rounded to zero is stored.
    assert costs.packed_bytes([sparse], [sparse * 0]) == 7 + 13
    # No smaller without the zeros.
    both = [dense, few_zeros]
    assert costs.packed_bytes(both, both) == 4 * (16 + 64)


def test_parameters_and_operations_are_counted_from_the_shape():
    assert costs.parameters(BERT_BASE, 2) == sum(bert_base_sizes().values())
    assert costs.parameters(BERT_BASE) == 109_483_778 - 2 * 769
    # The figures of ROSITA, for each token of 128.
    assert costs.encoder_macs(BERT_BASE, 128) / 128 == 87_293_952
    small = dataclasses.replace(
        BERT_BASE,
        num_heads=(2,) * 8,
        intermediate_sizes=(512,) * 8,
        embedding_rank=128,
    )
    assert costs.parameters(small, 2) == 14_474_754
    assert costs.encoder_macs(small, 128) / 128 == 9_699_328


def test_units_and_what_is_left_cost_a_layer():
    head, neuron, fixed = costs.unit_costs(BERT_BASE, "parameters")
    sizes = bert_base_sizes()
    layers = sum(n for name, n in sizes.items() if name.startswith("layer_"))
    assert fixed + 144 * head + 12 * 3072 * neuron == layers


@pytest.mark.parametrize(
    ("layers", "hidden", "size", "sparsity", "expected"),
    [
        (12, 768, 84_934_656, 0.85, (26.7, 25.7, 14.3, 4.0, 11.8)),
        (12, 768, 84_934_656, 0.90, (40.0, 37.9, 17.4, 4.2, 13.3)),
        (24, 1024, 301_989_888, 0.90, (40.0, 38.4, 17.5, 8.4, 21.1)),
    ],
)
def test_the_40x_of_int8_and_zeros_is_one_of_five_figures(
    layers, hidden, size, sparsity, expected
):
    config = BertConfig.uniform(
        vocab_size=30522,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=hidden // 64,
    )
    kept = round(size * (1.0 - sparsity))
    found = dataclasses.astuple(costs.compression(config, kept, bits=8))
    assert found == pytest.approx(expected, abs=0.05)


def test_a_dense_float32_encoder_is_not_compressed():
    config = tiny_bert.tiny_config()
    size = costs.encoder_parameters(config)
    # Six biases, of them one of 12, and the four vectors of two norms.
    kernels = size - config.num_layers * (9 * 8 + 12)
    found = costs.compression(config, kernels, bits=32)
    assert found.kernels == 1.0
    assert found.layers == 1.0
    assert found.indexed < 1.0
