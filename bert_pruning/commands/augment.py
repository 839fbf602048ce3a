r"""Makes more training data by replacing words, as TinyBERT does.

    python -m bert_pruning augment --task_name=MRPC --data_dir=glue \
        --init_checkpoint=uncased_L-12_H-768_A-12 --glove=glove.42B.300d.txt \
        --output_dir=augmented/MRPC

Then `train --aug_train=augmented/MRPC`. The output is the task's own training
file with more rows, in shards. A killed run is resumed by the same command.
"""

import hashlib
import itertools
import json
import os

import numpy as np
from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS

# Rows whose words are predicted together.
_CHUNK = 256


def define_flags():
    """Defines the flags of `augment`."""
    shared.define_task_flags()
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("init_checkpoint", None, "A model with a masked-language-model head.")
    text(
        "glove",
        None,
        "Word vectors for the words that are several pieces: glove.*.txt, or "
        "an .npy file with a .parquet file of its words. Left out, these words "
        "stay.",
    )
    text("output_dir", None, "Receives the shards.")
    flags.DEFINE_bool("overwrite", False, "Replace what is in --output_dir.")
    number(
        "num_variants",
        None,
        "New sentences of each, at most; default: TinyBERT's for the task.",
        1,
    )
    number("num_candidates", 15, "Words that may replace a word.", 1)
    flags.DEFINE_float("replace_probability", 0.4, "Of each word.", 0.0, 1.0)
    number("seed", 42, "Of the choices.", 0, 2**31 - 1)
    shared.define_precision_flag(
        "below float32, words of nearly equal likelihood may change places."
    )
    number("shard_rows", 4096, "Rows of the training file per shard.", 1)


def main():
    """Augments by the flags; returns the exit status."""
    check_flags()

    from bert_pruning.data import augmentation
    from bert_pruning.data import reading
    from bert_pruning.data import shards
    from bert_pruning.data import tables
    from bert_pruning.training.run import Run

    task = shared.find_training_task("augment")
    run = Run(FLAGS.output_dir, shared.flags_as_text(), FLAGS.overwrite)
    # Finds what is wrong with any row before the long work.
    num_rows = len(reading.read_examples(task, FLAGS.data_dir, "train"))
    path = tables.find_file(
        FLAGS.data_dir, task.folder, task.splits["train"].file
    )
    num_variants = FLAGS.num_variants or augmentation.NUM_VARIANTS.get(
        task.name, augmentation.DEFAULT_NUM_VARIANTS
    )
    augmenter = _build_augmenter(num_variants)
    run.begin()
    found = _write_shards(run, task, path, num_rows, augmenter)
    index = {
        **shards.describe(task),
        "shards": found,
        "source_rows": num_rows,
        "num_variants": num_variants,
        **{
            name: FLAGS[name].value
            for name in (
                *("num_candidates", "replace_probability", "seed"),
                *("mixed_precision", "init_checkpoint", "glove"),
            )
        },
    }
    run.write_text("augment.json", json.dumps(index, indent=2) + "\n")
    run.complete()
    made = sum(each["rows"] for each in found.values())
    print(f"{num_rows} rows -> {made}")
    print(f"Shards: {run.directory}")
    return 0


def splits_read():
    """Returns which splits of a task of GLUE are read."""
    return ("train",)


def check_flags():
    """Finds what is wrong before anything is loaded."""
    shared.require("task_name", "data_dir", "init_checkpoint", "output_dir")
    if shared.is_special():
        raise UserError(
            "augment replaces words of labelled texts. Received: --task_name="
            f"{FLAGS.task_name}."
        )
    shared.check_training_tasks("augment")
    if FLAGS.data_dir == "tfds":
        raise UserError(
            "augment needs the task's files, not TensorFlow Datasets. Fetch "
            "them: python -m bert_pruning fetch --what=glue --output_dir=glue"
        )
    shared.check_finite()
    shared.check_separate(
        FLAGS.output_dir, "init_checkpoint", "data_dir", "glove"
    )


def _build_augmenter(num_variants):
    from bert_pruning.commands import inputs
    from bert_pruning.data import augmentation
    from bert_pruning.data import word_vectors
    from bert_pruning.modeling import bert
    from bert_pruning.modeling import checkpoints
    from bert_pruning.training.masked_lm import MaskedPredictor

    inputs.find_gpus()
    inputs.set_precision()
    checkpoint = checkpoints.load_checkpoint(FLAGS.init_checkpoint)
    if "mlm_transform/kernel" not in checkpoint.weights:
        raise UserError(
            f"{checkpoint.path} has no masked-language-model head: what it "
            "would predict is chance. Give a pre-trained BERT with its "
            "cls.predictions weights."
        )
    vectors = None
    if FLAGS.glove:
        vectors = word_vectors.read_word_vectors(FLAGS.glove)
        shared.LOG.info("%d word vectors", len(vectors))
    else:
        shared.LOG.info("No --glove: words of several pieces stay.")
    model = bert.build_masked_lm(checkpoint.config)
    bert.set_weights(model, checkpoint.weights, initialized=())
    return augmentation.Augmenter(
        inputs.BertTokenizer(
            checkpoint.vocabulary,
            checkpoints.resolve_do_lower_case(checkpoint, None),
        ),
        MaskedPredictor(model, FLAGS.num_candidates),
        vectors,
        num_variants,
        FLAGS.num_candidates,
        FLAGS.replace_probability,
        checkpoint.config.max_position_embeddings,
    )


def _write_shards(run, task, path, num_rows, augmenter):
    """Writes the shards that are not there yet; says what is in each."""
    from bert_pruning.data import tables
    from bert_pruning.outputs import progress_bar

    split = task.splits["train"]
    source = tables.iterate_rows(path)
    header = split.header or next(source)[1]
    columns = [
        header.index(name) for name in (split.text_a, split.text_b) if name
    ]
    # Malformed rows, where the task is known to have them, are left out.
    source = (row for _, row in source if len(row) == len(header))
    count = -(-num_rows // FLAGS.shard_rows)
    # Finished shards wait where a run keeps what it resumes from.
    waiting, done = run.path("checkpoint"), {}
    with run.writing():
        waiting.mkdir(exist_ok=True)
    if (waiting / "done.json").exists():
        done = json.loads((waiting / "done.json").read_text())
    with progress_bar(total=num_rows, unit="row", desc="augmenting") as bar:
        for shard in range(count):
            extension = os.path.splitext(path)[1]
            name = f"train_aug-{shard:05d}-of-{count:05d}{extension}"
            rows = list(itertools.islice(source, FLAGS.shard_rows))
            if name in done:
                bar.update(len(rows))
                continue
            made = []
            for start in range(0, len(rows), _CHUNK):
                chunk = rows[start : start + _CHUNK]
                first = shard * FLAGS.shard_rows + start
                made += _augment_rows(augmenter, chunk, columns, first)
                bar.update(len(chunk))
            lines = [tables.format_row(name, row) for row in made]
            if split.header is None:
                lines.insert(0, tables.format_row(name, header))
            text = "".join(lines)
            run.write_text(f"checkpoint/{name}", text)
            done[name] = {
                "rows": len(made),
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
            }
            run.write_text("checkpoint/done.json", json.dumps(done))
    with run.writing():
        for name in done:
            # A kill in between has left some of them in place.
            if (waiting / name).exists():
                os.replace(waiting / name, run.path(name))
    return done


def _augment_rows(augmenter, rows, columns, first):
    from bert_pruning.data.augmentation import augment_row

    variants = [
        augmenter.augment(
            [row[column] for row in rows],
            # Of its own: a row's variants depend on no other row.
            [
                np.random.default_rng([FLAGS.seed, first + i, column])
                for i in range(len(rows))
            ],
        )
        for column in columns
    ]
    return [
        made
        for row, *texts in zip(rows, *variants, strict=True)
        for made in augment_row(row, columns, texts)
    ]
