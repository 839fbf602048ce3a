"""Trains one encoder on several tasks, each with a classifier and a ticket.

A batch is of one task. What that task's ticket leaves out is multiplied by
zero, and neither it nor the other tasks' classifiers move in that step: not by
the gradient, the momentum or the weight decay.
"""

import numpy as np
import tensorflow as tf

from bert_pruning.compression import surgery
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling import layers
from bert_pruning.training import evaluation
from bert_pruning.training.step import INPUT_NAMES
from bert_pruning.training.step import DistillationModel
from bert_pruning.training.step import label_loss


class Tickets:
    """The parts of a model that each task uses, as gates in its graph.

    Args:
        config: BertConfig. The whole model.
        tickets: dict from the name of each task to a `Structure`, or None:
            all of the model. Feed-forward blocks stay or go as a whole.

    Raises:
        UserError: if a ticket is of another shape, drops a layer, or keeps
            part of a feed-forward block.

    Example:

    ```python
    tickets = Tickets(config, {"CoLA": ticket, "STS-B": None})
    with layers.gates(tickets.gates(task=0)):
        outputs = student(inputs)
    ```

    Reference: [Super Tickets](https://arxiv.org/abs/2105.12002).
    """

    def __init__(self, config, tickets):
        self.config = config
        self.names = tuple(tickets)
        for task, ticket in tickets.items():
            if ticket is not None:
                _check_ticket(config, task, ticket)
        self._heads = [
            self._kept(tickets, "heads", layer, size)
            for layer, size in enumerate(config.num_heads)
        ]
        self._blocks = [
            self._kept(tickets, "neurons", layer, size)[:, :1]
            for layer, size in enumerate(config.intermediate_sizes)
        ]

    def gates(self, task):
        """Returns the gates of a task; see `layers.gates`.

        Args:
            task: int scalar, tensor or not. Its place among the names.
        """
        gates = {}
        for unit, rows in (("head", self._heads), ("block", self._blocks)):
            for layer, kept in enumerate(rows):
                # What all tasks keep needs no gate.
                if not kept.all():
                    gate = tf.gather(tf.constant(kept, tf.float32), task)
                    gates[f"layer_{layer}_{unit}_gate"] = gate
        return gates

    def mask_of(self, name):
        """Returns which part of a weight each task trains.

        Args:
            name: str. Canonical name.

        Returns:
            A bool array `(tasks, ...)`, whose rows broadcast to the weight;
            None: every task trains all of it.
        """
        for place, task in enumerate(self.names):
            if name.startswith(f"classifier_{task}/"):
                return np.arange(len(self.names)) == place
        layer, part, weight = surgery.split_name(name)
        if layer is None:
            return None
        unit, axis = surgery.UNIT_AXES.get((part, weight), (None, None))
        if part in surgery.FEED_FORWARD:
            kept = self._blocks[layer][:, 0]
        elif unit == "heads":
            kept = np.repeat(self._heads[layer], self.config.head_size, axis=1)
            if weight == "kernel" and axis == 0:
                kept = kept[:, :, np.newaxis]
        else:
            return None
        return None if kept.all() else kept

    @staticmethod
    def _kept(tickets, unit, layer, size):
        kept = np.ones((len(tickets), size), bool)
        for row, ticket in zip(kept, tickets.values(), strict=True):
            if ticket is not None:
                row[:] = False
                row[list(getattr(ticket, unit)[layer])] = True
        return kept


class MultiTaskModel(DistillationModel):
    """Trains a student with a classifier for each of several tasks.

    Args:
        student: a model from `build_model` with a dict of outputs.
        tickets: Tickets. Of the same tasks, in the order of their numbers.
        **options: The arguments of `DistillationModel`; no teacher.

    Example:

    ```python
    model = MultiTaskModel(student, tickets, seed=1)
    model.compile(optimizer)
    model.select(0)  # the first task
    model.train_step(batch)
    ```

    Reference: [MT-DNN](https://arxiv.org/abs/1901.11504).
    """

    def __init__(self, student, tickets, **options):
        super().__init__(student, **options)
        self.tickets = tickets
        # XLA on a GPU cannot read an int32 variable.
        self.task = tf.Variable(
            0,
            dtype=tf.int64,
            trainable=False,
            name="task",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def compile(self, optimizer, **kwargs):
        """Sets the optimizer, and what of each variable a task moves."""
        super().compile(optimizer=optimizer, **kwargs)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        inner.divide_among_tasks(
            self.task,
            [
                (variable, kept)
                for name, variable in bert.named_variables(self.student).items()
                if (kept := self.tickets.mask_of(name)) is not None
            ],
        )

    def select(self, task):
        """Makes the next steps those of a task, without a new trace.

        Args:
            task: int. Its place among the tickets' names.
        """
        self.task.assign(task)

    def begin_step(self, batch):
        self.select(batch["task"])

    def losses_of(self, batch):
        inputs = [batch[name] for name in INPUT_NAMES]
        with layers.gates(self.tickets.gates(self.task)):
            logits = self.student(inputs, training=True)["logits"]

        def loss_of(name):
            labels = batch["label"]
            if logits[name].shape[-1] > 1:
                labels = tf.cast(labels, tf.int32)
            return lambda: label_loss(labels, logits[name])

        branches = [loss_of(name) for name in self.tickets.names]
        return {"loss": tf.switch_case(tf.cast(self.task, tf.int32), branches)}

    def predictor(self, task):
        """Returns what computes one task's logits, for an `Evaluator`.

        Args:
            task: int. Its place among the tickets' names.
        """
        name = self.tickets.names[task]

        def forward(inputs, training=False):
            with layers.gates(self.tickets.gates(task)):
                outputs = self.student(inputs, training=training)
            return {"logits": outputs["logits"][name]}

        return forward


class MultiTaskEvaluator:
    """Scores one model on every task; traces it once for each.

    Args:
        model: MultiTaskModel.
        tasks: list of `Task`, in the order of the tickets' names.

    Example:

    ```python
    results = MultiTaskEvaluator(model, tasks).evaluate(dev_sets)
    results["eval_mcc_CoLA"], results["eval_mean"]
    ```
    """

    def __init__(self, model, tasks):
        self._evaluators = [
            (task, evaluation.Evaluator(model.predictor(place)))
            for place, task in enumerate(tasks)
        ]

    def evaluate(self, dev_sets, batch_size=64):
        """Scores every dev set.

        Args:
            dev_sets: list of dicts from the suffix of a dev set ("", or
                "mismatched") to `EncodedDataset`, one for each task.
            batch_size: int.

        Returns:
            A dict: each metric with the suffix and the task's name behind it,
            `eval_mean`, the mean of the tasks' primary metrics, and
            `eval_loss`, that of their losses.
        """
        results, primary, losses = {}, [], []
        for (task, evaluator), sets in zip(
            self._evaluators, dev_sets, strict=True
        ):
            for suffix, dataset in sets.items():
                found = evaluator.evaluate(task, dataset, batch_size)
                for name, value in found.items():
                    parts = (name, suffix, task.name)
                    results["_".join(filter(None, parts))] = value
                if not suffix:
                    primary.append(found[task.primary_metric])
                    losses.append(found["eval_loss"])
        results["eval_mean"] = float(np.mean(primary))
        results["eval_loss"] = float(np.mean(losses))
        return results


def _check_ticket(config, task, ticket):
    try:
        ticket.check_fits(config)
    except UserError as error:
        raise UserError(f"The ticket of {task}: {error}") from error
    for layer, size in enumerate(config.intermediate_sizes):
        if not ticket.heads[layer]:
            raise UserError(
                f"The ticket of {task} keeps no head of layer {layer}. Tasks "
                "that share an encoder use all its layers."
            )
        if len(ticket.neurons[layer]) not in (0, size):
            raise UserError(
                f"The ticket of {task} keeps {len(ticket.neurons[layer])} of "
                f"the {size} neurons of layer {layer}. Tasks that share an "
                "encoder use whole feed-forward blocks or none."
            )
