"""Builds the model of a checkpoint with the head that the checkpoint has."""

import numpy as np

from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.delivery import saved_model
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling.quantization import is_range

# Layers that a bare encoder may lack.
_OPTIONAL = ("pooler",)


def check_trained(checkpoint):
    """Checks that no output is chance.

    Raises:
        UserError: if there is neither a head nor a pooler, or what computes in
            8 bits does not know its ranges.
    """
    if not {"pooler/kernel", "span/kernel"} & checkpoint.weights.keys():
        raise UserError(
            f"{checkpoint.path} has no pooler, so all that it says of a text "
            "would be chance. Train it on a task first."
        )
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


def serve(checkpoint, max_seq_length, text_names):
    """Builds what is served of a checkpoint.

    Args:
        checkpoint: checkpoints.Checkpoint.
        max_seq_length: int. Where texts are cut, in tokens.
        text_names: tuple of str. See `saved_model.Served`.

    Returns:
        A `saved_model.Served`.
    """
    model, output = restore_model(checkpoint)
    return saved_model.Served(
        model=model,
        output=output,
        tokenizer=BertTokenizer(
            checkpoint.vocabulary, checkpoint.do_lower_case
        ),
        max_seq_length=max_seq_length,
        labels=tuple((checkpoint.task or {}).get("labels") or ()),
        text_names=text_names,
    )
