"""Checkpoints of every format, loaded to and saved from one form.

| format | path | read | written |
|---|---|---|---|
| official TF1 | directory, or prefix of `*.index` | yes | `save_official` |
| Hugging Face | directory | yes | `save_huggingface` |
| our run | directory | yes | `save_huggingface` |
| keras-hub preset | `preset:NAME` | yes | no |

Only the official format needs TensorFlow, which is imported for it alone.
"""

import dataclasses
import os
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from bert_pruning.errors import UserError
from bert_pruning.modeling import huggingface
from bert_pruning.modeling import keras_hub_preset
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.files import is_lower_case
from bert_pruning.modeling.files import read_json
from bert_pruning.modeling.files import replaced_files
from bert_pruning.modeling.names import weight_table
from bert_pruning.modeling.quantization import Quantization
from bert_pruning.modeling.quantization import is_range
from bert_pruning.modeling.quantization import new_range

PRESET_PREFIX = "preset:"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A BERT read from files.

    Args:
        config: BertConfig. Its shape.
        weights: dict from canonical name to float32 array, heads included.
        vocabulary: tuple of str.
        do_lower_case: bool. Whether texts are lower-cased: never with a cased
            vocabulary, always with an uncased one, unless a file of the
            checkpoint says that its texts are not.
        task: dict or None. The task block of a run: "name", "labels", ...
        tasks: dict from name to dict. Of a run of several tasks, what it keeps
            of each: "task" as above, and "structure", the part of the model
            that the task uses, or None: all of it.
        source: str. "official", "huggingface", "run" or "preset".
        path: str. What was passed to `load_checkpoint`.
        notes: tuple of str. What a person should know: heads that are
            missing or were left out.
    """

    config: BertConfig
    weights: dict[str, np.ndarray]
    vocabulary: tuple[str, ...]
    do_lower_case: bool
    task: dict | None
    source: str
    path: str
    notes: tuple[str, ...] = ()
    tasks: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)

    @property
    def new_layers(self):
        """Layers that a model keeps newly initialised if this lacks them.

        Pass it as `initialized` to `set_weights`.
        """
        if "pooler/kernel" in self.weights:
            return ("classifier",)
        return ("classifier", "pooler")


def load_checkpoint(path: str):
    """Loads a BERT checkpoint of any known format.

    Every weight in it is mapped exactly once; what is missing, unknown or of
    the wrong shape is an error. The pooler and the heads may be absent, each
    as a whole. Half-precision weights become float32.

    Args:
        path: str. An official directory (or checkpoint prefix in it), a
            Hugging Face directory, a run directory, or `preset:NAME`.

    Returns:
        A `Checkpoint`.

    Raises:
        UserError: if the path does not exist, a file is missing, truncated or
            does not fit the others.

    Example:

    ```python
    checkpoint = load_checkpoint("uncased_L-2_H-128_A-2")
    model = build_model(checkpoint.config, num_outputs=2)
    set_weights(model, checkpoint.weights, checkpoint.new_layers)
    ```

    Reference: [the official models](https://github.com/google-research/bert).
    """
    path = os.fspath(path)
    fields = {"do_lower_case": None, "task": None, "notes": (), "tasks": {}}
    fields.update(_read(path))
    notes = list(fields["notes"])
    # A model that marks spans has no use for one.
    if not {"pooler/kernel", "span/kernel"} & fields["weights"].keys():
        notes.append("The checkpoint has no pooler: a new one is initialised.")
    vocabulary = fields["vocabulary"]
    if len(vocabulary) != fields["config"].vocab_size:
        raise UserError(
            f"The vocabulary of {path} has {len(vocabulary)} entries, but the "
            f"model has {fields['config'].vocab_size} (vocab_size in its "
            "configuration). Put the vocab.txt that belongs to the model "
            "beside it."
        )
    fields["do_lower_case"] = (
        is_lower_case(vocabulary) and fields["do_lower_case"] is not False
    )
    return Checkpoint(**{**fields, "path": path, "notes": tuple(notes)})


def requantize(checkpoint: Checkpoint, quantization: Quantization | None):
    """Returns a checkpoint that computes in 8 bits as is said, or not at all.

    Ranges that it has stay; those that it lacks were never observed.

    Args:
        checkpoint: Checkpoint.
        quantization: Quantization or None.
    """
    config = dataclasses.replace(checkpoint.config, quantization=quantization)
    weights = {n: a for n, a in checkpoint.weights.items() if not is_range(n)}
    for row in weight_table(config, "huggingface"):
        if is_range(row.name):
            weights[row.name] = checkpoint.weights.get(
                row.name, new_range(row.shape)
            )
    return dataclasses.replace(checkpoint, config=config, weights=weights)


def resolve_do_lower_case(checkpoint: Checkpoint, flag: bool | None):
    """Returns whether texts are lower-cased, checking what was asked for.

    What agrees with the vocabulary or with the checkpoint's files is granted.

    Args:
        checkpoint: Checkpoint.
        flag: bool or None. What the person asked for; None to follow the
            checkpoint.

    Returns:
        bool.

    Raises:
        UserError: if the flag contradicts the vocabulary: the tokens of most
            words would not be found.
    """
    if flag is None:
        return checkpoint.do_lower_case
    lower_case = is_lower_case(checkpoint.vocabulary)
    if flag in (lower_case, checkpoint.do_lower_case):
        return flag
    casing = "an uncased" if lower_case else "a cased"
    raise UserError(
        f"{checkpoint.path} has {casing} vocabulary. Received: "
        f"--do_lower_case={str(flag).lower()}. Leave the flag out, or pass "
        f"--do_lower_case={str(lower_case).lower()}."
    )


def save_huggingface(
    directory: str,
    config: BertConfig,
    weights: Mapping[str, np.ndarray],
    vocabulary: Sequence[str],
    do_lower_case: bool,
    task: Mapping | None = None,
    tasks: Mapping[str, Mapping] | None = None,
    storage: huggingface.Storage | None = None,
):
    """Saves a model as a Hugging Face checkpoint, which is also a run's.

    `transformers.AutoModelForSequenceClassification.from_pretrained` and
    `AutoTokenizer.from_pretrained` load it where `config.is_uniform`. Pruned
    shapes are stored as they are; `load_checkpoint` reads them back.

    The files are written beside each other first and then moved into place:
    a failure leaves the directory as it was.

    Args:
        directory: str. Created if missing; other files in it stay.
        config: BertConfig.
        weights: mapping from canonical name to array, heads included.
        vocabulary: sequence of str.
        do_lower_case: bool.
        task: mapping or None. JSON-serialisable; "labels" (empty for a
            regression) become the names of the classifier's outputs.
        tasks: mapping or None. See `Checkpoint`.
        storage: huggingface.Storage or None. None: whole float32 arrays.

    Raises:
        UserError: if the directory cannot be written to, or weights,
            vocabulary and task do not fit the configuration.

    Example:

    ```python
    save_huggingface(
        "out", model_config, get_weights(model), vocabulary, True,
        task={"name": "MRPC", "labels": ["0", "1"]},
    )
    ```
    """
    _check_vocabulary(config, vocabulary)
    with replaced_files(directory, last=[huggingface.CONFIG_FILE]) as partial:
        huggingface.write_huggingface(
            *(partial, config, weights, vocabulary, do_lower_case),
            *(task, tasks, storage),
        )


def save_official(
    directory: str,
    config: BertConfig,
    weights: Mapping[str, np.ndarray],
    vocabulary: Sequence[str],
):
    """Saves a model as an official TF1 checkpoint.

    A classifier is stored as the official fine-tuning code does, in
    `output_weights` and `output_bias`. The format does not record the casing:
    the vocabulary tells it.

    Args:
        directory: str. Created if missing; other files in it stay.
        config: BertConfig. Uniform, and not with the erf gelu, which the
            official code cannot compute.
        weights: mapping from canonical name to array, heads included.
        vocabulary: sequence of str.

    Raises:
        UserError: if the directory cannot be written to, or the official
            code could not build the model.
    """
    from bert_pruning.modeling import official

    _check_vocabulary(config, vocabulary)
    with replaced_files(directory, last=[official.CONFIG_FILE]) as partial:
        official.write_official(partial, config, weights, vocabulary)


def _read(path):
    if path.startswith(PRESET_PREFIX):
        preset = path[len(PRESET_PREFIX) :]
        return {**keras_hub_preset.read_preset(preset), "source": "preset"}
    if os.path.isdir(path):
        return _read_directory(path)
    if os.path.exists(f"{path}.index"):
        from bert_pruning.modeling import official

        return {**official.read_official(path), "source": "official"}
    if os.path.exists(path):
        raise UserError(
            f"{path} is a file. Pass the checkpoint's directory, or the prefix "
            "of an official checkpoint (without .index or .data-...)."
        )
    raise UserError(
        f"There is no checkpoint {path}. Pass the directory of an official "
        "(bert_config.json, bert_model.ckpt.*, vocab.txt) or a Hugging Face "
        "checkpoint (config.json, model.safetensors or pytorch_model.bin, "
        "vocab.txt), a run, or preset:NAME."
    )


def _read_directory(path):
    there = set(os.listdir(path))
    if huggingface.CONFIG_FILE in there:
        values = read_json(os.path.join(path, huggingface.CONFIG_FILE))
        if str(values.get("registered_name")).startswith("keras_hub"):
            return {**keras_hub_preset.read_preset(path), "source": "preset"}
    # Some repositories hold both formats.
    is_huggingface = there & set(huggingface.WEIGHT_FILES)
    is_official = any(name.endswith(".index") for name in there)
    if is_huggingface or (huggingface.CONFIG_FILE in there and not is_official):
        return huggingface.read_huggingface(path)

    from bert_pruning.modeling import official

    if is_official or official.CONFIG_FILE in there:
        prefix = official.find_prefix(path)
        return {**official.read_official(prefix), "source": "official"}
    if "flags.cfg" in there and "DONE" not in there:
        raise UserError(
            f"{path} is a run that did not end. Give the command that began it "
            "again (its flags.cfg is a flagfile) to resume it."
        )
    raise UserError(
        f"{path} is no checkpoint: it has neither config.json (Hugging Face, "
        "or a run) nor bert_config.json (official). It holds: "
        f"{', '.join(sorted(there)) or 'nothing'}."
    )


def _check_vocabulary(config, vocabulary):
    if len(vocabulary) != config.vocab_size:
        raise UserError(
            f"The vocabulary to be saved has {len(vocabulary)} entries, but "
            f"the model has {config.vocab_size}."
        )
