"""A part of a training set keeps its classes' shares and its rows' contents."""

import dataclasses

import numpy as np
import pytest
import tiny_bert
from tiny_training import make_dataset

from bert_pruning.data.subsets import draw_subset
from bert_pruning.errors import UserError


def labelled(labels):
    """A row for each label, told apart by its tokens."""
    dataset = make_dataset(tiny_bert.tiny_config(), rows=len(labels))
    return dataclasses.replace(dataset, labels=np.asarray(labels))


def texts(dataset):
    ends = dataset.offsets
    return [
        (*dataset.token_ids[a:b], boundary, label)
        for a, b, boundary, label in zip(
            *(ends[:-1], ends[1:], dataset.type_boundaries, dataset.labels),
            strict=True,
        )
    ]


def test_classes_keep_their_shares_and_rows_their_order():
    whole = labelled(np.int32([0, 1, 1, 1, 2] * 20))
    part = draw_subset(whole, 0.2, seed=1)
    assert np.bincount(part.labels).tolist() == [4, 12, 4]
    rows = [texts(whole).index(text) for text in texts(part)]
    assert rows == sorted(rows)
    assert len(set(rows)) == 20
    assert part.max_seq_length == whole.max_seq_length


def test_a_seed_and_a_fraction_draw_the_same_rows():
    whole = labelled(np.int32([0, 1] * 50))
    drawn = [texts(draw_subset(whole, 0.1, seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert draw_subset(whole, 1.0, seed=1) is whole


def test_scores_are_drawn_from_alike():
    whole = labelled(np.linspace(0, 5, 100, dtype=np.float32))
    part = draw_subset(whole, 0.25, seed=3)
    assert len(part) == 25
    assert part.labels.dtype == np.float32
    assert set(texts(part)) <= set(texts(whole))


@pytest.mark.parametrize(
    ("labels", "fraction"), [([0, 1] * 50, 0.004), ([0] * 30 + [1], 0.5)]
)
def test_what_cannot_be_drawn_is_told(labels, fraction):
    with pytest.raises(UserError, match=f"={fraction} of {len(labels)} rows"):
        draw_subset(labelled(np.int32(labels)), fraction, seed=1)
