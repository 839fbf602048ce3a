"""Pre-training examples as records of TensorFlow, written and read.

Ours hold the token ids of a pair, unpadded and not masked: that is done anew
each time they are read. Those of the official BERT code are both.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from bert_pruning.data.pipeline import EncodedDataset
from bert_pruning.data.pretraining import Masking
from bert_pruning.data.pretraining import Pair
from bert_pruning.errors import UserError
from bert_pruning.modeling.files import read_json

INDEX_FILE = "prepare.json"

# What reading a file of other bytes than were written ends in.
_DAMAGE = (
    tf.errors.DataLossError,
    tf.errors.InvalidArgumentError,
    ValueError,
)


class Encoder:
    """Turns pairs of segments into records.

    Args:
        vocabulary: sequence of str. Holds [CLS] and [SEP].
        max_seq_length: int. To which masked examples are padded.

    Example:

    ```python
    record = Encoder(vocabulary, 128).encode(pair)
    ```
    """

    def __init__(self, vocabulary: Sequence[str], max_seq_length: int):
        tokens = list(vocabulary)
        self._cls, self._sep = tokens.index("[CLS]"), tokens.index("[SEP]")
        self._length = max_seq_length

    def encode(self, pair: Pair) -> bytes:
        """Returns the record of a pair that is masked when it is read."""
        ids = self._join(pair)
        return _serialize(
            token_ids=ids,
            type_boundary=[len(pair.first) + 2],
            next_sentence_label=[int(pair.is_random)],
        )

    def encode_masked(
        self, pair: Pair, masking: Masking, random: np.random.Generator
    ) -> bytes:
        """Returns the record of the official `create_pretraining_data`."""
        ids = self._join(pair)
        row = np.zeros((1, self._length), np.int32)
        row[0, : len(ids)] = ids
        mask = (np.arange(self._length) < len(ids)).astype(np.int32)
        masked = masking.apply(
            {"input_word_ids": row, "input_mask": mask[np.newaxis]}, random
        )
        types = np.arange(self._length) >= len(pair.first) + 2
        predictions = {
            name: np.zeros(masking.max_predictions, masked[name].dtype)
            for name in ("masked_positions", "masked_ids", "masked_weights")
        }
        for name, padded in predictions.items():
            padded[: masked[name].shape[1]] = masked[name][0]
        return _serialize(
            input_ids=masked["input_word_ids"][0],
            input_mask=mask,
            segment_ids=types * mask,
            masked_lm_positions=predictions["masked_positions"],
            masked_lm_ids=predictions["masked_ids"],
            masked_lm_weights=predictions["masked_weights"],
            next_sentence_labels=[int(pair.is_random)],
        )

    def _join(self, pair):
        return np.concatenate(
            [
                *([self._cls], pair.first, [self._sep]),
                *(pair.second, [self._sep]),
            ]
        )


def _serialize(**features):
    """A record; floats stay floats, all else becomes int64."""
    found = {}
    for name, values in features.items():
        values = np.asarray(values)
        if values.dtype.kind == "f":
            feature = tf.train.Feature(
                float_list=tf.train.FloatList(value=values)
            )
        else:
            feature = tf.train.Feature(
                int64_list=tf.train.Int64List(value=values.astype(np.int64))
            )
        found[name] = feature
    example = tf.train.Example(features=tf.train.Features(feature=found))
    return example.SerializeToString(deterministic=True)


def read_examples(path: str, rows: int, max_seq_length: int) -> EncodedDataset:
    """Reads one shard of examples that are masked when they are read.

    Args:
        path: str.
        rows: int. As many as it must have.
        max_seq_length: int. No row is longer.

    Returns:
        An `EncodedDataset` whose labels are 1 where the second segment is
        random.

    Raises:
        UserError: if it is missing, damaged, truncated or of other examples.
    """
    dataset = tf.data.TFRecordDataset(path, compression_type="GZIP")
    features = {
        "token_ids": tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64),
        "type_boundary": tf.io.FixedLenFeature((), tf.int64),
        "next_sentence_label": tf.io.FixedLenFeature((), tf.int64),
    }
    try:
        records = list(dataset.batch(4096).as_numpy_iterator())
        parsed = tf.io.parse_example(np.concatenate(records), features)
    except _DAMAGE as error:
        raise UserError(
            f"{path} is damaged. Run `prepare` again, with --overwrite."
        ) from error
    except tf.errors.OpError as error:
        raise UserError(f"Cannot read {path}: {error.message}") from error
    ids = parsed["token_ids"]
    offsets = ids.row_splits.numpy()
    found = len(offsets) - 1
    longest = int(np.diff(offsets).max(initial=0))
    if found != rows or longest > max_seq_length:
        raise UserError(
            f"{path} holds {found} examples of up to {longest} tokens instead "
            f"of {rows} of {max_seq_length}. Run `prepare` again, with "
            "--overwrite."
        )
    return EncodedDataset(
        ids.values.numpy().astype(np.int32),
        offsets,
        parsed["type_boundary"].numpy().astype(np.int32),
        parsed["next_sentence_label"].numpy().astype(np.int32),
        max_seq_length,
    )


@dataclasses.dataclass(frozen=True)
class PreparedCorpus:
    """The examples in a folder.

    Args:
        folder: str.
        files: dict from "train" and "dev" to the names of its files.
        rows: dict from the name of a file to the number of its examples.
        max_seq_length: int.
    """

    folder: str
    files: dict[str, tuple[str, ...]]
    rows: dict[str, int]
    max_seq_length: int

    def rows_of(self, split: str) -> list[int]:
        """Returns the number of examples in each file of a split."""
        return [self.rows[name] for name in self.files[split]]

    def read(self, split: str, number: int) -> EncodedDataset:
        """Reads one file; see `read_examples`."""
        name = self.files[split][number]
        path = os.path.join(self.folder, name)
        return read_examples(path, self.rows[name], self.max_seq_length)


def describe_vocabulary(
    vocabulary: Sequence[str], do_lower_case: bool
) -> dict[str, object]:
    """Returns what tells a vocabulary from another."""
    digest = hashlib.sha256("\n".join(vocabulary).encode()).hexdigest()
    return {
        "vocab_size": len(vocabulary),
        "vocab_sha256": digest,
        "do_lower_case": do_lower_case,
    }


def find_corpus(
    folder: str, vocabulary: Sequence[str], do_lower_case: bool
) -> PreparedCorpus:
    """Finds the examples that `prepare` wrote, all files as they were.

    Args:
        folder: str.
        vocabulary: sequence of str. Of the model that is to read them.
        do_lower_case: bool.

    Raises:
        UserError: if the folder is none of `prepare`, not finished, of another
            vocabulary or format, or a file is missing or has another size.
    """
    path = os.path.join(folder, INDEX_FILE)
    if not os.path.exists(path) or not os.path.exists(
        os.path.join(folder, "DONE")
    ):
        raise UserError(
            f"--data_dir={folder} holds no finished examples. Run `prepare "
            f"--input=TEXTS --output_dir={folder}` first."
        )
    index = read_json(path)
    try:
        example_format = index["format"]
        ours = describe_vocabulary(vocabulary, do_lower_case)
        theirs = {name: index[name] for name in ours}
        files = {
            name: tuple(index["splits"][name]) for name in ("train", "dev")
        }
        about = {
            name: each
            for split in index["splits"].values()
            for name, each in split.items()
        }
        rows = {name: int(each["rows"]) for name, each in about.items()}
        sizes = {name: int(each["bytes"]) for name, each in about.items()}
        length = int(index["max_seq_length"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not as `prepare` writes it: {error}. Was it edited?"
        ) from error
    if example_format != "tokens":
        raise UserError(
            f"{folder} holds examples of --format={example_format}, which are "
            "masked for other programs. Run `prepare` without."
        )
    if theirs != ours:
        raise UserError(
            f"{folder} was prepared with another vocabulary, of "
            f"{theirs['vocab_size']} tokens, do_lower_case="
            f"{theirs['do_lower_case']}; the model has {len(vocabulary)}, "
            f"do_lower_case={do_lower_case}."
        )
    for name, size in sizes.items():
        file = os.path.join(folder, name)
        found = os.path.getsize(file) if os.path.exists(file) else None
        if found != size:
            problem = "is missing" if found is None else "was truncated"
            raise UserError(
                f"{file} {problem}: {found or 0} bytes of {size}. Copy it, or "
                "run `prepare` again, with --overwrite."
            )
    return PreparedCorpus(folder, files, rows, length)
