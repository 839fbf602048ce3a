"""The training loop: steps, mask updates, evaluations, checkpoints, resume.

Everything a step depends on is a function of the seed and the step number
(order of the data, dropout, learning rate, sparsity), or is saved: weights,
masks and optimizer slots. So a run that is killed at any moment resumes to
the result it would have had.
"""

import dataclasses
import json
import math
import signal
import sys
import time

import numpy as np
import tensorflow as tf
import tf_keras as keras
import tqdm

from bert_pruning.compression import costs
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling.official import READER_ERRORS
from bert_pruning.training.step import INPUT_NAMES


@dataclasses.dataclass(frozen=True)
class Plan:
    """When to do what, in optimizer steps.

    Args:
        num_steps: int. Steps in all.
        steps_per_epoch: int. Steps until every example was seen once.
        eval_steps: int. Steps between evaluations.
        save_steps: int. Steps between checkpoints to resume from; every
            evaluation saves one too.
        log_steps: int. Steps between TensorBoard scalars.
        accumulation: int. Micro-batches per step.
    """

    num_steps: int
    steps_per_epoch: int
    eval_steps: int
    save_steps: int = 500
    log_steps: int = 10
    accumulation: int = 1


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived; the state was saved."""


class Trainer:
    """Trains a `DistillationModel` by a plan, inside a run.

    Args:
        model: step.DistillationModel, compiled.
        batches: pipeline.TrainBatches.
        plan: Plan.
        run: run.Run.
        summaries: summaries.Summaries.
        evaluate: function without arguments that returns a dict of metrics.
        primary_metric: str. The metric that chooses the best checkpoint.
        save_model: function of a directory that writes the model there.

    Example:

    ```python
    trainer = Trainer(model, batches, plan, run, summaries, evaluate,
                      "eval_accuracy", save_model)
    results = trainer.train()
    ```
    """

    def __init__(
        self,
        model,
        batches,
        plan,
        run,
        summaries,
        evaluate,
        primary_metric,
        save_model,
    ):
        self.model = model
        self.batches = batches
        self.plan = plan
        self.run = run
        self.summaries = summaries
        self.evaluate = evaluate
        self.primary_metric = primary_metric
        self.save_model = save_model
        self.strategy = tf.distribute.get_strategy()
        self.records = []
        self.best = None
        self.train_time = 0.0
        self.eval_time = 0.0
        self._progress = tf.Variable("", dtype=tf.string)
        self._manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(
                student=model.student,
                optimizer=model.optimizer,
                steps_done=model.steps_done,
                progress=self._progress,
            ),
            str(run.path("checkpoint")),
            max_to_keep=1,
        )
        self._build_step_functions()

    def train(self):
        """Trains to the end of the plan, resuming where a run left off.

        Returns:
            A dict: the best model's metrics, `global_step`, `loss`,
            `sparsity`, `train_time` and `eval_time` (seconds).

        Raises:
            UserError: if the loss is not finite.
            Interrupted: after Ctrl-C or SIGTERM, with the state saved.
        """
        # Precedence: the run's own checkpoint, then the initial weights.
        step, pending = self._restore()
        pruner = self.model.pruner
        if pruner is not None and step == 0:
            pruner.update(0)
        last_loss = math.nan
        with _Signals() as signals, self._progress_bar(step) as bar:
            started = time.monotonic()
            for batch in self._batches_from(step):
                losses = self._run_step(batch)
                step += 1
                pending.append(losses)
                if pruner is not None:
                    pruner.update(step)
                evaluates = (
                    step % self.plan.eval_steps == 0
                    or step == self.plan.num_steps
                )
                saves = evaluates or step % self.plan.save_steps == 0
                logs = saves or step % self.plan.log_steps == 0
                if logs or signals.received:
                    means = self._check(pending, step)
                if logs:
                    pending, last_loss = [], means["loss"]
                    bar.set_postfix(loss=f"{last_loss:.4f}", refresh=False)
                    self._log(means, step)
                bar.update()
                if saves or signals.received:
                    self._check_weights(step)
                if evaluates:
                    self.train_time += time.monotonic() - started
                    self._evaluate(step, last_loss, bar)
                    started = time.monotonic()
                if saves or signals.received:
                    elapsed = time.monotonic() - started
                    self._save(step, pending, self.train_time + elapsed)
                if signals.received and step < self.plan.num_steps:
                    raise Interrupted(
                        f"Stopped after step {step} of {self.plan.num_steps}. "
                        "The same command, without --overwrite, resumes the "
                        "run."
                    )
        if pruner is not None:
            pruner.check_reached()
        self.summaries.flush()
        return {
            **self.best["metrics"],
            "global_step": self.best["step"],
            "loss": self.best["loss"],
            "sparsity": self.best["sparsity"],
            "train_time": round(self.train_time, 2),
            "eval_time": round(self.eval_time, 2),
        }

    def _build_step_functions(self):
        matrix = tf.TensorSpec((None, None), tf.int32)
        label = tf.int32
        if self.batches.dataset.labels.dtype.kind == "f":
            label = tf.float32
        batch = {name: matrix for name in INPUT_NAMES}
        batch["label"] = tf.TensorSpec((None,), label)
        model, strategy = self.model, self.strategy
        # Per-replica values have no public spec; batches of other lengths
        # must not each be a trace of their own.
        signature = None
        if strategy.num_replicas_in_sync == 1:
            share = tf.TensorSpec((), tf.float32)
            index = tf.TensorSpec((), tf.int64)
            signature = [batch, share, index]

        def reduce(losses):
            return {
                name: strategy.reduce(tf.distribute.ReduceOp.SUM, value, None)
                for name, value in losses.items()
            }

        @tf.function(input_signature=signature, reduce_retracing=True)
        def step(batch, share, index):
            del index
            return reduce(strategy.run(model.train_step, (batch, share)))

        @tf.function(input_signature=signature, reduce_retracing=True)
        def accumulate(batch, share, index):
            arguments = (batch, share, index)
            return reduce(strategy.run(model.accumulate_step, arguments))

        @tf.function
        def apply():
            strategy.run(model.apply_step)

        self._step, self._accumulate, self._apply = step, accumulate, apply

    def _run_step(self, batch):
        size = len(batch["label"])
        pieces = np.array_split(np.arange(size), self.plan.accumulation)
        pieces = [piece for piece in pieces if len(piece)]
        if len(pieces) == 1:
            return self._step(*self._distribute(batch, pieces[0], size, 0))
        losses = [
            self._accumulate(*self._distribute(batch, piece, size, index))
            for index, piece in enumerate(pieces)
        ]
        self._apply()
        return {name: sum(loss[name] for loss in losses) for name in losses[0]}

    def _distribute(self, batch, rows, size, index):
        """Divides the rows of a batch over the replicas, with their share."""
        names = (*INPUT_NAMES, "label")
        index = tf.constant(index, tf.int64)
        replicas = self.strategy.num_replicas_in_sync
        if replicas == 1:
            values = {name: tf.constant(batch[name][rows]) for name in names}
            return values, tf.constant(len(rows) / size, tf.float32), index
        # A replica without rows repeats one, with no say in the result.
        parts = [
            (part, len(part) / size) if len(part) else (rows[:1], 0.0)
            for part in np.array_split(rows, replicas)
        ]
        spread = self.strategy.experimental_distribute_values_from_function

        def part_of(name):
            return spread(
                lambda context: tf.constant(
                    batch[name][parts[context.replica_id_in_sync_group][0]]
                )
            )

        share = spread(
            lambda context: tf.constant(
                parts[context.replica_id_in_sync_group][1], tf.float32
            )
        )
        return {name: part_of(name) for name in names}, share, index

    def _batches_from(self, step):
        per_epoch = self.plan.steps_per_epoch
        while step < self.plan.num_steps:
            epoch, start = divmod(step, per_epoch)
            for batch in self.batches.epoch(epoch, start):
                yield batch
                step += 1
                if step == self.plan.num_steps:
                    return

    def _check(self, pending, step):
        """Returns the mean losses since the last check; NaN is an error."""
        values = {
            name: np.array([float(losses[name]) for losses in pending])
            for name in pending[0]
        }
        finite = np.isfinite(values["loss"])
        if not finite.all():
            first = step - len(pending) + 1 + int(np.argmin(finite))
            terms = ", ".join(
                f"{name} = {array[np.argmin(finite)]:g}"
                for name, array in values.items()
            )
            self._stop(f"The loss is not finite at step {first} ({terms}).")
        return {name: float(array.mean()) for name, array in values.items()}

    def _check_weights(self, step):
        """A finite loss may have had other gradients; do not save those."""
        for variable in self.model.student.trainable_variables:
            if not tf.reduce_all(tf.math.is_finite(variable)):
                self._stop(
                    f"{variable.name} is not finite after step {step}, "
                    "although the loss is."
                )

    def _stop(self, reason):
        saved = self._manager.latest_checkpoint
        precision = ""
        if keras.mixed_precision.global_policy().name != "float32":
            precision = ", or use --mixed_precision=float32"
        kept = "No checkpoint had been saved yet."
        if saved:
            kept = f"The last good checkpoint is kept: {saved}."
            if self.best is not None:
                kept += (
                    f" The best model so far, of step {self.best['step']}, is "
                    f"{self.run.path('checkpoint', 'best')}."
                )
        raise UserError(
            f"{reason} {kept} Lower --learning_rate{precision}, and start "
            "anew with --overwrite."
        )

    def _log(self, means, step):
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        scalars = {f"train/{name}": value for name, value in means.items()}
        rate = tf.convert_to_tensor(optimizer.learning_rate)
        scalars["train/learning_rate"] = float(rate)
        if self.model.pruner is not None:
            sparsity = self.model.pruner.sparsity
            scalars["sparsity/target"] = sparsity.at(step)
        self.summaries.scalars(scalars, step)

    def _evaluate(self, step, loss, bar):
        started = time.monotonic()
        metrics = self.evaluate()
        self.eval_time += time.monotonic() - started
        pruner = self.model.pruner
        sparsity = costs.total(
            variable.numpy()
            for name, variable in bert.named_variables(
                self.model.student
            ).items()
            if name.startswith("layer_") and name.endswith("/kernel")
        ).sparsity
        at_target = True
        if pruner is not None:
            counts = pruner.measured()
            # An earlier, denser checkpoint would win unfairly.
            at_target = pruner.sparsity.at(step) == pruner.sparsity.final
            self.summaries.sparsity(counts, pruner.sparsity.at(step), step)
        self.summaries.scalars(
            {f"eval/{name}": value for name, value in metrics.items()}, step
        )
        self.records.append(
            {
                "step": step,
                "epoch": round(step / self.plan.steps_per_epoch, 4),
                "loss": loss,
                "sparsity": sparsity,
                **metrics,
            }
        )
        self.run.write_metrics(self.records)
        self.summaries.flush()
        shown = ", ".join(
            f"{name} {value:.4f}" for name, value in metrics.items()
        )
        bar.write(
            f"step {step}: {shown}, loss {loss:.4f}, sparsity {sparsity:.4f}",
            file=sys.stderr,
        )
        if at_target and (
            self.best is None
            or self._rank(metrics) > self._rank(self.best["metrics"])
        ):
            self.best = {
                "step": step,
                "loss": loss,
                "sparsity": sparsity,
                "metrics": metrics,
            }
            self.run.save_best(self.save_model)

    def _rank(self, metrics):
        # A small dev set often ties; then the lower loss is the better model.
        return metrics[self.primary_metric], -metrics["eval_loss"]

    def _save(self, step, pending, train_time):
        self._progress.assign(
            json.dumps(
                {
                    "records": self.records,
                    "best": self.best,
                    "pending": [
                        {name: float(value) for name, value in losses.items()}
                        for losses in pending
                    ],
                    "train_time": train_time,
                    "eval_time": self.eval_time,
                }
            )
        )
        try:
            self._manager.save(checkpoint_number=step)
        except (OSError, tf.errors.OpError) as error:
            raise UserError(
                f"Cannot save a checkpoint to {self.run.directory}: {error}. "
                "Free some space; the checkpoint before is unchanged, and "
                "the same command resumes from it."
            ) from error

    def _restore(self):
        latest = self._manager.latest_checkpoint
        if not latest:
            return 0, []
        try:
            self._manager.checkpoint.restore(latest).assert_consumed()
        except (AssertionError, *READER_ERRORS) as error:
            raise UserError(
                f"The checkpoint to resume from, {latest}, is damaged: "
                f"{error}. Start anew with --overwrite."
            ) from error
        progress = json.loads(self._progress.numpy())
        self.records = progress["records"]
        self.best = progress["best"]
        self.train_time = progress["train_time"]
        self.eval_time = progress["eval_time"]
        self.run.write_metrics(self.records)
        return int(self.model.steps_done.numpy()), progress["pending"]

    def _progress_bar(self, step):
        # In a log file a line every half minute is enough.
        interval = 0.5 if sys.stderr.isatty() else 30.0
        return tqdm.tqdm(
            total=self.plan.num_steps,
            initial=step,
            unit="step",
            desc=self.run.directory.name,
            mininterval=interval,
            maxinterval=interval,
            dynamic_ncols=True,
        )


class _Signals:
    """Notes the first Ctrl-C or SIGTERM; a second one acts at once."""

    def __enter__(self):
        self.received = False
        self._previous = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        del frame
        self.received = True
        signal.signal(number, self._previous[number])
