"""The shapes and steps of iterative pruning are those of the paper."""

import dataclasses

import pytest
import tiny_bert

from bert_pruning.compression.costs import parameters
from bert_pruning.compression.shrinkage import depth_shrinkage
from bert_pruning.compression.shrinkage import width_shrinkage
from bert_pruning.errors import UserError
from bert_pruning.modeling.config import BertConfig

BERT_BASE = BertConfig.uniform(
    vocab_size=30522, hidden_size=768, num_layers=12, num_heads=12
)


def test_width_falls_as_in_rosita():
    eight_layers = depth_shrinkage(BERT_BASE, 100, 8).shapes[-1]
    found = width_shrinkage(eight_layers, 1000, 2, 512, 128)
    assert found.interval == 100
    shapes = found.shapes[1:]
    assert [s.num_heads[0] for s in shapes] == list(range(11, 1, -1))
    neurons = [s.intermediate_sizes[0] for s in shapes]
    assert neurons == list(range(2816, 511, -256))
    assert [s.embedding_rank for s in shapes] == list(range(704, 127, -64))
    # The parameters after each cut, in millions.
    sizes = [round(parameters(s, 2) / 1e6, 2) for s in shapes]
    assert sizes[0] == 75.00
    assert sizes[4] == 48.10
    assert sizes[9] == 14.47
    assert parameters(shapes[-1], 2) == 14_474_754


def test_depth_falls_from_the_top():
    found = depth_shrinkage(BERT_BASE, 10, 8)
    assert [s.num_layers for s in found.shapes] == [12, 11, 10, 9, 8]
    sizes = [round(parameters(s, 2) / 1e6, 2) for s in found.shapes]
    assert sizes == [109.48, 102.40, 95.31, 88.22, 81.13]
    assert found.interval == 2


def test_layers_of_a_deeper_cut_are_the_lower_ones():
    uneven = tiny_bert.uneven_config()
    found = depth_shrinkage(uneven, 10, 1)
    assert found.shapes[1].num_heads == (2,)
    assert found.shapes[1].intermediate_sizes == (5,)


def test_cuts_fall_due_one_by_one():
    found = depth_shrinkage(BERT_BASE, 11, 10)
    assert found.interval == 5
    assert [step for step in range(1, 30) if found.is_due(step)] == [5, 10]
    assert [found.cuts_at(step) for step in (0, 4, 5, 9, 10, 99)] == [
        *(0, 0, 1, 1, 2, 2)
    ]
    assert [found.is_final(step) for step in (9, 10, 11)] == [
        *(False, True, True)
    ]
    assert found.shape_at(7).num_layers == 11


def test_what_is_not_asked_for_stays():
    found = width_shrinkage(BERT_BASE, 100, 6)
    assert found.shapes[-1] == dataclasses.replace(
        BERT_BASE, num_heads=(6,) * 12
    )


def test_ranks_fall_from_where_they_are():
    factorized = dataclasses.replace(BERT_BASE, embedding_rank=100)
    found = width_shrinkage(factorized, 100, 8, rank=60)
    ranks = [shape.embedding_rank for shape in found.shapes]
    assert ranks == [100, 90, 80, 70, 60]
    assert width_shrinkage(factorized, 9, 11).shapes[1].embedding_rank == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 0), "--keep_heads must lie in 1 to 11. Received: 0"),
        ((100, 12), "--keep_heads must lie in 1 to 11. Received: 12"),
        ((100, 2, 3073), "--ffn_hidden_dim must lie in 1 to 3072"),
        ((100, 2, 512, 769), "--emb_hidden_dim must lie in 1 to 768"),
        ((9, 2), "10 cuts need.*Received: 9 until --pruning_end"),
    ],
)
def test_impossible_widths_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        width_shrinkage(BERT_BASE, *arguments)


def test_uneven_layers_have_no_common_width():
    with pytest.raises(UserError, match=r"alike.*\[2, 1\]"):
        width_shrinkage(tiny_bert.uneven_config(), 10, 1)


@pytest.mark.parametrize("num_layers", [0, 12, 13])
def test_impossible_depths_are_refused(num_layers):
    with pytest.raises(UserError, match=f"1 to 11. Received: {num_layers}"):
        depth_shrinkage(BERT_BASE, 100, num_layers)
