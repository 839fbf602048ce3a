"""Batches of several tasks come in their shares, each once an epoch."""

import collections

import numpy as np
import pytest
import tiny_runs
from tiny_training import make_dataset

from bert_pruning.data.mixture import Mixture
from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.errors import UserError

CONFIG = tiny_runs.tiny_config()


def make_mixture(rows=(40, 12, 4), **options):
    tasks = [
        TrainBatches(make_dataset(CONFIG, n, seed=i), 4, seed=3)
        for i, n in enumerate(rows)
    ]
    return Mixture(tasks, **{"seed": 7, **options})


def keys(batches):
    """Tells batches apart."""
    return [
        (b["task"], b["input_word_ids"].tobytes(), b["label"].tobytes())
        for b in batches
    ]


def test_an_epoch_has_every_batch_of_every_task_once():
    mixture = make_mixture()
    assert mixture.num_batches == 10 + 3 + 1
    batches = list(mixture.epoch(1))
    for number, task in enumerate(mixture.tasks):
        ours = [b for b in batches if b["task"] == number]
        theirs = list(task.epoch(1))
        assert len(ours) == len(theirs) == task.num_batches
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a["input_mask"], b["input_mask"])
            assert a["label"].dtype == np.float32
            np.testing.assert_array_equal(a["label"], b["label"])


def test_the_order_is_mixed_anew_and_repeats():
    mixture = make_mixture()
    first, second = (
        [batch["task"] for batch in mixture.epoch(epoch)] for epoch in (0, 1)
    )
    assert first != second
    assert sorted(first) == sorted(second) == [0] * 10 + [1] * 3 + [2]
    assert first != sorted(first)
    assert keys(mixture.epoch(0)) == keys(make_mixture().epoch(0))
    assert keys(mixture.epoch(0)) != keys(make_mixture(seed=8).epoch(0))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_an_epoch_goes_on_in_the_middle(temperature):
    mixture = make_mixture(temperature=temperature)
    for epoch in (0, 2):
        whole = keys(mixture.epoch(epoch))
        for start in (0, 5, 13):
            assert keys(mixture.epoch(epoch, start)) == whole[start:]


def test_temperature_makes_the_shares_more_alike():
    counts = [make_mixture(temperature=t).counts for t in (1.0, 2.0, 1e9)]
    assert counts[0] == [10, 3, 1]
    # In proportion to the roots of 10, 3 and 1: 7.5, 4.1 and 2.4 of 14.
    assert counts[1] == [8, 4, 2]
    assert sorted(counts[2]) == [4, 5, 5]
    for each in counts:
        assert sum(each) == 14


def test_a_small_task_starts_over_and_a_large_one_goes_on():
    mixture = make_mixture(temperature=1e9)
    seen = collections.Counter()
    for epoch in range(3):
        seen.update(keys(mixture.epoch(epoch)))
    by_task = collections.Counter()
    for (task, *_), times in seen.items():
        by_task[task] = max(by_task[task], times)
    # 15 batches of task 0 in 3 epochs: its first 10, then others.
    assert by_task[0] == 1
    assert by_task[2] > 3


def test_every_task_has_a_batch():
    assert make_mixture(rows=(4000, 4)).counts == [1000, 1]


@pytest.mark.parametrize("temperature", [0.0, 0.5, -1.0, float("nan")])
def test_an_impossible_temperature_is_refused(temperature):
    with pytest.raises(UserError, match="--sampling_temperature"):
        make_mixture(temperature=temperature)
