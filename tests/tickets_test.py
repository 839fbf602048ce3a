"""Tickets leave out what they should, and a head stays in every layer."""

import itertools

import numpy as np
import pytest

from bert_pruning.compression import costs
from bert_pruning.compression.importance import Scores
from bert_pruning.compression.importance import random_scores
from bert_pruning.compression.tickets import Level
from bert_pruning.compression.tickets import complement
from bert_pruning.compression.tickets import draw_ticket
from bert_pruning.compression.tickets import union
from bert_pruning.errors import UserError
from bert_pruning.modeling.config import BertConfig

BASE = BertConfig.uniform(
    vocab_size=30522, hidden_size=768, num_layers=12, num_heads=12
)
LARGE = BertConfig.uniform(
    vocab_size=30522, hidden_size=1024, num_layers=24, num_heads=16
)
CONFIG = BertConfig.uniform(
    vocab_size=20,
    hidden_size=16,
    num_layers=3,
    num_heads=4,
    intermediate_size=3,
)
# The first layer's are larger, but each layer is scaled to the norm 1.
SCORES = Scores(
    heads=([10.0, 20.0, 30.0, 40.0], [4.0, 3.0, 2.0, 1.0], [1.0, 1.1, 1.2, 5]),
    neurons=([1.0, 1.0, 1.0],) * 3,
    blocks=[2.0, 9.0, 1.0],
)


def gone(ticket):
    """The heads and blocks that a ticket leaves out."""
    heads = {
        (layer, head)
        for layer, size in enumerate(ticket.num_heads)
        for head in set(range(size)) - set(ticket.heads[layer])
    }
    return heads, {i for i, row in enumerate(ticket.neurons) if not row}


class TestLevel:
    def test_percentages_are_the_published_pairs(self):
        found = [str(Level.parse(f"{p}", BASE)) for p in range(10, 90, 10)]
        assert found == [
            *("14/1", "28/2", "43/3", "57/4"),
            *("72/5", "86/6", "100/7", "115/8"),
        ]
        found = [str(Level.parse(f"{p}", LARGE)) for p in (5, 10, 20, 30, 40)]
        assert found == ["19/1", "38/2", "76/4", "115/6", "153/8"]

    def test_what_is_left_is_what_was_published(self):
        # Their percentages count no biases.
        for text, percent in {"14/1": 93.18, "72/5": 65.52}.items():
            ticket = draw_ticket(BASE, Level.parse(text, BASE), "random")
            left = costs.parameters(ticket.shrink(BASE), 2)
            whole = costs.parameters(BASE, 2)
            assert 100 * left / whole == pytest.approx(percent, abs=0.04)
            heads, blocks = map(int, text.split("/"))
            assert whole - left == heads * 196_800 + blocks * 4_722_432

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "A level is a percentage"),
            ("ten", "A level is a percentage"),
            ("1.2.3", "A level is a percentage"),
            (".", "A level is a percentage"),
            ("-1", "A level is a percentage"),
            ("10/0", "can lose 9 of its 12 heads"),
            ("0/4", "and 3 blocks"),
            ("100", "leaves 12 heads and 2 blocks out"),
        ],
    )
    def test_an_impossible_one_is_refused(self, text, message):
        with pytest.raises(UserError, match=message):
            Level.parse(text, CONFIG)


class TestTicket:
    def test_a_winning_one_is_without_the_lowest(self):
        ticket = draw_ticket(CONFIG, Level(4, 1), "winning", SCORES)
        # Of the norms: 0.18 0.37 .., .. 0.55 0.37 0.18, 0.19 0.20 0.22 ..
        assert gone(ticket) == ({(0, 0), (1, 3), (2, 0), (2, 1)}, {2})

    def test_a_losing_one_is_without_the_highest(self):
        ticket = draw_ticket(CONFIG, Level(3, 2), "losing", SCORES)
        assert gone(ticket) == ({(0, 3), (1, 0), (2, 3)}, {0, 1})

    @pytest.mark.parametrize("kind", ["winning", "losing", "random"])
    def test_a_head_stays_in_every_layer(self, kind):
        scores = random_scores(CONFIG, 3)
        ticket = draw_ticket(CONFIG, Level(9, 3), kind, scores)
        assert [len(row) for row in ticket.heads] == [1, 1, 1]
        shape = ticket.shrink(CONFIG)
        assert (shape.num_heads, shape.intermediate_sizes) == (
            (1, 1, 1),
            (0, 0, 0),
        )
        best = [int(np.argmax(row)) for row in scores.heads]
        if kind == "winning":
            assert [row[0] for row in ticket.heads] == best

    @pytest.mark.parametrize("kind", ["winning", "losing"])
    def test_levels_contain_each_other(self, kind):
        scores = random_scores(BASE, 0)
        levels = [Level.parse(f"{p}", BASE) for p in range(0, 100, 10)]
        found = [gone(draw_ticket(BASE, x, kind, scores)) for x in levels]
        for level, (heads, blocks) in zip(levels, found, strict=True):
            assert (len(heads), len(blocks)) == (level.heads, level.blocks)
        for fewer, more in itertools.pairwise(found):
            assert fewer[0] < more[0]
            assert fewer[1] <= more[1]

    def test_random_ones_are_drawn_without_replacement(self):
        drawn = [
            gone(draw_ticket(BASE, Level(72, 5), "random", seed=seed))
            for seed in range(20)
        ]
        assert {(len(h), len(b)) for h, b in drawn} == {(72, 5)}
        assert len({frozenset(heads) for heads, _ in drawn}) == 20
        again = gone(draw_ticket(BASE, Level(72, 5), "random", seed=7))
        assert again == drawn[7]
        # Every layer comes up, unlike in the code of the paper.
        layers = {layer for heads, _ in drawn for layer, _ in heads}
        assert layers == set(range(12))
        other = gone(draw_ticket(BASE, Level(57, 4), "random", seed=7))
        assert not other[0] < drawn[7][0]

    def test_equal_scores_are_no_trouble(self):
        scores = Scores(([1.0] * 4,) * 3, ([1.0] * 3,) * 3)
        heads, blocks = gone(draw_ticket(CONFIG, Level(9, 1), "losing", scores))
        assert (len(heads), len(blocks)) == (9, 1)

    def test_a_block_that_is_not_there_cannot_go(self):
        ticket = draw_ticket(CONFIG, Level(0, 1), "winning", SCORES)
        smaller = ticket.shrink(CONFIG)
        assert smaller.intermediate_sizes == (3, 3, 0)
        assert str(Level.parse("0/2", smaller)) == "0/2"
        assert str(Level.parse("0_2", smaller)) == "0/2"
        with pytest.raises(UserError, match="and 2 blocks"):
            Level.parse("0/3", smaller)
        again = draw_ticket(smaller, Level(0, 1), "random")
        assert again.shrink(smaller).intermediate_sizes.count(0) == 2

    @pytest.mark.parametrize(
        ("kind", "scores", "message"),
        [
            ("lucky", SCORES, "winning, losing or random. Received: 'lucky'"),
            ("winning", None, "A winning ticket needs scores"),
            ("losing", random_scores(BASE, 0), "The scores are of a model"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused(self, kind, scores, message):
        with pytest.raises(UserError, match=message):
            draw_ticket(CONFIG, Level(1, 1), kind, scores)


class TestAlgebra:
    def test_a_ticket_and_its_complement_are_the_whole(self):
        ticket = draw_ticket(CONFIG, Level(6, 3), "winning", SCORES)
        other = complement(ticket)
        assert union(ticket, other).shrink(CONFIG) == CONFIG
        assert not set(other.heads[0]) & set(ticket.heads[0])
        assert complement(other) == ticket

    def test_a_union_keeps_what_either_keeps(self):
        first = draw_ticket(CONFIG, Level(6, 2), "winning", SCORES)
        second = draw_ticket(CONFIG, Level(6, 2), "losing", SCORES)
        both = union(first, second)
        assert gone(both)[0] == gone(first)[0] & gone(second)[0]
        assert gone(both)[1] == gone(first)[1] & gone(second)[1]

    def test_two_models_cannot_be_united(self):
        with pytest.raises(UserError, match="Only structures of one model"):
            union(
                draw_ticket(CONFIG, Level(1, 1), "random"),
                draw_ticket(BASE, Level(1, 1), "random"),
            )

    def test_a_complement_of_blocks_alone_is_refused(self):
        ticket = draw_ticket(CONFIG, Level(0, 1), "winning", SCORES)
        with pytest.raises(UserError, match="must keep one head at least"):
            complement(ticket)
