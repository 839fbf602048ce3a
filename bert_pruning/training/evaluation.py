"""Runs a model over a whole data set and scores what comes out."""

import numpy as np
import scipy.special
import tensorflow as tf

from bert_pruning.data import metrics
from bert_pruning.data import pipeline
from bert_pruning.training.step import INPUT_NAMES


class Evaluator:
    """Predicts with one model; traces it once.

    Args:
        model: a model from `build_model` with logits, wrapped or not.

    Example:

    ```python
    logits = Evaluator(model).predict(dataset, batch_size=64)
    ```
    """

    def __init__(self, model):
        self._forward = trace_logits(model)

    def predict(self, dataset, batch_size=64):
        """Returns the logits of every example, in file order.

        Args:
            dataset: pipeline.EncodedDataset.
            batch_size: int. Examples per forward pass.

        Returns:
            A float32 array `(examples, outputs)`.
        """
        return predict_all(self._forward, dataset, batch_size)

    def evaluate(self, task, dataset, batch_size=64):
        """Returns the task's metrics and `eval_loss` over a labelled set."""
        return score(task, dataset.labels, self.predict(dataset, batch_size))


def predict_all(forward, dataset, batch_size=64):
    """Returns the logits of every example, in file order.

    Args:
        forward: function of the list of three inputs that returns logits.
        dataset: pipeline.EncodedDataset.
        batch_size: int. Examples per forward pass.

    Returns:
        A float32 array `(examples, outputs)`.
    """
    parts, indices = [], []
    for batch in pipeline.eval_batches(dataset, batch_size):
        inputs = [tf.constant(batch[name]) for name in INPUT_NAMES]
        parts.append(np.asarray(forward(inputs)))
        indices.append(batch["index"])
    logits = np.concatenate(parts)
    ordered = np.empty_like(logits)
    ordered[np.concatenate(indices)] = logits
    return ordered


def trace_logits(model, output="logits"):
    """Returns a function of the inputs that is traced once for any shape.

    Args:
        model: a model from `bert`, wrapped or not.
        output: str. Which of its outputs.
    """
    ids = tf.TensorSpec((None, None), tf.int32)

    @tf.function(input_signature=[[ids, ids, ids]])
    def forward(inputs):
        return model(inputs, training=False)[output]

    return forward


def score(task, labels, logits):
    """Computes the task's metrics and `eval_loss`, the mean over examples.

    Args:
        task: tasks.Task.
        labels: array `(examples,)` of classes or scores.
        logits: float array `(examples, outputs)`.

    Returns:
        A dict of floats.
    """
    results = metrics.compute_metrics(task, labels, logits)
    if task.is_regression:
        losses = np.square(logits[:, 0].astype(np.float64) - labels)
    else:
        log_probabilities = scipy.special.log_softmax(
            logits.astype(np.float64), axis=-1
        )
        losses = -log_probabilities[np.arange(len(labels)), labels]
    return {**results, "eval_loss": float(losses.mean())}


def chance_level(task, labels):
    """Primary metric of always predicting the commonest class, or the mean.

    A teacher that does no better has learnt nothing.

    Args:
        task: tasks.Task.
        labels: array `(examples,)`.
    """
    if task.is_regression:
        logits = np.full((len(labels), 1), np.mean(labels))
    else:
        counts = np.bincount(labels, minlength=task.num_outputs)
        logits = np.tile(counts.astype(np.float64), (len(labels), 1))
    return metrics.compute_metrics(task, labels, logits)[task.primary_metric]
