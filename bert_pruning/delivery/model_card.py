"""Says what an exported model is, in the `README.md` beside it."""

import json
import os
import pathlib

from bert_pruning.delivery import report
from bert_pruning.delivery import tables
from bert_pruning.training.run import parse_flags
from bert_pruning.training.run import read_results

# Flags of `train` that tell how a model was made, where they were given.
_METHOD = (
    "init_checkpoint",
    "teacher_checkpoint",
    "distill",
    "pruning",
    "sparsity",
    "pruning_regrowth",
    "structure",
    "tickets",
    "quantize",
    "quantize_weights",
    "quantize_embeddings",
    "aug_train",
    "optimizer",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "train_batch_size",
    "max_seq_length",
    "seed",
)

_NOTHING = ("", "none", "false", "float32")

_USES = {
    "tflite": """\
```python
from ai_edge_litert.interpreter import Interpreter
run = Interpreter("model.tflite").get_signature_runner()
# Of shape [batch, length] and int32.
run(input_word_ids=ids, input_mask=mask, input_type_ids=types)
```

The ids are those of `vocab.txt`; `bert_pruning.data.tokenization.BertTokenizer`
gives them, and so does any tokenizer of BERT.""",
    "saved_model": """\
```bash
tensorflow_model_server --rest_api_port=8501 --model_name=bert \\
    --model_base_path="$PWD/saved_model"
curl -d '{request}' http://localhost:8501/v1/models/bert:predict
```

In Python `import tensorflow_text`, then load it by
`tf.saved_model.load("saved_model/1")`.""",
    "huggingface": """\
```python
from transformers import {auto_class}, AutoTokenizer
model = {auto_class}.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```""",
    "compressed_tensors": """\
`bert_pruning` loads this folder as `--init_checkpoint`; the arrays of
`model.safetensors` are in layouts of compressed-tensors: sparse-bitmask where
matrices have zeros, int-quantized where weights have 8 bits.""",
    "official": """\
The TF1 code of BERT takes `bert_model.ckpt` as its `--init_checkpoint`.""",
}


def write_card(checkpoint, exported, text_names):
    """Returns the text of a model card, in Markdown.

    Args:
        checkpoint: Checkpoint. What was exported; its flags and results are
            read where it is a run.
        exported: dict. What `export.json` says.
        text_names: tuple of str. See `saved_model.Served`.
    """
    task = checkpoint.task or {}
    title = task.get("data_name") or task.get("name") or "no task"
    measured = report.measure(checkpoint)
    lines = [
        f"# BERT for {title}" if task else "# BERT",
        "",
        f"Format: {exported['format']}, quantization "
        f"{exported['quantization']}, {exported['bytes']:,} bytes.",
        "",
        tables.as_markdown(["", ""], _facts(measured, exported), 2),
        "",
        "## Use",
        "",
        _use(exported, text_names, checkpoint),
        "",
        *_method(checkpoint.path),
    ]
    return "\n".join(lines)


def _facts(measured, exported):
    yield "shape", measured.config.short_name
    yield "parameters", f"{measured.whole.size:,}"
    yield (
        "zeros",
        f"{measured.encoder.sparsity:.1%} of the encoder's kernels, "
        f"{measured.whole.sparsity:.1%} of all",
    )
    yield (
        f"multiply-accumulate operations on {report.LENGTH} tokens",
        f"{measured.macs:,}",
    )
    yield "tokens at most", f"{exported['max_seq_length']}"
    if exported["batch_size"] or exported["length"]:
        rows, length = exported["batch_size"], exported["length"]
        yield (
            "shape of its inputs",
            f"[{rows or 'any number'}, {length or 'any number'}]",
        )
    yield "lower-cases texts", "yes" if exported["do_lower_case"] else "no"
    if exported["labels"]:
        yield "labels", ", ".join(exported["labels"])
    yield (
        "largest difference from the model",
        f"{exported['max_difference']:.2g}",
    )
    if "rounding_difference" in exported:
        yield (
            "largest difference from it before its ranges were found",
            f"{exported['rounding_difference']:.2g}",
        )
    for name in sorted(exported):
        if name.startswith("eval_"):
            metric, source = name.removeprefix("eval_").rsplit("_", 1)
            source = "of the model" if source == "keras" else "of this file"
            yield f"{metric} {source}", f"{exported[name]:.4f}"


def _use(exported, text_names, checkpoint):
    examples = ("It rains.", "It is wet.")[: len(text_names)]
    fields = dict(zip(text_names, examples, strict=True))
    request = json.dumps({"instances": [fields]})
    kinds = {
        "classifier/kernel": "AutoModelForSequenceClassification",
        "span/kernel": "AutoModelForQuestionAnswering",
    }
    auto_class = next(
        (kinds[name] for name in kinds if name in checkpoint.weights),
        "AutoModel",
    )
    text = _USES[exported["format"]]
    text = text.replace("{request}", request)
    return text.replace("{auto_class}", auto_class)


def _method(path):
    """Says how a run was made; of another checkpoint nothing is known."""
    found = pathlib.Path(path, "flags.cfg")
    if not found.exists():
        return []
    text = found.read_text(encoding="utf-8")
    given = parse_flags(text)
    method = [
        (name, given[name])
        for name in _METHOD
        if given.get(name, "") not in _NOTHING
    ]
    lines = ["## Method", "", tables.as_markdown(["flag", ""], method, 2)]
    results = os.path.join(path, "eval_results.txt")
    if os.path.exists(results):
        found = [
            (name, f"{value:.4f}")
            for name, value in sorted(read_results(results).items())
            if name.startswith("eval_") and name != "eval_time"
        ]
        lines += ["", "When it was trained:", ""]
        lines.append(tables.as_markdown(["", ""], found))
    return [
        *lines,
        "",
        "The flagfile of that training:",
        "",
        "```",
        text + "```",
        "",
    ]
