"""Pairs of segments, and what of them is hidden."""

import collections

import numpy as np
import pytest

from bert_pruning.data.pretraining import Masking
from bert_pruning.data.pretraining import PairOptions
from bert_pruning.data.pretraining import build_pairs
from bert_pruning.data.pretraining import cut_sentences
from bert_pruning.errors import UserError

VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("un", "##want", "##ed", "a", "b", "c", "d", "e", "f", "##s"),
)


def make_pool(documents=4, sentences=6, seed=0):
    """Documents whose tokens tell the document, the sentence and the place."""
    random = np.random.default_rng(seed)
    return [
        [
            np.int32([1000 * d + 50 * s + i for i in range(size)])
            for s, size in enumerate(random.integers(1, 9, sentences))
        ]
        for d in range(1, documents + 1)
    ]


def all_pairs(options, runs=200, pool=None):
    pool = pool or make_pool()
    for seed in range(runs):
        random = np.random.default_rng(seed)
        for index in range(len(pool)):
            for pair in build_pairs(pool, index, options, random):
                yield index + 1, pair


# === Pairs ===


def test_segments_come_from_where_their_label_says():
    for document, pair in all_pairs(PairOptions(32)):
        assert set(pair.first // 1000) == {document}
        found = set(pair.second // 1000)
        assert len(found) == 1
        assert (found == {document}) == (not pair.is_random)


def test_true_pairs_read_on_in_the_document():
    pool = make_pool()
    texts = {
        number: np.concatenate(document).tolist()
        for number, document in enumerate(pool, 1)
    }
    seen = 0
    for document, pair in all_pairs(PairOptions(64)):
        if not pair.is_random:
            text = texts[document]
            start = text.index(pair.first[0])
            joined = [*pair.first, *pair.second]
            assert text[start : start + len(joined)] == joined
            seen += 1
    assert seen > 100


def test_no_pair_is_too_long_or_empty():
    for cuts_both_ends in (False, True):
        options = PairOptions(12, cuts_both_ends=cuts_both_ends)
        lengths = collections.Counter()
        for _, pair in all_pairs(options):
            assert len(pair.first) > 0
            assert len(pair.second) > 0
            lengths[len(pair.first) + len(pair.second)] += 1
        assert max(lengths) == options.num_tokens == 9


def test_half_of_the_pairs_are_random_where_there_is_a_choice():
    pool = make_pool(sentences=12)
    options = PairOptions(48, short_seq_probability=0.0)
    found = [pair.is_random for _, pair in all_pairs(options, pool=pool)]
    # The end of a document may be a single sentence, which leaves no choice.
    assert 0.45 < np.mean(found) < 0.75
    options = PairOptions(48, 0.0, nsp_probability=0.0)
    pairs = [pair for _, pair in all_pairs(options, pool=pool)]
    assert {len(pair.first) > 8 for pair in pairs if pair.is_random} <= {False}


def test_sentences_that_a_random_segment_displaces_are_used_again():
    pool = make_pool(documents=2, sentences=30)
    # Short, so that there are several, and nothing is cut off.
    options = PairOptions(1000, 1.0, nsp_probability=1.0)
    counts = set()
    for seed in range(20):
        random = np.random.default_rng(seed)
        pairs = list(build_pairs(pool, 0, options, random))
        found = np.concatenate([pair.first for pair in pairs])
        assert found.tolist() == np.concatenate(pool[0]).tolist()
        counts.add(len(pairs))
    assert len(counts) > 3


def test_a_document_is_short_now_and_then():
    pool = make_pool(sentences=40)
    for chance, expected in ((0.0, 0.0), (1.0, 1.0)):
        options = PairOptions(64, chance)
        shorter = [
            len(pair.first) + len(pair.second) < options.num_tokens - 9
            for _, pair in all_pairs(options, 20, pool)
        ]
        assert abs(np.mean(shorter) - expected) < 0.25


def test_a_document_of_one_sentence_gets_a_random_second():
    pool = [[np.int32([7, 8, 9])], *make_pool(2)]
    [pair] = build_pairs(pool, 0, PairOptions(16), np.random.default_rng(0))
    assert pair.is_random
    assert pair.first.tolist() == [7, 8, 9]


def test_what_is_too_long_is_cut_where_the_options_say():
    pool = [[np.arange(100, 119), np.arange(140, 170)], *make_pool(1)]
    options = PairOptions(23, 0.0, nsp_probability=0.0)
    [pair] = build_pairs(pool, 0, options, np.random.default_rng(0))
    # 20 tokens: the longer loses tokens until both are equal, then both do.
    assert pair.first.tolist() == list(range(100, 110))
    assert pair.second.tolist() == list(range(140, 150))
    options = PairOptions(23, 0.0, 0.0, cuts_both_ends=True)
    starts = set()
    for seed in range(30):
        random = np.random.default_rng(seed)
        [pair] = build_pairs(pool, 0, options, random)
        second = pair.second.tolist()
        assert second == list(range(second[0], second[0] + 10))
        starts.add(second[0])
    assert len(starts) > 3
    # 20 of its 30 tokens are cut off, half of them in front.
    assert 147 < np.mean(list(starts)) < 153


def test_a_giant_sentence_is_learnt_whole():
    options = PairOptions(24, 0.0, nsp_probability=0.0)
    giant, longest = np.arange(1000, 2000), np.arange(options.num_tokens)
    document = cut_sentences([longest, giant, np.arange(3)], options)
    np.testing.assert_array_equal(document[0], longest)
    np.testing.assert_array_equal(np.concatenate(document[1:-1]), giant)
    assert len(document[-1]) == 3
    pool = [document[1:-1], *make_pool(1)]
    pairs = list(build_pairs(pool, 0, options, np.random.default_rng(0)))
    found = {*np.concatenate([[*pair.first, *pair.second] for pair in pairs])}
    # Two halves of an odd number are one too many.
    assert len(found & set(giant)) > 0.95 * len(giant)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_seq_length": 4}, "--max_seq_length must be at least 5"),
        ({"nsp_probability": 1.5}, "--nsp_probability .* Received: 1.5"),
        ({"short_seq_probability": -1.0}, "--short_seq_probability"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        PairOptions(**options)


# === Masking ===


def make_batch(rows=64, length=40, seed=0):
    random = np.random.default_rng(seed)
    lengths = random.integers(5, length + 1, rows)
    ids = random.integers(5, len(VOCABULARY), (rows, length))
    places = np.arange(length)
    ids[:, 0] = 2
    ids[np.arange(rows), lengths - 1] = 3
    ids[np.arange(rows), lengths // 2] = 3
    mask = (places < lengths[:, np.newaxis]).astype(np.int32)
    return {
        "input_word_ids": (ids * mask).astype(np.int32),
        "input_mask": mask,
        "input_type_ids": np.zeros_like(mask),
    }


@pytest.mark.parametrize("whole_word", [False, True])
def test_only_what_is_named_as_hidden_changes(whole_word):
    batch = make_batch()
    masking = Masking(VOCABULARY, whole_word=whole_word)
    masked = masking.apply(batch, np.random.default_rng(0))
    before, after = batch["input_word_ids"], masked["input_word_ids"]
    chosen = np.zeros(before.shape, bool)
    for row in range(len(before)):
        count = int(masked["masked_weights"][row].sum())
        assert masked["masked_weights"][row, :count].all()
        places = masked["masked_positions"][row, :count]
        assert places.tolist() == sorted(set(places))
        chosen[row, places] = True
        assert (masked["masked_ids"][row, :count] == before[row, places]).all()
        assert not np.isin(before[row, places], (0, 2, 3)).any()
        assert (masked["masked_ids"][row, count:] == 0).all()
    np.testing.assert_array_equal(after[~chosen], before[~chosen])
    assert masked["masked_positions"].dtype == np.int32
    assert masked["masked_weights"].dtype == np.float32


def test_as_many_as_the_official_code_hides():
    batch = make_batch()
    for limit in (None, 3):
        masking = Masking(VOCABULARY, max_predictions=limit)
        masked = masking.apply(batch, np.random.default_rng(0))
        for row, mask in enumerate(batch["input_mask"]):
            expected = max(1, round(0.15 * int(mask.sum())))
            expected = min(expected, limit or expected)
            assert masked["masked_weights"][row].sum() == expected


@pytest.mark.parametrize("whole_word", [False, True])
def test_batches_of_a_length_have_as_many_places_for_hidden_tokens(whole_word):
    for limit, expected in ((None, 6), (3, 3)):
        masking = Masking(VOCABULARY, 0.15, whole_word, limit)
        for seed in range(5):
            batch = make_batch(rows=3, seed=seed)
            masked = masking.apply(batch, np.random.default_rng(seed))
            assert masked["masked_positions"].shape == (3, expected)
            assert masked["masked_ids"].shape == (3, expected)
    assert masking.apply(
        make_batch(rows=3, length=6), np.random.default_rng(0)
    )["masked_weights"].shape == (3, 1)


def test_of_the_hidden_80_percent_are_masks_and_10_percent_stay():
    batch = make_batch(rows=2000)
    masked = Masking(VOCABULARY).apply(batch, np.random.default_rng(0))
    weights = masked["masked_weights"] == 1
    after = np.take_along_axis(
        masked["input_word_ids"], masked["masked_positions"], 1
    )[weights]
    labels = masked["masked_ids"][weights]
    # One of the 15 tokens is [MASK], one the label itself.
    assert np.mean(after == 4) == pytest.approx(0.8 + 0.1 / 15, abs=0.02)
    assert np.mean(after == labels) == pytest.approx(0.1 + 0.1 / 15, abs=0.02)


def test_words_are_hidden_as_wholes():
    row = [2, 5, 6, 7, 8, 9, 5, 6, 14, 10, 3]
    words = ((1, 2, 3), (4,), (5,), (6, 7, 8), (9,))
    batch = {
        "input_word_ids": np.int32([row]),
        "input_mask": np.ones((1, 11), np.int32),
    }
    masking = Masking(VOCABULARY, probability=0.4, whole_word=True)
    seen = collections.Counter()
    for seed in range(200):
        masked = masking.apply(batch, np.random.default_rng(seed))
        count = int(masked["masked_weights"].sum())
        places = set(masked["masked_positions"][0, :count].tolist())
        assert 1 <= count <= 4
        for word in words:
            assert places & set(word) in (set(), set(word))
            seen[word] += places >= set(word)
    assert min(seen.values()) > 20


def test_the_same_generator_hides_the_same_and_another_does_not():
    masking, batch = Masking(VOCABULARY), make_batch()
    one, other, third = (
        masking.apply(batch, np.random.default_rng(seed))["input_word_ids"]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, other)
    assert (one != third).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 0.0}, "--mlm_probability"),
        ({"vocabulary": ("[CLS]", "[SEP]")}, r"lacks \[MASK\]"),
    ],
)
def test_masking_that_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Masking(**{"vocabulary": VOCABULARY, **options})
