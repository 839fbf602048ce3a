r"""Writes a model for other programs to run.

    python -m bert_pruning export --init_checkpoint=runs/mrpc \
        --format=saved_model --output_dir=exported/mrpc --data_dir=glue

| --format | |
|---|---|
| tflite | for TFLite (LiteRT), token ids in |
| saved_model | for TensorFlow Serving, text in |
| huggingface | for Transformers; what was cut out is filled with zeros |
| compressed_tensors | sparse matrices without their zeros, in 8 bits too |
| official | for the TF1 code of BERT |

What was written is run on some sentences, and with --data_dir on a split of the
task, before the command says that it is done; `export.json` tells how far its
outputs are from the model's, and `README.md` what the model is.
"""

import glob
import json
import os
import shutil
import tempfile

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.data.task import stored_title
from bert_pruning.delivery import quantizations
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS

_PARTIAL = ".partial-"

# Share of the metric that a file may lose without a word.
_LOSS = 0.02


def define_flags():
    """Defines the flags of `export`."""
    shared.define_data_flags()
    flags.DEFINE_string("init_checkpoint", None, "The model.")
    flags.DEFINE_string("output_dir", None, "The folder to write.")
    flags.DEFINE_bool("overwrite", False, "Replace what is in --output_dir.")
    flags.DEFINE_enum(
        "format", "tflite", list(quantizations.OF_FORMAT), "What is written."
    )
    flags.DEFINE_enum(
        "quantization",
        None,
        quantizations.QUANTIZATIONS,
        "How numbers are kept; left out, as the model has them. dynamic_int8: "
        "weights in 8 bits, inputs of products rounded as they come. int8: all "
        "in 8 bits; of a model that was not trained so the ranges are found on "
        "the training set of --data_dir.",
    )
    flags.DEFINE_integer(
        "calibration_steps",
        200,
        "Batches of 32 on which the ranges for --quantization=int8 are found.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Examples that a TFLite file takes at once; left out, any number.",
        lower_bound=1,
    )
    flags.DEFINE_bool(
        "fixed_length",
        False,
        "A TFLite file takes --max_seq_length tokens, no fewer.",
    )
    flags.DEFINE_string(
        "split", "dev", "With --data_dir, the split on which both are scored."
    )


def check_flags():
    """Finds what is wrong before anything is loaded."""
    shared.require("init_checkpoint", "output_dir")
    shared.follow_run(FLAGS.init_checkpoint)
    shared.check_task_name()
    shared.check_separate(FLAGS.output_dir, "init_checkpoint", "data_dir")
    if FLAGS.data_dir and shared.is_special():
        raise UserError(
            f"The file of a model of {FLAGS.task_name} is checked on sentences "
            "alone. Leave out --data_dir."
        )
    if not FLAGS.data_dir:
        for name in ("split", "eval_batch_size", "cache_dir"):
            if shared.is_changed(name):
                raise UserError(f"--{name} needs --data_dir.")
    if FLAGS.quantization is not None:
        quantizations.check(FLAGS.format, FLAGS.quantization)
    if shared.is_changed("calibration_steps") and FLAGS.quantization != "int8":
        raise UserError("--calibration_steps needs --quantization=int8.")
    if FLAGS.format != "tflite":
        for name in ("batch_size", "fixed_length"):
            if shared.is_changed(name):
                raise UserError(f"--{name} needs --format=tflite.")


def main():
    """Exports by the flags; returns the exit status."""
    check_flags()

    from bert_pruning.commands import inputs
    from bert_pruning.commands import serving
    from bert_pruning.delivery import fidelity
    from bert_pruning.delivery import formats
    from bert_pruning.delivery import model_card
    from bert_pruning.delivery import restoring
    from bert_pruning.training.run import TEXTS_FILE
    from bert_pruning.training.run import Run

    form = formats.FORMATS[FLAGS.format]
    run = Run(
        *(FLAGS.output_dir, shared.flags_as_text(), FLAGS.overwrite),
        files=(
            *(*form.files, "config.json", "README.md", "export.json"),
            TEXTS_FILE,
        ),
    )
    inputs.find_gpus()
    original, task, dataset = _load(inputs, serving)
    quantization = _find_quantization(original)
    restoring.check_trained(original)
    checkpoint = original
    if quantization == "int8" and original.config.quantization is None:
        checkpoint = _calibrate(inputs, original, task)
    options = formats.Options(
        quantization=quantization,
        max_seq_length=FLAGS.max_seq_length,
        text_names=serving.text_names(checkpoint),
        batch_size=FLAGS.batch_size,
        length=FLAGS.max_seq_length if FLAGS.fixed_length else None,
    )
    for path in glob.glob(f"{glob.escape(FLAGS.output_dir)}/{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)  # Of one that was killed.
    # Beside what may be there, which goes only when the new files were run.
    with tempfile.TemporaryDirectory(
        prefix=_PARTIAL, dir=FLAGS.output_dir, ignore_cleanup_errors=True
    ) as directory:
        with run.writing():
            form.write(directory, form.prepare(checkpoint), options)
        found = _describe(options, checkpoint)
        found["bytes"] = formats.stored_bytes(directory, form.files)
        forward = form.open(directory, checkpoint.task)
        found |= fidelity.compare(form.reference(checkpoint), forward, options)
        if checkpoint is not original:
            found["rounding_difference"] = fidelity.largest_difference(
                form.reference(original), forward, options
            )
        if dataset is not None:
            found |= fidelity.score(
                *(form.reference(original), forward, task, dataset),
                FLAGS.eval_batch_size,
            )
            _warn_of_loss(found, original)
        run.begin()
        with run.writing():
            for name in form.files:
                os.replace(os.path.join(directory, name), run.path(name))
    run.write_text(
        "README.md", model_card.write_card(original, found, options.text_names)
    )
    run.write_text("export.json", json.dumps(found, indent=2) + "\n")
    if shared.is_special():
        # What evaluates the file cuts long texts as before.
        texts = shared.texts_as_flags(
            FLAGS.init_checkpoint,
            task_name=FLAGS.task_name,
            max_seq_length=FLAGS.max_seq_length,
        )
        run.write_text(TEXTS_FILE, texts)
    run.complete()
    for name in sorted(found):
        print(f"{name} = {found[name]}")
    print(f"Exported: {run.path(form.files[0])}")
    return 0


def _describe(options, checkpoint):
    """Returns what `export.json` says of a file beside what was measured."""
    about = checkpoint.task or {}
    labels = about.get("labels")
    if FLAGS.format == "official":
        labels = about.get("tf1_labels") or labels
    return {
        "format": FLAGS.format,
        "task": stored_title(about),
        "split": FLAGS.split if FLAGS.data_dir else None,
        "batch_size": options.batch_size,
        "length": options.length,
        "quantization": options.quantization,
        "do_lower_case": checkpoint.do_lower_case,
        "max_seq_length": options.max_seq_length,
        "labels": list(labels or ()),
        "primary_metric": about.get("primary_metric"),
    }


def _warn_of_loss(found, original):
    metric = found["primary_metric"]
    before, after = (found[f"{metric}_{name}"] for name in ("keras", "file"))
    if before - after > _LOSS * abs(before):
        advice = " Train it with --quantize=int8, or keep more bits."
        if original.config.quantization is not None:
            advice = ""
        shared.LOG.warning(
            "The model's %s is %.4f, the file's %.4f.%s",
            *(metric, before, after, advice),
        )


def _load(inputs, serving):
    """Returns the checkpoint, and the task and data to score it on, if any.

    Its outputs are in the order of the task's labels.
    """
    if not FLAGS.data_dir:
        return serving.load_checkpoint(), None, None
    models = inputs.load_models(FLAGS.init_checkpoint)
    if len(models) > 1:
        raise UserError(
            "A file holds one task's model. Say which by --task_name. "
            f"Received: {', '.join(task.name for _, task, _ in models)}."
        )
    checkpoint, task, _ = models[0]
    checkpoint = serving.of_task(checkpoint, task)
    _, dataset = inputs.read_encoded(
        task, FLAGS.split, inputs.find_tokenizer(checkpoint)
    )
    if dataset.labels is None:
        raise UserError(
            f"The {FLAGS.split} split of {task.name} has no labels to score "
            "the model by."
        )
    return checkpoint, task, dataset


def _find_quantization(checkpoint):
    """Returns how numbers are kept: as asked for, or as the model has them."""
    asked = FLAGS.quantization
    if checkpoint.config.quantization is None:
        return asked or "none"
    if FLAGS.format == "tflite" and asked not in (None, "int8"):
        raise UserError(
            f"{checkpoint.path} was trained to compute in 8 bits. Leave out "
            f"--quantization. Received: {asked}."
        )
    if shared.is_changed("calibration_steps"):
        raise UserError(
            f"{checkpoint.path} was trained to compute in 8 bits: it has its "
            "ranges. Leave out --calibration_steps."
        )
    has_int8 = "int8" in quantizations.OF_FORMAT[FLAGS.format]
    return asked or ("int8" if has_int8 else "none")


def _calibrate(inputs, checkpoint, task):
    """Returns the model in 8 bits, ranges as on the training set."""
    import itertools

    from bert_pruning.data.pipeline import TrainBatches
    from bert_pruning.delivery.calibration import calibrate
    from bert_pruning.modeling.quantization import Quantization
    from bert_pruning.outputs import progress_bar

    if task is None:
        advice = ", or add --data_dir to find its ranges on the training set"
        if shared.is_special():
            advice = ""
        raise UserError(
            f"{checkpoint.path} was not trained to compute in 8 bits. For "
            f"--quantization=int8 train it with --quantize=int8{advice}."
        )
    _, dataset = inputs.read_encoded(
        task, "train", inputs.find_tokenizer(checkpoint)
    )
    batches = TrainBatches(dataset, batch_size=32, seed=1)
    steps = min(FLAGS.calibration_steps, batches.num_batches)
    epoch = itertools.islice(batches.epoch(0), steps)
    return calibrate(
        checkpoint,
        Quantization(embeddings=True),
        progress_bar(epoch, desc="ranges", unit="step", total=steps),
    )
