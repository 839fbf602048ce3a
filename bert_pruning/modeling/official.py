"""Reads and writes the files of the official TF1 BERT.

A directory holds `bert_config.json`, `vocab.txt` and `bert_model.ckpt.*`, or
the `model.ckpt-<step>.*` of a fine-tuning run. Only the `.index` and `.data-*`
files are used: the small released models have no `.meta`. Not built: the
object-based checkpoints of TF2.
"""

import contextlib
import glob
import os
from collections.abc import Mapping
from collections.abc import Sequence

import tensorflow as tf

from bert_pruning.errors import UserError
from bert_pruning.modeling import mapping
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.files import complaints_about
from bert_pruning.modeling.files import read_json
from bert_pruning.modeling.files import read_vocabulary
from bert_pruning.modeling.files import require_files
from bert_pruning.modeling.files import write_json
from bert_pruning.modeling.files import write_vocabulary

CONFIG_FILE = "bert_config.json"
CHECKPOINT_NAME = "bert_model.ckpt"

# What reading a damaged checkpoint raises: some of TensorFlow's errors come
# as Python's own.
READER_ERRORS = (tf.errors.OpError, LookupError, RuntimeError, ValueError)


def find_prefix(directory):
    """Returns the checkpoint prefix in a directory.

    `bert_model.ckpt` wins; then the one that TensorFlow's `checkpoint` file
    calls the latest; then the only one there.

    Raises:
        UserError: if there is none, or several without a latest.
    """
    prefixes = sorted(
        path[: -len(".index")]
        for path in glob.glob(os.path.join(glob.escape(directory), "*.index"))
    )
    released = os.path.join(directory, CHECKPOINT_NAME)
    if released in prefixes:
        return released
    latest = tf.train.latest_checkpoint(directory)
    if latest:
        return latest
    if len(prefixes) == 1:
        return prefixes[0]
    if prefixes:
        raise UserError(
            f"{directory} holds several checkpoints: "
            f"{', '.join(map(os.path.basename, prefixes))}. Pass one of "
            f"them, such as {prefixes[-1]}."
        )
    require_files(directory, [f"{CHECKPOINT_NAME}.index"])
    return released


def read_official(prefix):
    """Reads an official checkpoint.

    Args:
        prefix: str. Path of the checkpoint without `.index`; the
            configuration and the vocabulary lie beside it.

    Returns:
        A dict with `config`, `weights` and `vocabulary`.

    Raises:
        UserError: if a file is missing or broken, or the weights do not match
            the configuration.
    """
    directory = os.path.dirname(prefix) or "."
    require_files(
        directory,
        [CONFIG_FILE, "vocab.txt", f"{os.path.basename(prefix)}.index"],
    )
    path = os.path.join(directory, CONFIG_FILE)
    values = read_json(path)
    with complaints_about(path):
        config = BertConfig.from_official(values)
    with _truncation_explained(prefix):
        reader = tf.train.load_checkpoint(prefix)
        shapes = reader.get_variable_to_shape_map()
    if any(name.startswith("_CHECKPOINTABLE") for name in shapes):
        raise UserError(
            f"{prefix} is an object-based TF2 checkpoint. Only the "
            "name-based ones of the official TF1 code can be loaded."
        )
    rows = mapping.match_weights(
        config, dict(sorted(shapes.items())), "official", prefix
    )
    with _truncation_explained(prefix):
        weights = {
            row.name: row.convert(reader.get_tensor(row.stored_name))
            for row in rows
        }
    return {
        "config": config,
        "weights": weights,
        "vocabulary": read_vocabulary(os.path.join(directory, "vocab.txt")),
    }


def write_official(
    directory: str,
    config: BertConfig,
    weights: Mapping,
    vocabulary: Sequence[str],
):
    """Writes `bert_config.json`, `vocab.txt` and `bert_model.ckpt.*`.

    Raises:
        UserError: if the official code cannot build this shape.
        OSError: if the files cannot be written.
    """
    content = config.to_official()
    stored = mapping.stored_weights(config, weights, "official")
    try:
        tf.raw_ops.SaveV2(
            prefix=os.path.join(directory, CHECKPOINT_NAME),
            tensor_names=list(stored),
            shape_and_slices=[""] * len(stored),
            tensors=list(stored.values()),
        )
    except tf.errors.OpError as error:
        raise OSError(error.message) from error
    write_vocabulary(os.path.join(directory, "vocab.txt"), vocabulary)
    write_json(os.path.join(directory, CONFIG_FILE), content)


@contextlib.contextmanager
def _truncation_explained(prefix):
    try:
        yield
    except READER_ERRORS as error:
        raise UserError(
            f"The checkpoint {prefix}.* is truncated or a part of it is "
            f"missing ({error}). Copy or download it again."
        ) from error
