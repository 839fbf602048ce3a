"""Tests of encoding, caching and batching."""

import collections
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from bert_pruning.data import pipeline
from bert_pruning.data.pipeline import EncodedDataset
from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.data.pipeline import encode_examples
from bert_pruning.data.pipeline import eval_batches
from bert_pruning.data.reading import Examples
from bert_pruning.data.reading import read_examples
from bert_pruning.data.tasks import TASKS
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.errors import UserError
from bert_pruning.modeling.files import read_vocabulary

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d")
INPUTS = ("input_word_ids", "input_mask", "input_type_ids")


class CountingTokenizer:
    """Splits at spaces, fast; remembers how many rows it was given."""

    def __init__(self, vocabulary=VOCABULARY, do_lower_case=True):
        self.vocabulary = vocabulary
        self.do_lower_case = do_lower_case
        self.num_rows = 0

    def encode(self, text_a, text_b, max_seq_length):
        self.num_rows += len(text_a)
        ids, types = [], []
        for a, b in zip(text_a, text_b or [""] * len(text_a), strict=True):
            first = [2, *map(self.vocabulary.index, a.split()), 3]
            second = [*map(self.vocabulary.index, b.split()), 3]
            second = second if b else []
            ids.append((first + second)[:max_seq_length])
            types.append([0] * len(first) + [1] * len(second))
            types[-1] = types[-1][:max_seq_length]
        return tf.ragged.constant(ids), tf.ragged.constant(types)


def make_examples(text_a=("a b", "c"), text_b=None, labels=(0, 1)):
    text_b = text_b and list(text_b)
    ids = [str(row) for row in range(len(text_a))]
    return Examples(list(text_a), text_b, np.int32(labels), ids)


def make_dataset(num_rows, seed=0, longest=40):
    """Row `i` holds only the token `i + 1`, and has the label `i`."""
    lengths = np.random.default_rng(seed).integers(3, longest + 1, num_rows)
    return EncodedDataset(
        np.repeat(np.arange(num_rows, dtype=np.int32) + 1, lengths),
        np.concatenate([[0], np.cumsum(lengths)]),
        (lengths // 2).astype(np.int32),
        np.arange(num_rows, dtype=np.int32),
    )


def labels_of(batches):
    return [batch["label"].tolist() for batch in batches]


class TestEncode:
    def test_single_texts(self):
        dataset = encode_examples(make_examples(), CountingTokenizer(), 8)
        assert dataset.token_ids.tolist() == [2, 4, 5, 3, 2, 6, 3]
        assert dataset.token_ids.dtype == np.int32
        assert dataset.offsets.tolist() == [0, 4, 7]
        assert dataset.offsets.dtype == np.int64
        assert dataset.type_boundaries.tolist() == [4, 3]
        assert dataset.labels.tolist() == [0, 1]

    def test_pairs_and_an_empty_second_text(self):
        examples = make_examples(("a", "b"), ("c d", ""))
        dataset = encode_examples(examples, CountingTokenizer(), 8)
        assert dataset.token_ids.tolist() == [2, 4, 3, 6, 7, 3, 2, 5, 3]
        assert dataset.type_boundaries.tolist() == [3, 3]

    def test_many_chunks_give_what_one_gives(self, monkeypatch):
        examples = make_examples(
            ["a " * (i % 7) for i in range(100)],
            ["b " * (i % 5) for i in range(100)],
            range(100),
        )
        whole = encode_examples(examples, CountingTokenizer(), 8)
        monkeypatch.setattr(pipeline, "_CHUNK", 7)
        parts = encode_examples(examples, CountingTokenizer(), 8)
        assert parts.token_ids.tolist() == whole.token_ids.tolist()
        assert parts.offsets.tolist() == whole.offsets.tolist()
        assert parts.type_boundaries.tolist() == whole.type_boundaries.tolist()

    @pytest.mark.parametrize("text_b, length", [(None, 2), (["a", "b"], 3)])
    def test_length_without_room_for_text(self, text_b, length):
        examples = make_examples(text_b=text_b)
        with pytest.raises(UserError, match=f"more than {length}"):
            encode_examples(examples, CountingTokenizer(), length)

    def test_batches_equal_the_tokenizers_own_packing(self):
        examples = make_examples(
            ("a b", "c", "d"), ("c", "a b d", ""), range(3)
        )
        tokenizer = BertTokenizer(VOCABULARY, do_lower_case=True)
        dataset = encode_examples(examples, tokenizer, 16)
        batch = dataset.batch(np.arange(3), pad_multiple=1)
        expected = tokenizer.pack(
            *tokenizer.encode(examples.text_a, examples.text_b, 16)
        )
        for name in INPUTS:
            assert batch[name].tolist() == expected[name].numpy().tolist()
            assert batch[name].dtype == np.int32


class TestCache:
    def test_second_time_does_not_tokenize(self, tmp_path):
        tokenizer = CountingTokenizer()
        examples = make_examples(text_b=["d", ""])
        first = encode_examples(examples, tokenizer, 8, str(tmp_path))
        assert tokenizer.num_rows == 2
        second = encode_examples(examples, tokenizer, 8, str(tmp_path))
        assert tokenizer.num_rows == 2
        for name in ("token_ids", "offsets", "type_boundaries", "labels"):
            old, new = getattr(first, name), getattr(second, name)
            assert old.tolist() == new.tolist()
            assert old.dtype == new.dtype

    @pytest.mark.parametrize(
        "examples, vocabulary, lower, length",
        [
            (make_examples(("a", "b c")), VOCABULARY, True, 8),
            (make_examples(("a b c", "")), VOCABULARY, True, 8),
            (make_examples(text_b=("", "")), VOCABULARY, True, 8),
            (make_examples(), (*VOCABULARY, "e"), True, 8),
            (make_examples(), VOCABULARY, False, 8),
            (make_examples(), VOCABULARY, True, 9),
        ],
        ids="split text_a text_b vocabulary case length".split(),
    )
    def test_whatever_matters_makes_another_file(
        self, tmp_path, examples, vocabulary, lower, length
    ):
        encode_examples(make_examples(), CountingTokenizer(), 8, str(tmp_path))
        tokenizer = CountingTokenizer(vocabulary, lower)
        encode_examples(examples, tokenizer, length, str(tmp_path))
        assert tokenizer.num_rows == 2
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_word_that_moves_to_the_other_text_makes_another_file(
        self, tmp_path
    ):
        tokenizer = CountingTokenizer()
        for text_a, text_b in (
            (["a", "b "], ["c", "d"]),
            (["a", "b c"], ["", "d"]),
        ):
            examples = make_examples(text_a, text_b)
            encode_examples(examples, tokenizer, 8, str(tmp_path))
        assert tokenizer.num_rows == 4

    def test_labels_are_not_cached(self, tmp_path):
        tokenizer = CountingTokenizer()
        encode_examples(make_examples(), tokenizer, 8, str(tmp_path))
        examples = make_examples(labels=(1, 0))
        dataset = encode_examples(examples, tokenizer, 8, str(tmp_path))
        assert tokenizer.num_rows == 2
        assert dataset.labels.tolist() == [1, 0]

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
    def test_damaged_file_is_rebuilt(self, tmp_path, damage, caplog):
        logging.get_absl_logger().propagate = True
        tokenizer = CountingTokenizer()
        examples = make_examples(["a b c d"] * 100, labels=range(100))
        good = encode_examples(examples, tokenizer, 8, str(tmp_path))
        (path,) = tmp_path.iterdir()
        data = bytearray(path.read_bytes())
        if damage == "truncated":
            data = data[: len(data) // 2]
        elif damage == "empty":
            data = b""
        else:
            data[500] ^= 4  # In the middle of the token ids.
        path.write_bytes(data)
        again = encode_examples(examples, tokenizer, 8, str(tmp_path))
        assert "Rebuilding the damaged cache" in caplog.text
        assert tokenizer.num_rows == 200
        assert again.token_ids.tolist() == good.token_ids.tolist()
        encode_examples(examples, tokenizer, 8, str(tmp_path))
        assert tokenizer.num_rows == 200

    def test_no_temporary_file_is_left(self, tmp_path):
        encode_examples(make_examples(), CountingTokenizer(), 8, str(tmp_path))
        (path,) = tmp_path.iterdir()
        assert path.suffix == ".npz"

    def test_folder_that_cannot_be_made_is_said_before_work(self, tmp_path):
        (tmp_path / "file").write_text("")
        tokenizer = CountingTokenizer()
        with pytest.raises(UserError, match="Cannot write.*--cache_dir"):
            encode_examples(
                make_examples(), tokenizer, 8, str(tmp_path / "file" / "cache")
            )
        assert tokenizer.num_rows == 0

    def test_read_only_folder_is_said_before_work(self, tmp_path, read_only):
        tokenizer = CountingTokenizer()
        with pytest.raises(UserError, match="Cannot write.*--cache_dir"):
            encode_examples(make_examples(), tokenizer, 8, str(tmp_path))
        assert tokenizer.num_rows == 0

    def test_full_disk_costs_the_cache_only(self, tmp_path, monkeypatch):
        def fail(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", fail)
        dataset = encode_examples(
            make_examples(), CountingTokenizer(), 8, str(tmp_path)
        )
        assert len(dataset) == 2
        assert list(tmp_path.iterdir()) == []


class TestBatch:
    def test_pads_to_a_multiple(self):
        dataset = make_dataset(3)
        longest = dataset.lengths.max()
        batch = dataset.batch(np.arange(3), pad_multiple=8)
        assert batch["input_mask"].shape[1] == -(-longest // 8) * 8
        assert batch["input_mask"].sum(axis=1).tolist() == (
            dataset.lengths.tolist()
        )

    def test_padding_is_zero(self):
        batch = make_dataset(5).batch(np.arange(5), pad_to=64)
        for row, length in enumerate(make_dataset(5).lengths):
            ids, mask, types = (batch[name][row] for name in INPUTS)
            assert (ids[:length] == row + 1).all()
            assert (mask[:length] == 1).all()
            assert types[:length].sum() == length - length // 2
            assert (types[length // 2 : length] == 1).all()
            assert not (ids[length:].any() or mask[length:].any())
            assert not types[length:].any()

    def test_fixed_length(self):
        batch = make_dataset(3).batch(np.arange(2), pad_to=50)
        assert batch["input_word_ids"].shape == (2, 50)

    def test_fixed_length_that_is_too_short(self):
        with pytest.raises(ValueError, match="cannot be padded to 2"):
            make_dataset(3).batch(np.arange(2), pad_to=2)

    def test_never_longer_than_the_model_allows(self):
        examples = make_examples(("a b c d a b c d", "a"))
        dataset = encode_examples(examples, CountingTokenizer(), 9)
        batch = dataset.batch(np.arange(2), pad_multiple=8)
        assert batch["input_word_ids"].shape == (2, 9)

    def test_without_labels(self):
        dataset = make_dataset(3)
        dataset = EncodedDataset(
            dataset.token_ids, dataset.offsets, dataset.type_boundaries
        )
        assert set(dataset.batch(np.arange(2))) == set(INPUTS)


class TestTrainBatches:
    @pytest.mark.parametrize("num_rows, batch_size", [(64, 8), (1000, 8)])
    def test_every_row_comes_once_per_epoch(self, num_rows, batch_size):
        batches = TrainBatches(make_dataset(num_rows), batch_size, seed=1)
        for epoch in range(3):
            rows = labels_of(batches.epoch(epoch))
            assert len(rows) == batches.num_batches == num_rows // batch_size
            assert {len(row) for row in rows} == {batch_size}
            assert sorted(sum(rows, [])) == list(range(num_rows))

    def test_labels_stay_with_their_texts(self):
        for batch in TrainBatches(make_dataset(100), 8, seed=1).epoch(0):
            assert (batch["input_word_ids"][:, 0] == batch["label"] + 1).all()

    def test_same_seed_repeats_and_others_differ(self):
        dataset = make_dataset(100)
        first = labels_of(TrainBatches(dataset, 8, seed=1).epoch(0))
        assert labels_of(TrainBatches(dataset, 8, seed=1).epoch(0)) == first
        assert labels_of(TrainBatches(dataset, 8, seed=2).epoch(0)) != first
        assert labels_of(TrainBatches(dataset, 8, seed=1).epoch(1)) != first

    @pytest.mark.parametrize("start", [0, 1, 7, 11, 12])
    def test_resumes_at_any_batch(self, start):
        batches = TrainBatches(make_dataset(100), 8, seed=3)
        whole = labels_of(batches.epoch(2))
        assert labels_of(batches.epoch(2, start=start)) == whole[start:]

    def test_remainder_is_dropped_and_differs_between_epochs(self):
        batches = TrainBatches(make_dataset(21), 8, seed=1)
        assert batches.num_batches == 2
        seen = [
            frozenset(sum(labels_of(batches.epoch(epoch)), []))
            for epoch in range(4)
        ]
        assert {len(rows) for rows in seen} == {16}
        assert len(set(seen)) > 1

    def test_remainder_is_kept_on_demand(self):
        batches = TrainBatches(
            make_dataset(21), 8, seed=1, drop_remainder=False
        )
        rows = labels_of(batches.epoch(0))
        assert len(rows) == batches.num_batches == 3
        assert sorted(map(len, rows)) == [5, 8, 8]
        assert sorted(sum(rows, [])) == list(range(21))

    def test_fewer_rows_than_a_batch_are_one_batch(self):
        batches = TrainBatches(make_dataset(5), 8, seed=1)
        (rows,) = labels_of(batches.epoch(0))
        assert batches.num_batches == 1
        assert sorted(rows) == [0, 1, 2, 3, 4]

    def test_rows_of_a_batch_have_similar_lengths(self):
        dataset = make_dataset(4096)
        bucketed = list(TrainBatches(dataset, 32, seed=1).epoch(0))
        masks = [batch["input_mask"] for batch in bucketed]
        filled = sum(mask.sum() for mask in masks)
        assert filled / sum(mask.size for mask in masks) > 0.8
        # The rows in plain random order fill barely half.
        naive = sum(32 * 40 for _ in masks)
        assert filled / naive < 0.6

    def test_batches_are_not_ordered_by_length(self):
        dataset = make_dataset(4096)
        widths = [
            batch["input_mask"].shape[1]
            for batch in TrainBatches(dataset, 32, seed=1).epoch(0)
        ]
        assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.3

    def test_rows_meet_different_neighbours(self):
        batches = TrainBatches(make_dataset(1024), 8, seed=1)
        neighbours = collections.Counter()
        for epoch in range(10):
            for rows in labels_of(batches.epoch(epoch)):
                if 0 in rows:
                    neighbours.update(rows)
        assert neighbours.pop(0) == 10
        assert len(neighbours) > 20
        assert max(neighbours.values()) < 7

    def test_sorted_labels_are_mixed(self):
        """The TF1 code shuffled 100 rows at a time: STS-B stayed ordered."""
        batches = TrainBatches(make_dataset(4096), 32, seed=1)
        means = [np.mean(rows) for rows in labels_of(batches.epoch(0))]
        assert np.std(means) < 400  # 1182 / sqrt(32) = 209 by chance.

    def test_a_batch_takes_far_less_than_a_millisecond(self):
        batches = TrainBatches(make_dataset(20000, longest=128), 32, seed=1)
        iterator = batches.epoch(0)
        next(iterator)
        started = time.perf_counter()
        num_batches = sum(1 for _ in iterator)
        assert (time.perf_counter() - started) / num_batches < 1e-3


class TestEvalBatches:
    @pytest.mark.parametrize("num_rows", [5, 8, 21])
    def test_index_restores_the_order(self, num_rows):
        restored = np.full(num_rows, -1)
        for batch in eval_batches(make_dataset(num_rows), 8):
            restored[batch["index"]] = batch["input_word_ids"][:, 0] - 1
        assert restored.tolist() == list(range(num_rows))

    def test_longest_rows_come_first(self):
        dataset = make_dataset(100)
        lengths = np.concatenate(
            [dataset.lengths[b["index"]] for b in eval_batches(dataset, 8)]
        )
        assert (np.diff(lengths) <= 0).all()


class TestRealData:
    def test_mrpc_rows_are_what_the_tokenizer_alone_gives(
        self, glue_dir, minilm_dir
    ):
        tokenizer = BertTokenizer(
            read_vocabulary(f"{minilm_dir}/vocab.txt"), do_lower_case=True
        )
        examples = read_examples(TASKS["MRPC"], glue_dir, "dev")
        dataset = encode_examples(examples, tokenizer, 64)
        ids, types = tokenizer.encode(examples.text_a, examples.text_b, 64)
        batch = dataset.batch(np.arange(len(examples)))
        for row, (row_ids, row_types) in enumerate(
            zip(ids.to_list(), types.to_list(), strict=True)
        ):
            length = len(row_ids)
            assert batch["input_word_ids"][row, :length].tolist() == row_ids
            assert batch["input_type_ids"][row, :length].tolist() == row_types
            assert batch["input_mask"][row].sum() == length
        assert batch["label"].tolist() == examples.labels.tolist()


def test_the_next_batch_is_made_meanwhile_and_no_other():
    made = []

    def make():
        for number in range(5):
            made.append((number, threading.current_thread()))
            yield {"number": number}
        raise UserError("truncated")

    found = pipeline.prefetch(make())
    for expected in range(5):
        assert next(found) == {"number": expected}
        assert len(made) <= expected + 2
    # An error is raised when its batch is due.
    with pytest.raises(UserError, match="truncated"):
        next(found)
    assert threading.current_thread() not in {thread for _, thread in made}
    assert list(pipeline.prefetch(iter([]))) == []


def test_batches_that_nothing_waits_for_any_more_are_not_made():
    made = []
    found = pipeline.prefetch({"n": made.append(n)} for n in range(1000))
    next(found)
    found.close()
    assert len(made) <= 2
