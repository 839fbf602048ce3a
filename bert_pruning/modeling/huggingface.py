"""Reads and writes the files of a Hugging Face BERT, and so of our runs.

A directory holds `config.json`, the weights in `model.safetensors` or
`pytorch_model.bin` (whole or in shards), and the vocabulary in `vocab.txt` or
`tokenizer.json`. A run is the same with a `bert_pruning` block in its
`config.json`: the full shape, the task and the casing. A DistilBERT is read as
the BERT that it is.
"""

import dataclasses
import os
from collections.abc import Mapping
from collections.abc import Sequence

import ml_dtypes  # noqa: F401 -- gives NumPy the bfloat16 of safetensors
import numpy as np
import safetensors
import safetensors.numpy

from bert_pruning.errors import UserError
from bert_pruning.modeling import bitmask
from bert_pruning.modeling import distilbert
from bert_pruning.modeling import int_quantized
from bert_pruning.modeling import mapping
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.files import check_object
from bert_pruning.modeling.files import complaints_about
from bert_pruning.modeling.files import read_json
from bert_pruning.modeling.files import read_vocabulary
from bert_pruning.modeling.files import require_files
from bert_pruning.modeling.files import write_json
from bert_pruning.modeling.files import write_vocabulary
from bert_pruning.modeling.names import find_tasks
from bert_pruning.modeling.quantization import RANGES
from bert_pruning.modeling.torch_pickle import read_torch_tensors

CONFIG_FILE = "config.json"

# In order of preference; an index lists the shards that hold each weight.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_HEAD_PREFIXES = (
    "bert.",
    "cls.",
    "classifier.",
    "classifiers.",
    "qa_outputs.",
)

# Their classifier does not look at the pooled output, or not at one text.
_OTHER_CLASSIFIERS = (
    "BertForTokenClassification",
    "BertForMultipleChoice",
    "DistilBertForTokenClassification",
    "DistilBertForMultipleChoice",
)

_ARCHITECTURES = (
    ("classifier/kernel", "BertForSequenceClassification"),
    ("span/kernel", "BertForQuestionAnswering"),
    ("next_sentence/kernel", "BertForPreTraining"),
    ("mlm_output/bias", "BertForMaskedLM"),
)


@dataclasses.dataclass(frozen=True)
class Storage:
    """How weights are kept in a file.

    Args:
        quantization: str. "none": as float32. "float16": all so. "int8": what
            computes in 8 bits as int8; see `int_quantized`. Only packed files
            tell what was pruned from what is rounded to zero.
        is_packed: bool. Of sparse matrices only what is not zero; see
            `bitmask`.

    Raises:
        UserError: if there is no such storage.
    """

    quantization: str = "none"
    is_packed: bool = False

    def __post_init__(self):
        known = ("none", "float16", *(("int8",) if self.is_packed else ()))
        if self.quantization not in known:
            raise UserError(
                f"Weights are stored as {' or '.join(known)}. Received: "
                f"{self.quantization!r}."
            )


def read_huggingface(directory: str):
    """Reads a Hugging Face checkpoint or a run.

    Args:
        directory: str.

    Returns:
        A dict with `config`, `weights`, `vocabulary`, `do_lower_case` (None
        where the files do not say), `task`, `tasks`, `source` and `notes`.

    Raises:
        UserError: if a file is missing or broken, or the weights do not match
            the configuration.
    """
    require_files(
        directory,
        [CONFIG_FILE, " or ".join(WEIGHT_FILES), "vocab.txt or tokenizer.json"],
    )
    path = os.path.join(directory, CONFIG_FILE)
    values = read_json(path)
    is_distilbert = values.get("model_type") == distilbert.MODEL_TYPE
    with complaints_about(path):
        if is_distilbert:
            values = distilbert.as_bert_config(values)
        config = BertConfig.from_huggingface(values)
        task = _read_task(values)
        tasks = _read_tasks(values)
    arrays, notes = _read_arrays(directory), []
    if is_distilbert:
        arrays, notes = distilbert.as_bert_arrays(arrays)
    notes += _drop_foreign_heads(arrays, values.get("architectures") or ())
    if config.quantization is not None and not _has_ranges(arrays):
        config = dataclasses.replace(config, quantization=None)
        notes.append(
            "The ranges of its 8-bit arithmetic are gone, as other programs "
            "do not keep them; it computes in float32."
        )
    rows = mapping.match_weights(
        config,
        {name: array.shape for name, array in arrays.items()},
        "huggingface",
        directory,
    )
    heads = find_tasks(arrays, "huggingface")
    if set(heads) != set(tasks):
        raise UserError(
            f"{path} names the tasks {', '.join(tasks) or 'none'}, but there "
            f"are classifiers for {', '.join(heads) or 'none'}."
        )
    for row in rows:
        if arrays[row.stored_name].dtype.kind in "iub":
            raise UserError(
                f"{row.stored_name} in {directory} is stored as "
                f"{arrays[row.stored_name].dtype}, without a "
                f"{row.stored_name}_scale. Of quantised checkpoints those can "
                "be loaded whose weights are symmetric int8, with a scale for "
                "each row or matrix; of others use the float one."
            )
    vocabulary, lower_case = _read_tokenizer(directory)
    block = values.get("bert_pruning", {})
    return {
        "config": config,
        "weights": {
            row.name: row.convert(arrays[row.stored_name]) for row in rows
        },
        "vocabulary": vocabulary,
        "do_lower_case": block.get("do_lower_case", lower_case),
        "task": task,
        "tasks": tasks,
        "source": "run" if block else "huggingface",
        "notes": notes,
    }


def write_huggingface(
    directory: str,
    config: BertConfig,
    weights: Mapping,
    vocabulary: Sequence[str],
    do_lower_case: bool,
    task: Mapping | None = None,
    tasks: Mapping[str, Mapping] | None = None,
    storage: Storage | None = None,
):
    """Writes a run: what `read_huggingface` reads back, and Transformers too.

    Raises:
        UserError: if the weights do not fit the configuration or the task.
        OSError: if a file cannot be written.
    """
    stored = mapping.stored_weights(config, weights, "huggingface")
    # A masked weight may be -0.0, which is nothing that a file should keep.
    stored = {n: array + array.dtype.type(0) for n, array in stored.items()}
    values = config.to_huggingface()
    values["architectures"] = [
        next((a for name, a in _ARCHITECTURES if name in weights), "BertModel")
    ]
    if "classifier/kernel" in weights:
        values.update(_task_fields(weights["classifier/kernel"].shape[1], task))
    values["bert_pruning"].update(
        task=None if task is None else dict(task),
        tasks={name: dict(values) for name, values in (tasks or {}).items()},
        do_lower_case=do_lower_case,
    )
    storage, kept = storage or Storage(), {}
    if storage.quantization == "int8":
        floats, stored = stored, int_quantized.quantize(config, weights, stored)
        kept = {
            name: array != 0
            for name, array in floats.items()
            if stored[name].dtype == np.int8
        }
    stored = _apply_storage(storage, stored, kept, values)
    with open(os.path.join(directory, WEIGHT_FILES[0]), "wb") as file:
        file.write(safetensors.numpy.save(stored, {"format": "pt"}))
    write_vocabulary(os.path.join(directory, "vocab.txt"), vocabulary)
    write_json(
        os.path.join(directory, "tokenizer_config.json"),
        {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": do_lower_case,
            "model_max_length": config.max_position_embeddings,
            "tokenize_chinese_chars": True,
            "strip_accents": None,
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
    )
    write_json(os.path.join(directory, CONFIG_FILE), values)


def _apply_storage(storage, stored, kept, values):
    """Returns the arrays of the file; tells other programs in `values`."""
    if storage.quantization == "float16":
        stored = {name: a.astype(np.float16) for name, a in stored.items()}
        values["dtype"] = "float16"
    if not storage.is_packed:
        return stored
    packed = bitmask.pack(stored, kept)
    layers = bitmask.packed_layers(packed)
    rounded = int_quantized.quantized_layers(stored)
    if not layers and not rounded:
        raise UserError(
            "No matrix has so many zeros that its file becomes smaller without "
            "them. Export it with --format=huggingface."
        )
    matrices = [
        name.removesuffix(".weight")
        for name, array in stored.items()
        if name.endswith(".weight") and array.ndim == 2
    ]
    values["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": int_quantized.FORMAT if rounded else "dense",
        "quantization_status": "compressed" if rounded else "frozen",
    }
    if rounded:
        values["quantization_config"] |= {
            "config_groups": {
                strategy: _int8_group(rounded, strategy)
                for strategy in sorted(set(rounded.values()))
            },
            "ignore": [name for name in matrices if name not in rounded],
        }
    if layers:
        sizes = [stored[f"{layer}.weight"].size for layer in layers]
        left = [packed[f"{layer}.compressed"].size for layer in layers]
        values["quantization_config"]["sparsity_config"] = {
            "format": bitmask.FORMAT,
            "global_sparsity": 1.0 - sum(left) / sum(sizes),
            "ignore": [name for name in matrices if name not in layers],
            "registry_requires_subclass": False,
            "sparsity_structure": "unstructured",
            "targets": ["Linear"],
        }
    return packed


def _int8_group(rounded, strategy):
    return {
        "targets": [name for name, each in rounded.items() if each == strategy],
        "weights": {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": strategy,
        },
    }


def _task_fields(num_outputs, task):
    labels = list((task or {}).get("labels") or ())
    if labels and len(labels) != num_outputs:
        raise UserError(
            f"The classifier has {num_outputs} outputs, but the task has the "
            f"labels {', '.join(map(str, labels))}."
        )
    if not labels:
        labels = [f"LABEL_{i}" for i in range(num_outputs)]
    return {
        "id2label": {str(i): str(label) for i, label in enumerate(labels)},
        "label2id": {str(label): i for i, label in enumerate(labels)},
        "problem_type": "regression"
        if num_outputs == 1
        else "single_label_classification",
    }


def _read_task(values):
    """Returns the task of a run, or else the classes that the file names."""
    task = values.get("bert_pruning", {}).get("task")
    if task:
        check_object(task, "bert_pruning.task", CONFIG_FILE)
        return task
    names = values.get("id2label") or {}
    check_object(names, "id2label", CONFIG_FILE)
    if not all(key.isdecimal() for key in names):
        raise UserError(
            f"The keys of id2label in {CONFIG_FILE} must be the numbers of "
            f"the outputs. Received: {', '.join(names)}"
        )
    labels = [str(names[key]) for key in sorted(names, key=int)]
    if not labels or any(label.startswith("LABEL_") for label in labels):
        return None
    return {"labels": labels}


def _read_tasks(values):
    """Returns what a run of several tasks says of each."""
    tasks = values.get("bert_pruning", {}).get("tasks") or {}
    check_object(tasks, "bert_pruning.tasks", CONFIG_FILE)
    for name, entry in tasks.items():
        check_object(entry, f"bert_pruning.tasks.{name}", CONFIG_FILE)
    return tasks


def _read_arrays(directory):
    """Returns all arrays by Hugging Face's present name of each."""
    there = set(os.listdir(directory))
    file_name = next(name for name in WEIGHT_FILES if name in there)
    shards = [file_name]
    if file_name.endswith(".index.json"):
        index = read_json(os.path.join(directory, file_name))
        files = index.get("weight_map")
        check_object(files, "weight_map", os.path.join(directory, file_name))
        shards = sorted({str(shard) for shard in files.values()})
        require_files(directory, shards)
    arrays = {}
    for shard in shards:
        path = os.path.join(directory, shard)
        read = (
            read_torch_tensors if shard.endswith(".bin") else _read_safetensors
        )
        for name, array in read(path).items():
            present = _present_name(name)
            if present in arrays:
                raise UserError(
                    f"{path} holds {present} twice, the second time as "
                    f"{name}. Remove one of the two."
                )
            arrays[present] = array
    return int_quantized.dequantize(
        bitmask.unpack(arrays, directory),
        bitmask.find_kept(arrays, int_quantized.quantized_layers(arrays)),
        directory,
        # Of files of ours it is known that what is not packed is dense.
        is_dense=_has_ranges(arrays),
    )


def _has_ranges(arrays):
    return any(name.rsplit(".", 1)[-1] in RANGES for name in arrays)


def _read_safetensors(path):
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, AttributeError, OSError) as error:
        raise UserError(
            f"{path} is truncated or is no safetensors file of float weights "
            f"({error}). Copy or download it again."
        ) from error


def _present_name(name):
    """Undoes what older or bare models do to a name."""
    if name.endswith("LayerNorm.gamma"):
        name = name[: -len("gamma")] + "weight"
    elif name.endswith("LayerNorm.beta"):
        name = name[: -len("beta")] + "bias"
    return name if name.startswith(_HEAD_PREFIXES) else f"bert.{name}"


def _drop_foreign_heads(arrays, architectures):
    """Removes heads that we would misread; returns a note on each."""
    notes = []
    foreign = set(architectures) & set(_OTHER_CLASSIFIERS)
    if foreign and "classifier.weight" in arrays:
        for name in ("classifier.weight", "classifier.bias"):
            arrays.pop(name, None)
        notes.append(f"The classifier of a {foreign.pop()} was left out.")
    decoder = arrays.get("cls.predictions.decoder.weight")
    table = arrays.get("bert.embeddings.word_embeddings.weight")
    if decoder is not None and not np.array_equal(decoder, table):
        for name in [n for n in arrays if n.startswith("cls.predictions.")]:
            del arrays[name]
        notes.append(
            "The masked-LM head was left out: its decoder is not tied to the "
            "word embeddings."
        )
    decoder_bias = arrays.get("cls.predictions.decoder.bias")
    if decoder_bias is not None:
        arrays.setdefault("cls.predictions.bias", decoder_bias)
    return notes


def _read_tokenizer(directory):
    """Returns the vocabulary, and the casing where the files say it."""
    lower_case = None
    path = os.path.join(directory, "vocab.txt")
    if os.path.exists(path):
        vocabulary = read_vocabulary(path)
    else:
        path = os.path.join(directory, "tokenizer.json")
        vocabulary, lower_case = _read_tokenizer_json(path)
    path = os.path.join(directory, "tokenizer_config.json")
    if os.path.exists(path):
        lower_case = read_json(path).get("do_lower_case", lower_case)
    return vocabulary, lower_case


def _read_tokenizer_json(path):
    values = read_json(path)
    model = values.get("model")
    check_object(model, "model", path)
    if model.get("type", "WordPiece") != "WordPiece":
        raise UserError(
            f"{path} is a {model['type']} tokenizer; a BERT has a WordPiece "
            "one."
        )
    check_object(model.get("vocab"), "model.vocab", path)
    ids = dict(model["vocab"])
    for token in values.get("added_tokens") or ():
        check_object(token, "an entry of added_tokens", path)
        if not {"content", "id"} <= token.keys():
            raise UserError(
                f"added_tokens in {path} must have a content and an id each. "
                f"Received: {token}"
            )
        ids.setdefault(token["content"], token["id"])
    if {*map(repr, ids.values())} != {*map(repr, range(len(ids)))}:
        raise UserError(
            f"The token ids in {path} do not run from 0 without a gap. Add "
            "the model's vocab.txt to the directory."
        )
    normalizer = values.get("normalizer") or {}
    check_object(normalizer, "normalizer", path)
    return tuple(sorted(ids, key=ids.get)), normalizer.get("lowercase")
