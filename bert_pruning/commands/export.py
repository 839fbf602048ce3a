r"""Writes a model for other programs to run.

    python -m bert_pruning export --init_checkpoint=runs/mrpc_int8 \
        --output_dir=exported/mrpc_int8 --data_dir=glue

A model that was trained with --quantize=int8 computes in int8 in the file too.
The file is run on some sentences, and with --data_dir on a split of the task,
before the command says that it is done; `export.json` tells how far its outputs
are from the model's.
"""

import dataclasses
import json

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS

_FILE = "model.tflite"

# Rounding to 8 bits carries small differences on; they may not change much.
_TOLERANCE = {False: 1e-3, True: 0.25}

# Tasks on whose data a file is not scored.
_UNSCORED = ("pretraining", *shared.SQUAD_VERSIONS)

_TEXTS = (
    ("A plane is taking off.", "An air plane is taking off."),
    ("The book was better than the film.", "I liked neither of the two."),
    ("Rain", ""),
    (
        "He bought 3 apples, 2 pears & a melon for $4.50 at the corner shop.",
        "At the shop on the corner he spent less than five dollars on fruit.",
    ),
    ("Who wrote it?", "Nobody knows who wrote it, or when it was written."),
)


def define_flags():
    """Defines the flags of `export`."""
    shared.define_data_flags()
    flags.DEFINE_string("init_checkpoint", None, "The model.")
    flags.DEFINE_string("output_dir", None, "The folder to write.")
    flags.DEFINE_bool("overwrite", False, "Replace what is in --output_dir.")
    flags.DEFINE_enum("format", "tflite", ["tflite"], "Of the file.")
    flags.DEFINE_string(
        "split", "dev", "With --data_dir, the split on which both are scored."
    )


def check_flags():
    """Finds what is wrong before anything is loaded."""
    shared.require("init_checkpoint", "output_dir")
    shared.check_separate(FLAGS.output_dir, "init_checkpoint", "data_dir")
    task_name = (FLAGS.task_name or "").lower()
    if FLAGS.data_dir and task_name in _UNSCORED:
        raise UserError(
            f"The file of a model of {FLAGS.task_name} is checked on sentences "
            "alone. Leave out --data_dir."
        )
    if not FLAGS.data_dir and shared.is_changed("split"):
        raise UserError("--split needs --data_dir.")


def main():
    """Exports by the flags; returns the exit status."""
    check_flags()

    from bert_pruning.commands import inputs
    from bert_pruning.delivery import restoring
    from bert_pruning.delivery import tflite
    from bert_pruning.modeling.files import write_vocabulary
    from bert_pruning.training.run import Run

    run = Run(FLAGS.output_dir, shared.flags_as_text(), FLAGS.overwrite)
    inputs.find_gpus()
    checkpoint, scored = _load(inputs)
    tokenizer = inputs.find_tokenizer(checkpoint)
    restoring.check_observed(checkpoint)
    is_quantized = checkpoint.config.quantization is not None
    model, output = restoring.restore_model(checkpoint)
    content = tflite.convert(model, output, is_quantized)
    found = _compare(
        lambda inputs: model(inputs, training=False)[output],
        tflite.Interpreter(content),
        tokenizer,
        is_quantized,
    )
    if scored is not None:
        found.update(_score(model, content, *scored))
    # What was there goes only now.
    run.begin()
    with run.writing():
        run.path(_FILE).write_bytes(content)
        write_vocabulary(str(run.path("vocab.txt")), checkpoint.vocabulary)
    found.update(
        format=FLAGS.format,
        output=output,
        bytes=len(content),
        quantized=is_quantized,
        do_lower_case=tokenizer.do_lower_case,
        labels=list((checkpoint.task or {}).get("labels") or ()),
    )
    run.write_text("export.json", json.dumps(found, indent=2) + "\n")
    run.complete()
    for name in sorted(found):
        print(f"{name} = {found[name]}")
    print(f"Exported: {run.path(_FILE)}")
    return 0


def _load(inputs):
    """Returns the checkpoint, and the task and data to score it on, if any.

    Its outputs are in the order of the task's labels.
    """
    if not FLAGS.data_dir:
        checkpoint = inputs.load_checkpoint(FLAGS.init_checkpoint)
        if FLAGS.task_name and FLAGS.task_name.lower() not in _UNSCORED:
            task = inputs.evaluation_task(checkpoint)
            weights = inputs.classifier_weights(checkpoint, task)
            checkpoint = dataclasses.replace(checkpoint, weights=weights)
        return checkpoint, None
    models = inputs.load_models(FLAGS.init_checkpoint)
    if len(models) > 1:
        raise UserError(
            "A file holds one task's model. Say which by --task_name. "
            f"Received: {', '.join(task.name for _, task, _ in models)}."
        )
    checkpoint, task, weights = models[0]
    _, dataset = inputs.read_encoded(
        task, FLAGS.split, inputs.find_tokenizer(checkpoint)
    )
    if dataset.labels is None:
        raise UserError(
            f"The {FLAGS.split} split of {task.name} has no labels to score "
            "the model by."
        )
    labels = {"labels": list(task.labels)}
    checkpoint = dataclasses.replace(checkpoint, weights=weights, task=labels)
    return checkpoint, (task, dataset)


def _compare(forward, interpreter, tokenizer, is_quantized):
    """Runs both on the sentences; returns how far apart they are."""
    import numpy as np

    from bert_pruning.training.step import INPUT_NAMES

    first, second = zip(*_TEXTS, strict=True)
    packed = tokenizer.pack(
        *tokenizer.encode(first, second, FLAGS.max_seq_length)
    )
    batch = [packed[name].numpy() for name in INPUT_NAMES]
    expected, actual = np.asarray(forward(batch)), interpreter(batch)
    difference = float(np.abs(expected - actual).max())
    allowed = _TOLERANCE[is_quantized] * max(1.0, np.abs(expected).max())
    if not difference <= allowed:
        raise UserError(
            f"The file's outputs are up to {difference:.4g} from the model's, "
            f"where {allowed:.4g} is allowed. It was not written."
        )
    return {"max_difference": difference}


def _score(model, content, task, dataset):
    from bert_pruning.delivery import tflite
    from bert_pruning.training import evaluation

    results = {}
    for name, forward in (
        ("keras", evaluation.trace_logits(model)),
        ("file", tflite.Interpreter(content)),
    ):
        logits = evaluation.predict_all(forward, dataset, FLAGS.eval_batch_size)
        found = evaluation.score(task, dataset.labels, logits)
        results.update({f"{key}_{name}": x for key, x in found.items()})
    return results
