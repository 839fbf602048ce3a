"""Runs a model of any kind: a checkpoint, an export, or in another program.

    run = Runner("exported/mrpc", num_threads=2)
    run.ids([ids, mask, type_ids])
    run.texts(["It rains.", "It is wet."])

| name | what runs it |
|---|---|
| `runs/mrpc` | Keras, a checkpoint of any format |
| `exported/mrpc` | TFLite or TensorFlow, what `export` wrote |
| `pytorch:runs/mrpc` | Hugging Face Transformers |
| `onnx:runs/mrpc` | ONNX Runtime, what PyTorch exports of the same |

Made for one process each: the threads of one program that wait for work slow
down another.
"""

import functools
import glob
import importlib
import os
import tempfile

import numpy as np

from bert_pruning.errors import UserError
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.files import read_json

PEERS = ("pytorch", "onnx")

# The names that Transformers has for the inputs.
_PEER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

_NEEDED = {
    "pytorch": ("torch", "transformers"),
    "onnx": ("torch", "transformers", "onnx", "onnxscript", "onnxruntime"),
}


def split_peer(name):
    """Splits what is named into a program, or "", and a path."""
    program, colon, path = name.partition(":")
    return (program, path) if colon and program in PEERS else ("", name)


def is_export(path):
    """Returns whether `export` wrote a folder, in a form that is no checkpoint.

    Args:
        path: str.
    """
    return read_export(path).get("format") in ("tflite", "saved_model")


def read_export(path):
    """Returns what `export.json` says; an empty dict without one.

    Raises:
        UserError: if it cannot be read.
    """
    file = os.path.join(path, "export.json")
    return read_json(file) if os.path.exists(file) else {}


def check_runnable(name):
    """Finds out, before anything is loaded, whether a name can be run.

    Raises:
        UserError: if there is nothing, or a package is not installed.
    """
    program, path = split_peer(name)
    if not os.path.isdir(path) and not path.startswith("preset:"):
        raise UserError(
            f"There is no folder {path}. Pass runs, checkpoints or exports, or "
            f"{' or '.join(f'{peer}:CHECKPOINT' for peer in PEERS)}."
        )
    if is_export(path) and not os.path.exists(os.path.join(path, "DONE")):
        raise UserError(f"{path} is an export that did not end. Repeat it.")
    if program and (is_export(path) or not _runs_elsewhere(path)):
        raise UserError(
            f"{program} runs checkpoints of the common shape in float32: "
            "export this one with --format=huggingface first. Received: "
            f"{path}."
        )
    for package in _NEEDED.get(program, ()):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"{name} needs the package {package}: pip install "
                f"'bert_pruning[peers]', or leave it out."
            )


def read_config(path):
    """Returns the content of a checkpoint's configuration, if it has one.

    Raises:
        UserError: if it cannot be read.
    """
    for name in ("config.json", "bert_config.json"):
        file = os.path.join(path, name)
        if os.path.exists(file):
            return read_json(file)
    return {}


def _runs_elsewhere(path):
    """Whether Transformers computes what a run of ours does."""
    values = read_config(path)
    if "bert_pruning" not in values:
        return True
    config = BertConfig.from_huggingface(values)
    is_packed = "quantization_config" in values
    return config.is_uniform and not config.quantization and not is_packed


def check_length(name, length, with_tokenization=False):
    """Finds out, before anything is loaded, whether texts may be so long.

    Args:
        name: str. See above.
        length: int. In tokens.
        with_tokenization: bool. Whether they are given as texts.

    Raises:
        UserError: if not.
    """
    _, path = split_peer(name)
    exported = read_export(path)
    if not is_export(path):
        limit = read_config(path).get("max_position_embeddings")
    elif with_tokenization and exported["format"] == "saved_model":
        # What a file cuts to by itself would be measured as fast.
        limit = exported["max_seq_length"]
    else:
        limit = exported.get("length")
    if limit and length > limit:
        raise UserError(
            f"{path} takes up to {limit} tokens. Received: --lengths={length}."
        )


class Runner:
    """A model that is loaded, and how it is run.

    Args:
        name: str. See above.
        num_threads: int. Not of TensorFlow, which reads it from the
            environment, `TF_NUM_INTRAOP_THREADS`, when it is imported.

    Attributes:
        ids: function of int32 arrays `(batch, length)` of ids, mask and types.
        texts: function of a list of str, tokenization included.
        num_bytes: int. Of the model's file, or of all in its folder.
    """

    def __init__(self, name, num_threads):
        program, path = split_peer(name)
        exported = read_export(path)
        if program:
            build = functools.partial(_build_peer, program)
        elif is_export(path):
            build = _BUILDERS[exported["format"]]
        else:
            build = _build_keras
        self.ids, self.texts, self.num_bytes = build(path, num_threads)


def _build_keras(path, _):
    import tensorflow as tf

    from bert_pruning.delivery.restoring import restore_model
    from bert_pruning.modeling.checkpoints import load_checkpoint
    from bert_pruning.training.evaluation import trace_logits

    checkpoint = load_checkpoint(path)
    forward = trace_logits(*restore_model(checkpoint))

    def run(batch):
        return forward([tf.constant(array) for array in batch]).numpy()

    encode = _encoder(checkpoint.vocabulary, checkpoint.do_lower_case)
    return run, lambda texts: run(encode(texts)), _checkpoint_bytes(path)


def _build_tflite(path, num_threads):
    from bert_pruning.delivery import tflite
    from bert_pruning.modeling.files import read_vocabulary

    with open(os.path.join(path, "model.tflite"), "rb") as file:
        content = file.read()
    run = tflite.Interpreter(content, num_threads)
    vocabulary = read_vocabulary(os.path.join(path, "vocab.txt"))
    encode = _encoder(vocabulary, read_export(path)["do_lower_case"])
    return run, lambda texts: run(encode(texts)), len(content)


def _build_saved_model(path, _):
    from bert_pruning.delivery.saved_model import QUESTION
    from bert_pruning.delivery.saved_model import SavedModel

    run = SavedModel(os.path.join(path, "saved_model", "1"))

    def read(texts):
        others = [[""] * len(texts) for _ in run.text_names[1:]]
        if run.text_names == QUESTION:
            # One [SEP] more than other rows, one word less.
            shorter = [text.rpartition(" ")[0] for text in texts]
            return run.read(*others, shorter)
        return run.read(texts, *others)

    return run, read, read_export(path)["bytes"]


def _build_peer(program, path, num_threads):
    import torch
    import transformers

    torch.set_num_threads(num_threads)
    config = transformers.AutoConfig.from_pretrained(path)
    name = (config.architectures or ["BertModel"])[0]
    model = getattr(transformers, name).from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    num_bytes = _checkpoint_bytes(path)

    if program == "pytorch":

        def run(batch):
            tensors = [torch.from_numpy(each).long() for each in batch]
            with torch.inference_mode():
                named = dict(zip(_PEER_INPUTS, tensors, strict=True))
                return model(**named)[0].numpy()

    else:
        run, num_bytes = _build_onnx(torch, model, num_threads)

    def encode(texts):
        found = tokenizer(texts, padding=True, return_tensors="np")
        return [found[each].astype(np.int32) for each in _PEER_INPUTS]

    return run, lambda texts: run(encode(texts)), num_bytes


def _build_onnx(torch, model, num_threads):
    import onnxruntime

    # Three tensors: of one that is given three times it makes one input.
    examples = {n: torch.ones((2, 8), dtype=torch.long) for n in _PEER_INPUTS}
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        torch.onnx.export(
            model,
            (),
            path,
            kwargs=examples,
            dynamic_shapes=dict.fromkeys(_PEER_INPUTS, {0: batch, 1: length}),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        num_bytes = os.path.getsize(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        session = onnxruntime.InferenceSession(path, options)
    names = [each.name for each in session.get_inputs()]

    def run(batch):
        arrays = dict(zip(_PEER_INPUTS, batch, strict=True))
        feed = {name: arrays[name].astype(np.int64) for name in names}
        return session.run(None, feed)[0]

    return run, num_bytes


_BUILDERS = {"tflite": _build_tflite, "saved_model": _build_saved_model}


def _encoder(vocabulary, do_lower_case):
    from bert_pruning.data.tokenization import BertTokenizer

    tokenizer = BertTokenizer(vocabulary, do_lower_case)

    def encode(texts):
        packed = tokenizer.pack(*tokenizer.encode(texts, max_seq_length=512))
        return [array.numpy() for array in packed.values()]

    return encode


def _checkpoint_bytes(path):
    """Returns the bytes of a checkpoint's weights, in whatever format.

    Of a folder with several formats, those of the first, which is loaded.
    """
    patterns = ("*.safetensors", "pytorch_model*.bin", "*.data-*", "*.h5")
    found = (
        glob.glob(os.path.join(glob.escape(path), pattern))
        for pattern in patterns
    )
    return sum(map(os.path.getsize, next(filter(None, found), ())))
