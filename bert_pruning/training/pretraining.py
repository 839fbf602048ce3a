"""Pre-training: hidden tokens and the next sentence, learnt and scored."""

import math

import numpy as np
import tensorflow as tf

from bert_pruning.data import pipeline
from bert_pruning.training import distillation
from bert_pruning.training.step import INPUT_NAMES
from bert_pruning.training.step import DistillationModel
from bert_pruning.training.step import label_loss

_INPUTS = (*INPUT_NAMES, "masked_positions")

# What is hidden when a model is scored depends on this, not on how many
# examples are scored at once.
_HIDDEN_AT_ONCE = 64


class MaskedBatches:
    """Hides tokens of other batches, in each epoch others.

    Args:
        batches: what has `epoch`, such as `shards.ShardedBatches`, whose labels
            are 1 where the second segment does not follow the first.
        masking: `pretraining.Masking`.
        seed: int. Not negative.

    Example:

    ```python
    for batch in MaskedBatches(batches, masking, seed=1).epoch(0):
        batch["masked_positions"]
    ```
    """

    label_dtype = np.dtype(np.int32)

    def __init__(self, batches, masking, seed):
        self.batches = batches
        self.masking = masking
        self.seed = seed
        self.num_batches = batches.num_batches

    def epoch(self, epoch, start=0):
        """Yields the batches of one epoch; see `TrainBatches.epoch`."""
        return pipeline.prefetch(self._hide(epoch, start))

    def _hide(self, epoch, start):
        found = self.batches.epoch(epoch, start)
        for number, batch in enumerate(found, start):
            random = np.random.default_rng([self.seed, epoch, number])
            yield self.masking.apply(batch, random)


class PretrainingModel(DistillationModel):
    """Trains a student with both heads of pre-training.

    The loss on the labels is the sum of that of the hidden tokens, over these
    alone, and that of the next sentence. Matching "logits" matches both heads'.

    Args:
        student: a model from `bert.build_pretraining`, wrapped or not.
        **options: The other arguments of `DistillationModel`.

    Example:

    ```python
    model = PretrainingModel(student, teacher, matches, label_weight=0.5)
    model.compile(optimizer)
    model.train_step(batch)  # of MaskedBatches
    ```

    Reference: [BERT](https://arxiv.org/abs/1810.04805), [Prune Once for
    All](https://arxiv.org/abs/2111.05754).
    """

    student_inputs = _INPUTS

    def specs(self, label_dtype):
        matrix = tf.TensorSpec((None, None), tf.int32)
        return {
            **super().specs(label_dtype),
            "masked_ids": matrix,
            "masked_weights": tf.TensorSpec((None, None), tf.float32),
        }

    def label_losses(self, outputs, batch):
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            batch["masked_ids"], outputs["mlm_logits"]
        )
        return {
            "mlm_loss": distillation.weighted_mean(
                losses, batch["masked_weights"]
            ),
            "nsp_loss": label_loss(batch["label"], outputs["nsp_logits"]),
        }

    def logits_loss(self, match, outputs, targets, batch):
        return sum(
            distillation.logits_loss(match, outputs[name], targets[name], rows)
            for name, rows in (
                ("mlm_logits", batch["masked_weights"]),
                ("nsp_logits", None),
            )
        )


class PretrainingEvaluator:
    """Scores a model on held-out examples, hidden alike each time.

    Args:
        model: a model from `bert.build_pretraining`, wrapped or not.
        masking: `pretraining.Masking`.

    Example:

    ```python
    results = PretrainingEvaluator(model, masking).evaluate(datasets)
    results["eval_perplexity"]
    ```
    """

    def __init__(self, model, masking):
        self.masking = masking

        @tf.function(reduce_retracing=True)
        def count(inputs, masked_ids, weights, labels):
            outputs = model(inputs, training=False)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                masked_ids, outputs["mlm_logits"]
            )
            found = tf.argmax(outputs["mlm_logits"], -1, tf.int32)
            hits = tf.cast(found == masked_ids, tf.float32)
            follows = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels, outputs["nsp_logits"]
            )
            right = tf.argmax(outputs["nsp_logits"], -1, tf.int32) == labels
            return tf.stack(
                [
                    tf.reduce_sum(losses * weights),
                    tf.reduce_sum(hits * weights),
                    tf.reduce_sum(weights),
                    tf.reduce_sum(follows),
                    tf.reduce_sum(tf.cast(right, tf.float32)),
                    tf.cast(tf.size(labels), tf.float32),
                ]
            )

        self._count = count

    def evaluate(self, datasets, batch_size=64):
        """Scores the examples of several data sets together.

        Args:
            datasets: iterable of `pipeline.EncodedDataset`.
            batch_size: int. Examples per forward pass.

        Returns:
            A dict of floats: `eval_mlm_loss` and `eval_mlm_accuracy` over the
            hidden tokens, `eval_perplexity`, `eval_nsp_loss`,
            `eval_nsp_accuracy`, and `eval_loss`, the sum of both losses.
        """
        totals, number = np.zeros(6), 0
        for dataset in datasets:
            for batch in pipeline.eval_batches(dataset, _HIDDEN_AT_ONCE):
                random = np.random.default_rng(number)
                masked = self.masking.apply(batch, random)
                for start in range(0, len(masked["label"]), batch_size):
                    rows = slice(start, start + batch_size)
                    part = {
                        name: tf.constant(array[rows])
                        for name, array in masked.items()
                    }
                    totals += self._count(
                        [part[name] for name in _INPUTS],
                        *(part["masked_ids"], part["masked_weights"]),
                        part["label"],
                    ).numpy()
                number += 1
        mlm_loss, hits, tokens, nsp_loss, right, rows = totals
        results = {
            "eval_mlm_loss": mlm_loss / tokens,
            "eval_mlm_accuracy": hits / tokens,
            "eval_perplexity": math.exp(min(mlm_loss / tokens, 700.0)),
            "eval_nsp_loss": nsp_loss / rows,
            "eval_nsp_accuracy": right / rows,
        }
        results["eval_loss"] = (
            results["eval_mlm_loss"] + results["eval_nsp_loss"]
        )
        return {name: float(value) for name, value in results.items()}
