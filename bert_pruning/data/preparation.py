"""From a corpus to files of pre-training examples, as an Apache Beam pipeline.

Each document is known by a hash of its text. In which split, pool and shard it
comes, and which random numbers it gets, are functions of that hash and the
seed: the files are the same however many workers make them, in whatever order.

    texts -> documents -> sentences -> token ids -> pools -> pairs -> shards
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Sequence

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions

from bert_pruning.data import corpus
from bert_pruning.data import examples
from bert_pruning.data import pretraining
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.errors import UserError

# Documents that a second segment is drawn from, about.
POOL_SIZE = 1000

_TOKENIZED_AT_ONCE = 64  # Documents.

_DATASET_PARTS = 64


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What to make of a corpus.

    Args:
        vocabulary: tuple of str.
        do_lower_case: bool.
        pairs: pretraining.PairOptions.
        folder: str. Receives the shards; all workers see it.
        seed: int.
        dev_share: float. Of the documents that are held out.
        shard_rows: int. Examples in each file, about.
        language: str. Of the sentences.
        masking: pretraining.Masking or None: tokens are masked when they are
            read. With one, the examples are those of the official code,
            masked and padded.
        copies: int. Times that each document is paired anew.
    """

    vocabulary: tuple[str, ...]
    do_lower_case: bool
    pairs: pretraining.PairOptions
    folder: str
    seed: int = 42
    dev_share: float = 0.05
    shard_rows: int = 50_000
    language: str = "en"
    masking: pretraining.Masking | None = None
    copies: int = 1


def build_pipeline(
    pipeline: beam.Pipeline,
    texts: beam.PTransform,
    preparation: Preparation,
) -> None:
    """Adds all steps to a pipeline.

    Beside each shard a JSON file with the same name says what is in it.

    Args:
        pipeline: beam.Pipeline.
        texts: beam.PTransform. Its output are documents, lists of lines.
        preparation: Preparation.
    """
    documents = (
        pipeline
        | "Read" >> texts
        | "Key" >> beam.Map(_with_key)
        | "Batch" >> beam.BatchElements(_TOKENIZED_AT_ONCE, _TOKENIZED_AT_ONCE)
        | "Tokenize" >> beam.ParDo(_Tokenize(preparation))
    )
    for split in ("train", "dev"):
        part = documents | f"{split}: select" >> beam.Filter(
            _is_in, split, preparation
        )
        num_documents = part | f"{split}: count" >> (
            beam.combiners.Count.Globally()
        )
        pairs = (
            part
            | f"{split}: pool"
            >> beam.Map(
                _with_pool,
                preparation.seed,
                beam.pvalue.AsSingleton(num_documents),
            )
            | f"{split}: gather pools" >> beam.GroupByKey()
            | f"{split}: pair" >> beam.FlatMap(_build_examples, preparation)
        )
        num_pairs = pairs | f"{split}: count pairs" >> (
            beam.combiners.Count.Globally()
        )
        _ = (
            pairs
            | f"{split}: shard"
            >> beam.Map(
                _with_shard,
                preparation.shard_rows,
                beam.pvalue.AsSingleton(num_pairs),
            )
            | f"{split}: gather shards" >> beam.GroupByKey()
            | f"{split}: write" >> beam.Map(_write_shard, split, preparation)
        )


class ReadFiles(beam.PTransform):
    """Reads the documents of text files.

    Args:
        paths: sequence of str.
    """

    def __init__(self, paths: Sequence[str]):
        super().__init__()
        self._paths = list(paths)

    def expand(self, pipeline):
        return (
            pipeline
            | beam.Create(self._paths)
            | beam.Reshuffle()
            | beam.FlatMap(corpus.iterate_documents)
        )


def fetch_dataset(name: str, options: PipelineOptions) -> int:
    """Gets a text of TensorFlow Datasets, unless it is there already.

    Args:
        name: str. Such as "wikipedia/20230601.en".
        options: PipelineOptions. For those texts that a pipeline makes.

    Returns:
        The number of its documents.

    Raises:
        UserError: if there is none of that name, it cannot be had, or its rows
            are no text.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except Exception as error:  # Of a name; it has no common class.
        raise UserError(
            f"TensorFlow Datasets cannot open {name}: {_first_line(error)}"
        ) from error
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(beam_options=options)
        )
    except Exception as error:  # Of the network, the disk or the pipeline.
        raise UserError(
            f"{name} cannot be had: {_first_line(error)} TensorFlow Datasets "
            f"downloads it once, into {builder.data_dir}; give --input=FOLDER "
            "to do without."
        ) from error
    splits, features = builder.info.splits, builder.info.features
    if "train" not in splits or "text" not in features:
        raise UserError(
            f"{name} holds no text to learn from: it needs a split 'train' "
            f"with a feature 'text'. Received: {', '.join(splits)}, with "
            f"{', '.join(features)}."
        )
    return splits["train"].num_examples


def _first_line(error):
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0].rstrip('.')}."


class ReadDataset(beam.PTransform):
    """Reads a text of TensorFlow Datasets, one document a row.

    Args:
        name: str. As `fetch_dataset` was given it.
        num_rows: int. As it returned them.
    """

    def __init__(self, name: str, num_rows: int):
        super().__init__()
        self._name = name
        # Into how many parts it is divided to be read; none is empty.
        self._parts = min(_DATASET_PARTS, num_rows)

    def expand(self, pipeline):
        return (
            pipeline
            | beam.Create(range(self._parts))
            | beam.Reshuffle()
            | beam.FlatMap(_read_rows, self._name, self._parts)
        )


def _read_rows(part, name, parts):
    import tensorflow_datasets as tfds

    splits = tfds.even_splits("train", parts, drop_remainder=False)
    for row in tfds.as_numpy(tfds.load(name, split=splits[part])):
        lines = row["text"].decode("utf-8").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        if lines:
            yield lines


def _with_key(lines):
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=8)
    return digest.hexdigest(), lines


def _draw(*values):
    """A number in [0, 2^63) that is a function of the values alone."""
    text = "/".join(map(str, values)).encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class _Tokenize(beam.DoFn):
    """Documents as token ids, and where each sentence ends."""

    def __init__(self, preparation):
        self._preparation = preparation
        self._tokenizer = None

    def setup(self):
        self._tokenizer = BertTokenizer(
            self._preparation.vocabulary, self._preparation.do_lower_case
        )

    def process(self, documents):
        sentences = [
            corpus.split_sentences(lines, self._preparation.language)
            for _, lines in documents
        ]
        ids = self._tokenizer.tokenize(sum(sentences, []))
        rows = iter(np.split(ids.values.numpy(), ids.row_splits.numpy()[1:-1]))
        for (key, _), texts in zip(documents, sentences, strict=True):
            found = [r for r in itertools.islice(rows, len(texts)) if len(r)]
            if found:
                yield (
                    key,
                    pretraining.cut_sentences(found, self._preparation.pairs),
                )


def _is_in(document, split, preparation):
    chance = _draw("split", preparation.seed, document[0]) / 2**63
    return (chance < preparation.dev_share) == (split == "dev")


def _with_pool(document, seed, num_documents):
    pools = max(1, num_documents // POOL_SIZE)
    return _draw("pool", seed, document[0]) % pools, document


def _build_examples(pool, preparation):
    """Yields the examples of a pool, each with a random number."""
    _, documents = pool
    documents = sorted(documents, key=lambda document: document[0])
    if len(documents) < 2:
        return
    sentences = [found for _, found in documents]
    encoder = examples.Encoder(
        preparation.vocabulary, preparation.pairs.max_seq_length
    )
    for index, (key, _) in enumerate(documents):
        for copy in range(preparation.copies):
            random = np.random.default_rng(
                [preparation.seed, int(key, 16), copy]
            )
            for number, pair in enumerate(
                pretraining.build_pairs(
                    sentences, index, preparation.pairs, random
                )
            ):
                if preparation.masking is None:
                    record = encoder.encode(pair)
                else:
                    record = encoder.encode_masked(
                        pair, preparation.masking, random
                    )
                place = _draw("place", preparation.seed, key, copy, number)
                yield place, record


def _with_shard(example, shard_rows, num_examples):
    shards = max(1, round(num_examples / shard_rows))
    return (example[0] % shards, shards), example


def _write_shard(shard, split, preparation):
    """Writes one file whole or not at all."""
    (number, count), found = shard
    name = f"{split}-{number:05d}-of-{count:05d}.tfrecord"
    compression = ""
    if preparation.masking is None:  # The official code reads plain files.
        name, compression = f"{name}.gz", "GZIP"
    path = os.path.join(preparation.folder, name)
    records = [record for _, record in sorted(found)]
    with tf.io.TFRecordWriter(f"{path}.tmp", options=compression) as writer:
        for record in records:
            writer.write(record)
    about = {"rows": len(records), "bytes": os.path.getsize(f"{path}.tmp")}
    with open(f"{path}.json", "w", encoding="utf-8") as file:
        json.dump(about, file)
    os.replace(f"{path}.tmp", path)
    return name
