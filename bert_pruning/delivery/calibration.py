"""Finds the ranges of a model that shall compute in 8 bits, untrained."""

import dataclasses

import tensorflow as tf

from bert_pruning.delivery.restoring import restore_model
from bert_pruning.modeling import bert
from bert_pruning.modeling.checkpoints import Checkpoint
from bert_pruning.modeling.checkpoints import requantize
from bert_pruning.modeling.quantization import Quantization
from bert_pruning.modeling.quantization import is_range
from bert_pruning.training.step import INPUT_NAMES


def calibrate(checkpoint: Checkpoint, quantization: Quantization, batches):
    """Lets a model compute in 8 bits, within the ranges of some batches.

    Args:
        checkpoint: Checkpoint.
        quantization: Quantization.
        batches: iterable of dicts of int arrays `INPUT_NAMES`. A hundred or
            more: each moves the ranges by a hundredth.

    Returns:
        A `Checkpoint` with the same parameters.

    Example:

    ```python
    in_8_bits = calibrate(checkpoint, Quantization(), batches)
    ```

    Reference: [Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference](https://arxiv.org/abs/1712.05877).
    """
    found = requantize(checkpoint, quantization)
    # Ranges are observed in training alone; without dropout nothing else is.
    observed = dataclasses.replace(
        found.config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model, output = restore_model(dataclasses.replace(found, config=observed))

    @tf.function(reduce_retracing=True)
    def observe(inputs):
        return model(inputs, training=True)[output]

    for batch in batches:
        observe([tf.constant(batch[name], tf.int32) for name in INPUT_NAMES])
    ranges = {
        name: variable.numpy()
        for name, variable in bert.named_variables(model).items()
        if is_range(name)
    }
    return dataclasses.replace(found, weights={**found.weights, **ranges})
