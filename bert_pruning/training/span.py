"""Spans of a text as answers: learnt, and predicted."""

import numpy as np
import tensorflow as tf

from bert_pruning.data import pipeline
from bert_pruning.training import distillation
from bert_pruning.training import evaluation
from bert_pruning.training.step import INPUT_NAMES
from bert_pruning.training.step import DistillationModel

# Added to the logits of padding: no probability is left.
_PADDED = -1e4


class SpanModel(DistillationModel):
    """Trains a student to mark the first and the last token of an answer.

    Labels are int32 `(batch, 2)`. The loss is the mean of both positions'
    cross-entropy over the tokens of a row; padding has no part in it, so that
    it does not matter how far a batch is padded.

    Args:
        student: a model from `bert.build_span_model`, wrapped or not.
        **options: The other arguments of `DistillationModel`.

    Example:

    ```python
    model = SpanModel(student, teacher, matches, label_weight=0.5)
    model.compile(optimizer)
    model.train_step(batch)
    ```

    Reference: [BERT](https://arxiv.org/abs/1810.04805).
    """

    def specs(self, label_dtype):
        label = tf.TensorSpec((None, 2), tf.int32)
        return {**super().specs(label_dtype), "label": label}

    def label_losses(self, outputs, batch):
        logits = by_position(outputs["logits"], batch["input_mask"])
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.transpose(batch["label"]), logits
        )
        return {"label_loss": tf.reduce_mean(losses)}

    def logits_loss(self, match, outputs, targets, batch):
        return distillation.logits_loss(
            match,
            *(
                by_position(each["logits"], batch["input_mask"])
                for each in (outputs, targets)
            ),
        )


def by_position(logits, mask):
    """Turns span logits into two distributions over the tokens.

    Args:
        logits: float tensor `(batch, length, 2)`.
        mask: int tensor `(batch, length)`, 1 for real tokens.

    Returns:
        A float tensor `(2, batch, length)`.
    """
    padding = _PADDED * (1.0 - tf.cast(mask, logits.dtype))
    return tf.transpose(logits, (2, 0, 1)) + padding


class SpanPredictor:
    """Predicts the span logits of every row; traces its model once.

    Args:
        model: a model from `bert.build_span_model`, wrapped or not.

    Example:

    ```python
    starts, ends = SpanPredictor(model)(windows.dataset)
    ```
    """

    def __init__(self, model):
        self._forward = evaluation.trace_logits(model)

    def __call__(self, dataset, batch_size=64):
        """Returns the logits of first and last tokens.

        Args:
            dataset: pipeline.EncodedDataset.
            batch_size: int. Rows per forward pass.

        Returns:
            Two float32 arrays `(rows, longest row)`, 0 beyond a row's end.
        """
        width = int(dataset.lengths.max())
        found = np.zeros((2, len(dataset), width), np.float32)
        for batch in pipeline.eval_batches(dataset, batch_size, pad_multiple=1):
            inputs = [tf.constant(batch[name]) for name in INPUT_NAMES]
            logits = self._forward(inputs).numpy()
            logits *= batch["input_mask"][:, :, np.newaxis]
            found[:, batch["index"], : logits.shape[1]] = logits.transpose(
                2, 0, 1
            )
        return found[0], found[1]
