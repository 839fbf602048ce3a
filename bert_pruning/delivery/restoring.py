"""Builds the model of a checkpoint with the head that the checkpoint has."""

import numpy as np

from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling.quantization import is_range

# Layers that a bare encoder may lack.
_OPTIONAL = ("pooler",)


def check_observed(checkpoint):
    """Checks that what computes in 8 bits knows its ranges.

    Raises:
        UserError: if it was never trained so.
    """
    for name, array in checkpoint.weights.items():
        if is_range(name) and not np.isfinite(array).all():
            raise UserError(
                f"{checkpoint.path} computes in 8 bits, but {name} was never "
                "observed. Train it with --quantize=int8."
            )


def restore_model(checkpoint):
    """Builds the model of a checkpoint.

    Args:
        checkpoint: checkpoints.Checkpoint. With a classifier, the head that
            marks a span, or neither.

    Returns:
        The model and the name of its output: "logits", or "pooled_output"
        without a head.

    Example:

    ```python
    model, output = restore_model(load_checkpoint("runs/mrpc"))
    model(inputs, training=False)[output]
    ```
    """
    output = "logits"
    kernel = checkpoint.weights.get("classifier/kernel")
    if "span/kernel" in checkpoint.weights:
        model = bert.build_span_model(checkpoint.config)
    elif kernel is not None:
        model = bert.build_model(checkpoint.config, kernel.shape[1])
    else:
        model = bert.build_model(checkpoint.config)
        output = "pooled_output"
    bert.set_weights(model, checkpoint.weights, initialized=_OPTIONAL)
    return model, output
