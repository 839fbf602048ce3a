"""One optimizer step: forward, backward, update, masks.

`DistillationModel` is a `tf_keras.Model` that trains a student on any mix of
labels and teacher features. Fine-tuning is the case of no teacher.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from bert_pruning.modeling import layers
from bert_pruning.training import distillation

INPUT_NAMES = ("input_word_ids", "input_mask", "input_type_ids")


class DistillationModel(keras.Model):
    """Trains a student on its labels and on a teacher's features.

    The teacher is frozen and in inference mode. With a `pruner` the student's
    masks are re-applied after every update.

    Args:
        student: a model from `build_model`, wrapped for pruning or not.
        teacher: a model from `build_model` or None.
        matches: tuple of `distillation.Match`. Needs a teacher.
        label_weight: float. Factor of the loss on the true labels; 0 learns
            from the teacher alone.
        pruner: `pruning.Pruner` or None.
        magnitudes: `scoring.GradientMagnitudes` or None. Adds up the
            gradients of every step.
        seed: int. Seed of the dropout masks; they are a pure function of it
            and the step, so a resumed run repeats them.
        jit_compile: bool. Compiles forward and backward pass with XLA.
        config: BertConfig or None. The student's shape, for who saves it.

    Example:

    ```python
    model = DistillationModel(student, teacher, matches, label_weight=0.0)
    model.compile(optimizer=build_optimizer(student, "adamw", 5e-5))
    model.fit(dataset)  # of dicts with the three inputs and "label"
    ```

    Models with other heads say what they read and learn in
    `student_inputs`, `specs`, `label_losses` and `logits_loss`.

    Reference: [SparseBERT](https://arxiv.org/abs/2104.08682).
    """

    # What the student reads of a batch.
    student_inputs = INPUT_NAMES

    def __init__(
        self,
        student,
        teacher=None,
        matches=(),
        label_weight=1.0,
        pruner=None,
        magnitudes=None,
        seed=0,
        jit_compile=False,
        config=None,
    ):
        super().__init__()
        if matches and teacher is None:
            raise ValueError("Matching features needs a teacher.")
        self.student = student
        self.teacher = teacher
        if teacher is not None:
            teacher.trainable = False
        self.matches = matches
        self.label_weight = label_weight
        self.config = config
        self.pruner = pruner
        self.magnitudes = magnitudes
        self.seed = seed
        self.steps_done = tf.Variable(
            0,
            dtype=tf.int64,
            trainable=False,
            name="steps_done",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        self._accumulated = None
        self._forward_backward = self._differentiate
        if jit_compile:
            self._forward_backward = tf.function(
                self._differentiate, jit_compile=True
            )

    def compile(self, optimizer, **kwargs):
        """Sets the optimizer. The losses are the objective's."""
        super().compile(optimizer=optimizer, **kwargs)

    def call(self, inputs, training=False):
        return self.student(inputs, training=training)

    def losses_of(self, batch):
        """Computes the losses of one batch.

        Args:
            batch: dict of the three inputs and `label`.

        Returns:
            A dict of float32 scalars: the unweighted terms and `loss`, their
            weighted sum.
        """
        outputs = self.student(self.inputs_of(batch), training=True)
        return self.losses_from(outputs, batch)

    def losses_from(self, outputs, batch):
        """Computes the losses of what the student put out for a batch.

        Args:
            outputs: dict of the student's outputs.
            batch: dict of the three inputs and `label`.

        Returns:
            The dict of `losses_of`.
        """
        terms = {}
        total = 0.0
        if self.label_weight:
            terms.update(self.label_losses(outputs, batch))
            total += self.label_weight * sum(terms.values())
        if self.matches:
            targets = self.teacher(self.inputs_of(batch), training=False)
            for match in self.matches:
                if match.feature == "logits":
                    value = self.logits_loss(match, outputs, targets, batch)
                else:
                    value = distillation.match_loss(
                        match, outputs, targets, batch["input_mask"]
                    )
                terms[f"{match.feature}_loss"] = value
                total += match.weight * value
        return {"loss": total, **terms}

    def inputs_of(self, batch):
        """Returns what the student and the teacher read of a batch."""
        return [batch[name] for name in self.student_inputs]

    def specs(self, label_dtype):
        """Returns the shape and type of each array of a batch.

        Args:
            label_dtype: NumPy dtype. Of the labels.
        """
        matrix = tf.TensorSpec((None, None), tf.int32)
        label = tf.float32 if np.dtype(label_dtype).kind == "f" else tf.int32
        return {
            **{name: matrix for name in self.student_inputs},
            "label": tf.TensorSpec((None,), label),
        }

    def label_losses(self, outputs, batch):
        """Returns the losses on the labels by name."""
        return {"label_loss": label_loss(batch["label"], outputs["logits"])}

    def logits_loss(self, match, outputs, targets, batch):
        """Returns how far the student's logits are from the teacher's."""
        return distillation.match_loss(
            match, outputs, targets, batch["input_mask"]
        )

    def begin_step(self, batch):
        """Prepares for a step, outside of its graph.

        Args:
            batch: dict of arrays, with whatever else its batches tell.
        """

    def train_step(self, batch, share=1.0):
        """Runs one optimizer step.

        Args:
            batch: dict of the three inputs and `label`.
            share: float scalar. This batch's part of the whole batch, where
                replicas divide it.

        Returns:
            The dict of `losses_of`, each times `share`.
        """
        losses, gradients = self._forward_backward(
            batch, share, self._dropout_seed(0)
        )
        self._apply(gradients)
        return losses

    def accumulate_step(self, batch, share, index):
        """Adds one micro-batch's gradients to the sum.

        Args:
            batch: dict of the three inputs and `label`.
            share: float scalar. The micro-batch's part of the whole batch.
            index: int scalar. Its number within the step.
        """
        losses, gradients = self._forward_backward(
            batch, share, self._dropout_seed(index)
        )
        for total, gradient in zip(self._sums(), gradients, strict=True):
            total.assign_add(gradient)
        return losses

    def apply_step(self):
        """Updates the weights from the accumulated gradients."""
        sums = self._sums()
        self._apply([total.read_value() for total in sums])
        for total in sums:
            total.assign(tf.zeros_like(total))

    def _differentiate(self, batch, share, seed):
        scaled = hasattr(self.optimizer, "get_scaled_loss")
        with tf.GradientTape() as tape, layers.dropout_seed(seed):
            losses = {
                name: value * share
                for name, value in self.losses_of(batch).items()
            }
            loss = losses["loss"]
            if scaled:
                loss = self.optimizer.get_scaled_loss(loss)
        variables = self.student.trainable_variables
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
        # Embedding gradients too: every row has momentum and decay.
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        if scaled:
            gradients = self.optimizer.get_unscaled_gradients(gradients)
        return losses, gradients

    def _apply(self, gradients):
        if self.magnitudes is not None:
            self.magnitudes.add(gradients)
        variables = self.student.trainable_variables
        if self.pruner is not None:
            gradients = self.pruner.before_update(gradients, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        if self.pruner is not None:
            self.pruner.after_update()
        self.steps_done.assign_add(1)

    def _dropout_seed(self, index):
        replica = tf.distribute.get_replica_context()
        with tf.device("CPU:0"):
            stream = tf.cast(index, tf.int64) * replica.num_replicas_in_sync
            stream += tf.cast(replica.replica_id_in_sync_group, tf.int64)
            # 2**12 streams a step: micro-batches times replicas.
            position = (self.steps_done * 4096 + stream) % (2**31 - 1)
            return tf.stack([self.seed, tf.cast(position, tf.int32)])

    def _sums(self):
        if self._accumulated is None:
            with tf.init_scope():
                self._accumulated = [
                    tf.Variable(
                        tf.zeros(variable.shape),
                        trainable=False,
                        synchronization=tf.VariableSynchronization.ON_READ,
                        aggregation=tf.VariableAggregation.SUM,
                    )
                    for variable in self.student.trainable_variables
                ]
        return self._accumulated


def label_loss(labels, logits):
    """Mean loss on the true labels.

    Args:
        labels: int tensor `(batch,)`, or float scores where `logits` has one
            column.
        logits: float32 tensor `(batch, outputs)`.

    Returns:
        Softmax cross-entropy, or for one output the squared error.
    """
    if logits.shape[-1] == 1:
        return distillation.mean_squared_error(logits[:, 0], labels)
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    )
