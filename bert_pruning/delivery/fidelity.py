"""How far what an export wrote is from the model, on sentences and on data.

    form.write(directory, form.prepare(checkpoint), options)
    forward = form.open(directory, checkpoint.task)
    fidelity.compare(form.reference(checkpoint), forward, options)

An export is done when this has passed.
"""

import numpy as np

from bert_pruning.delivery import restoring
from bert_pruning.delivery import saved_model
from bert_pruning.errors import UserError
from bert_pruning.training import evaluation
from bert_pruning.training.step import INPUT_NAMES

# How far outputs may be from the model's, for outputs of about one. Rounding to
# 8 bits carries small differences on; they may not change much.
_TOLERANCES = {
    "none": 1e-3,
    "float16": 2e-2,
    "dynamic_int8": 0.1,
    "int8": 0.1,
}
# Of a model that was trained in 8 bits, and computes in whole numbers as its
# file does: but for a last bit that falls otherwise.
_TRAINED_TOLERANCE = 0.05

# Of one text, of two, with and without a second one, of unlike lengths.
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


def compare(checkpoint, forward, options):
    """Checks that a file gives what its model does, on some sentences.

    Args:
        checkpoint: Checkpoint. The model.
        forward: function of the file, as `Format.open` returns it.
        options: formats.Options. As the file was written.

    Returns:
        A dict: "output", the name of what was compared, and "max_difference".

    Raises:
        UserError: if they differ by more than the kind of numbers explains.
    """
    served, *found = _run_both(checkpoint, forward, options)
    difference, largest = found
    tolerance = _TOLERANCES[options.quantization]
    if options.quantization == "int8" and checkpoint.config.quantization:
        tolerance = _TRAINED_TOLERANCE
    allowed = tolerance * max(1.0, largest)
    if not difference <= allowed:
        raise UserError(
            f"The file's outputs are up to {difference:.4g} from the model's, "
            f"where {allowed:.4g} is allowed. It was not written."
        )
    return {"output": served.output, "max_difference": difference}


def largest_difference(checkpoint, forward, options):
    """Returns how far a file's outputs are from a model's.

    Args:
        checkpoint: Checkpoint. The model.
        forward: function of the file, as `Format.open` returns it.
        options: formats.Options. As the file was written.
    """
    _, difference, _ = _run_both(checkpoint, forward, options)
    return difference


def score(checkpoint, forward, task, dataset, batch_size):
    """Scores a model and its file on labelled data.

    Args:
        checkpoint: Checkpoint. The model.
        forward: function of the file, as `Format.open` returns it.
        task: Task.
        dataset: data.pipeline.EncodedDataset. With labels.
        batch_size: int. Examples.

    Returns:
        A dict of the task's metrics: with "_keras" at the end the model's, with
        "_file" the file's.
    """
    model, _ = restoring.restore_model(checkpoint)
    results = {}
    for name, function in (
        ("keras", evaluation.trace_logits(model)),
        ("file", forward),
    ):
        logits = evaluation.predict_all(function, dataset, batch_size)
        found = evaluation.score(task, dataset.labels, logits)
        results.update({f"{key}_{name}": x for key, x in found.items()})
    return results


def _run_both(checkpoint, forward, options):
    """Returns what is served, the largest difference, the largest output.

    A file that reads text is asked for what it says of it too.
    """
    served = restoring.serve(
        checkpoint, options.max_seq_length, options.text_names
    )
    texts = [list(each) for each in zip(*_TEXTS, strict=True)]
    texts = texts[: len(options.text_names)]
    packed = served.tokenizer.pack(
        *served.tokenizer.encode(*texts, max_seq_length=options.max_seq_length)
    )
    batch = [packed[name].numpy() for name in INPUT_NAMES]
    expected = np.asarray(served.model(batch, training=False)[served.output])
    # What stands at padding has no meaning.
    is_token = batch[1] if expected.ndim == 3 else np.ones(len(expected))
    differences = np.abs(expected - forward(batch))[is_token == 1]
    if hasattr(forward, "read"):
        others = _text_differences(served, forward.read(*texts), texts)
        differences = np.concatenate([differences.ravel(), others])
    return served, float(differences.max()), float(np.abs(expected).max())


def _text_differences(served, said, texts):
    """Returns how far what a file says of texts is from what a model does."""
    expected = saved_model.read(served, *texts)
    found = []
    for name, values in said.items():
        if values.dtype == object:
            # Labels and answers: equal or not.
            equal = values == expected[name]
            found.append(np.where(equal, 0.0, np.inf))
        else:
            found.append(np.abs(values - expected[name]).ravel())
    return np.concatenate(found)
