"""Passes over data that tell how much each unit of a model matters.

The weights stay as they are; `compression.importance` turns what is found
into scores.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from bert_pruning.compression.importance import SCORED_PARTS
from bert_pruning.compression.importance import Scores
from bert_pruning.compression.importance import taylor_scores
from bert_pruning.modeling import bert
from bert_pruning.modeling import layers
from bert_pruning.outputs import progress_bar
from bert_pruning.training.step import INPUT_NAMES


class GradientMagnitudes(tf.Module):
    """Sums up the magnitudes of the gradients of the scored kernels.

    Args:
        student: a model from `build_model`.

    Example:

    ```python
    magnitudes = GradientMagnitudes(student)
    magnitudes.add(gradients)  # of student.trainable_variables
    scores = taylor_scores(config, weights, magnitudes.numpy())
    ```
    """

    def __init__(self, student):
        super().__init__()
        found = scored_kernels(student)
        places = {
            id(variable): place
            for place, variable in enumerate(student.trainable_variables)
        }
        self._names = list(found)
        self._places = [places[id(kernel)] for kernel in found.values()]
        self._totals = [
            tf.Variable(
                tf.zeros(kernel.shape),
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            for kernel in found.values()
        ]

    def add(self, gradients):
        """Adds one training step's gradients; may run in a `tf.function`.

        Args:
            gradients: list of tensors, of each trainable variable of the
                student. Each replica's own share, where there are several.
        """
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            gradients = context.all_reduce(
                tf.distribute.ReduceOp.SUM, gradients
            )
        # A step that overflowed in float16 is no step of the optimizer either.
        finite = tf.reduce_all(
            [tf.reduce_all(tf.math.is_finite(g)) for g in gradients]
        )
        self.add_scored(
            [tf.where(finite, gradients[place], 0.0) for place in self._places]
        )

    def add_scored(self, gradients):
        """Adds the gradients of the scored kernels alone, in their order."""
        for total, gradient in zip(self._totals, gradients, strict=True):
            total.assign_add(tf.abs(gradient))

    def numpy(self):
        """Returns the sums as arrays by canonical name."""
        return {
            name: total.numpy()
            for name, total in zip(self._names, self._totals, strict=True)
        }


def scored_kernels(student):
    """Returns the kernels that speak for units, by canonical name."""
    return {
        name: variable
        for name, variable in bert.named_variables(student).items()
        if name.startswith("layer_")
        and name.split("_", 2)[2] in [f"{part}/kernel" for part in SCORED_PARTS]
    }


def score_by_taylor(model, config, batches, about=None):
    """Scores heads and neurons by first-order Taylor expansion.

    The model is in training mode, dropout and all, and its weights are frozen:
    ROSITA's own code lets them drift while it scores.

    Args:
        model: step.DistillationModel. What its losses say is what matters; it
            needs no optimizer.
        config: BertConfig. The student's shape.
        batches: pipeline.TrainBatches. One epoch is read.
        about: dict. See `importance.Scores`.

    Returns:
        `importance.Scores`.

    Reference: [ROSITA](https://arxiv.org/abs/2103.11367).
    """
    kernels = list(scored_kernels(model.student).values())
    magnitudes = GradientMagnitudes(model.student)

    @tf.function(reduce_retracing=True)
    def add(batch, index):
        seed = tf.stack([model.seed, tf.cast(index, tf.int32)])
        with tf.GradientTape() as tape, layers.dropout_seed(seed):
            loss = model.losses_of(batch)["loss"]
        magnitudes.add_scored(tape.gradient(loss, kernels))

    for index, batch in enumerate(_tensors(batches)):
        add(batch, tf.constant(index, tf.int64))
    return taylor_scores(
        config, bert.get_weights(model.student), magnitudes.numpy(), about
    )


def score_by_sensitivity(
    model, config, batches, about=None, sum_over="examples"
):
    """Scores heads, neurons and blocks by the gradient of a gate on each.

    Think of every head's context, every neuron's activation and the output of
    every feed-forward block as multiplied by a gate of 1. The score is
    `sum |dL_x / dgate|` over the examples x, all of a batch at once: an
    example's gate has the gradient of what it multiplies times that value,
    summed over its tokens. Dropout is off.

    Args:
        model: step.DistillationModel. It needs no optimizer.
        config: BertConfig. The student's shape.
        batches: pipeline.TrainBatches. One epoch is read.
        about: dict. See `importance.Scores`.
        sum_over: str. "examples", or "tokens": a gate for each token, as the
            code of Super Tickets has it, not its formula.

    Returns:
        `importance.Scores`.

    Reference: [Are Sixteen Heads](https://arxiv.org/abs/1905.10650),
    [Super Tickets](https://arxiv.org/abs/2105.12002).
    """
    student = model.student
    depth = range(config.num_layers)
    with_block = [i for i in depth if config.intermediate_sizes[i]]
    gated = {
        "heads": [f"layer_{i}_attention" for i in depth],
        "neurons": [f"layer_{i}_activation" for i in with_block],
        "blocks": [f"layer_{i}_output" for i in with_block],
    }
    probe = keras.Model(
        student.inputs,
        (
            student.output,
            {
                unit: [student.get_layer(name).output for name in names]
                for unit, names in gated.items()
            },
        ),
    )
    sizes = {
        "heads": config.num_heads,
        "neurons": [config.intermediate_sizes[i] for i in with_block],
        "blocks": [1] * len(with_block),
    }
    totals = {
        unit: [tf.Variable(tf.zeros(size)) for size in row]
        for unit, row in sizes.items()
    }

    @tf.function(reduce_retracing=True)
    def add(batch):
        with tf.GradientTape() as tape:
            inputs = [batch[name] for name in INPUT_NAMES]
            outputs, values = probe(inputs, training=False)
            loss = model.losses_from(outputs, batch)["loss"]
            # The loss is a mean: an example's own is so many times its share.
            loss *= tf.cast(tf.shape(batch["label"])[0], loss.dtype)
        gradients = tape.gradient(loss, values)
        for unit, sums in totals.items():
            for total, value, gradient in zip(
                sums, values[unit], gradients[unit], strict=True
            ):
                # Of all tokens, (batch * length, width), as the graph has it.
                rows, length = tf.unstack(tf.shape(batch["input_mask"]))
                width = value.shape[-1] // total.shape[0]
                gate = tf.reshape(
                    value * gradient, [rows, length, total.shape[0], width]
                )
                gate = tf.reduce_sum(gate, 3)
                if sum_over == "examples":
                    gate = tf.reduce_sum(gate, 1, keepdims=True)
                total.assign_add(tf.reduce_sum(tf.abs(gate), [0, 1]))

    for batch in _tensors(batches):
        add(batch)
    heads, neurons, blocks = (
        [total.numpy().astype(np.float64) for total in totals[unit]]
        for unit in gated
    )
    per_layer = [np.zeros(0)] * config.num_layers
    of_blocks = np.zeros(config.num_layers)
    for i, row, block in zip(with_block, neurons, blocks, strict=True):
        per_layer[i], of_blocks[i] = row, block[0]
    return Scores(tuple(heads), tuple(per_layer), of_blocks, about or {})


def _tensors(batches):
    progress = progress_bar(
        batches.epoch(0), total=batches.num_batches, desc="scoring", unit="step"
    )
    for batch in progress:
        yield {
            name: tf.constant(batch[name]) for name in (*INPUT_NAMES, "label")
        }


METHODS = {"taylor": score_by_taylor, "sensitivity": score_by_sensitivity}
