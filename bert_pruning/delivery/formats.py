"""What a model is exported to: how each format is written, and run again.

    form = FORMATS["tflite"]
    form.write("exported/mrpc", form.prepare(checkpoint), options)
    forward = form.open("exported/mrpc", checkpoint.task)
    forward([ids, mask, type_ids])

Whatever is written can be run: a file that was never run is a guess.
"""

import dataclasses
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from bert_pruning.compression import surgery
from bert_pruning.delivery import restoring
from bert_pruning.delivery import saved_model
from bert_pruning.delivery import tflite
from bert_pruning.modeling import checkpoints
from bert_pruning.modeling.files import write_vocabulary
from bert_pruning.modeling.huggingface import Storage
from bert_pruning.training import evaluation


@dataclasses.dataclass(frozen=True)
class Options:
    """What the formats want to know beside the model.

    Args:
        quantization: str. One of `quantizations.QUANTIZATIONS`, and of the
            format's.
        max_seq_length: int. Where texts are cut.
        text_names: tuple of str. See `saved_model.Served`.
        batch_size: int or None. The only one that the file takes; None: any.
        length: int or None. The same, in tokens.
    """

    quantization: str = "none"
    max_seq_length: int = 128
    text_names: tuple[str, ...] = saved_model.TWO_TEXTS
    batch_size: int | None = None
    length: int | None = None


@dataclasses.dataclass(frozen=True)
class Format:
    """A format.

    Args:
        write: function of a directory, a prepared `Checkpoint` and `Options`.
        open: function of the directory, and of the task as the checkpoint has
            it, that returns a function of the list of three inputs, which
            returns an array, outputs in the order of the task's labels.
        files: tuple of str. What it writes, for some its folder; the first is
            what the model's bytes are counted in.
        prepare: function of a `Checkpoint` that returns the one that is
            written.
        reference: function of a `Checkpoint` that returns the one whose outputs
            the written one has.
    """

    write: Callable
    open: Callable
    files: tuple[str, ...]
    prepare: Callable = lambda checkpoint: checkpoint
    reference: Callable = lambda checkpoint: checkpoint


def stored_bytes(directory, files):
    """Returns the bytes of a file, or of all files of a folder.

    Args:
        directory: str.
        files: tuple of str. The first counts; see `Format`.
    """
    path = os.path.join(directory, files[0])
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def _in_float32(checkpoint):
    """The model underneath one that computes in 8 bits."""
    return checkpoints.requantize(checkpoint, None)


def _expand(checkpoint):
    config, weights = surgery.expand(checkpoint.config, checkpoint.weights)
    return dataclasses.replace(checkpoint, config=config, weights=weights)


def _expand_for_tf1(checkpoint):
    """Puts the classifier's outputs in the order of the official code too."""
    checkpoint = _expand(checkpoint)
    # What it cannot compute is refused before anything is written.
    checkpoint.config.to_official()
    columns = _tf1_columns(checkpoint.task)
    if columns is None:
        return checkpoint
    weights = dict(checkpoint.weights)
    weights["classifier/kernel"] = weights["classifier/kernel"][:, columns]
    weights["classifier/bias"] = weights["classifier/bias"][columns]
    return dataclasses.replace(checkpoint, weights=weights)


def _tf1_columns(task):
    """Returns which output of ours each of the official code is, or None."""
    labels, order = ((task or {}).get(n) for n in ("labels", "tf1_labels"))
    return [labels.index(label) for label in order] if order else None


def _write_tflite(directory, checkpoint, options):
    model, output = restoring.restore_model(checkpoint)
    content = tflite.convert(
        *(model, output, options.quantization),
        *(options.batch_size, options.length),
    )
    with open(os.path.join(directory, "model.tflite"), "wb") as file:
        file.write(content)
    write_vocabulary(
        os.path.join(directory, "vocab.txt"), checkpoint.vocabulary
    )


def _open_tflite(directory, _=None):
    with open(os.path.join(directory, "model.tflite"), "rb") as file:
        return tflite.Interpreter(file.read())


def _write_saved_model(directory, checkpoint, options):
    served = restoring.serve(
        checkpoint, options.max_seq_length, options.text_names
    )
    saved_model.save(os.path.join(directory, "saved_model", "1"), served)


def _open_saved_model(directory, _=None):
    return saved_model.SavedModel(os.path.join(directory, "saved_model", "1"))


def _write_huggingface(is_packed):
    def write(directory, checkpoint, options):
        checkpoints.save_huggingface(
            *(directory, checkpoint.config, checkpoint.weights),
            *(checkpoint.vocabulary, checkpoint.do_lower_case),
            *(checkpoint.task, checkpoint.tasks),
            Storage(options.quantization, is_packed),
        )

    return write


def _write_official(directory, checkpoint, _):
    checkpoints.save_official(
        *(directory, checkpoint.config, checkpoint.weights),
        checkpoint.vocabulary,
    )


def _open_checkpoint(directory, _=None):
    checkpoint = checkpoints.load_checkpoint(directory)
    forward = evaluation.trace_logits(*restoring.restore_model(checkpoint))
    return lambda inputs: forward(
        [tf.constant(array, tf.int32) for array in inputs]
    ).numpy()


def _open_official(directory, task=None):
    forward, columns = _open_checkpoint(directory), _tf1_columns(task)
    if columns is None:
        return forward
    return lambda inputs: forward(inputs)[:, np.argsort(columns)]


_HUGGINGFACE_FILES = (
    "model.safetensors",
    "config.json",
    "tokenizer_config.json",
    "vocab.txt",
)

# By the name that --format takes.
FORMATS = {
    "tflite": Format(
        _write_tflite,
        _open_tflite,
        ("model.tflite", "vocab.txt"),
    ),
    "saved_model": Format(
        _write_saved_model, _open_saved_model, ("saved_model",)
    ),
    "huggingface": Format(
        _write_huggingface(is_packed=False),
        _open_checkpoint,
        _HUGGINGFACE_FILES,
        prepare=_expand,
        reference=_in_float32,
    ),
    "compressed_tensors": Format(
        _write_huggingface(is_packed=True),
        _open_checkpoint,
        _HUGGINGFACE_FILES,
    ),
    "official": Format(
        _write_official,
        _open_official,
        (
            "bert_model.ckpt.data-00000-of-00001",
            "bert_model.ckpt.index",
            "bert_config.json",
            "vocab.txt",
        ),
        prepare=_expand_for_tf1,
        reference=_in_float32,
    ),
}
