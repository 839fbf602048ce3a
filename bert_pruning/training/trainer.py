"""The training loop: steps, mask updates, evaluations, checkpoints, resume.

Everything a step depends on is a function of the seed and the step number
(order of the data, dropout, learning rate, sparsity), or is saved: weights,
masks and optimizer slots. So a run that is killed at any moment resumes to
the result it would have had.
"""

import dataclasses
import math
import signal
import sys
import time

import numpy as np
import tensorflow as tf
import tf_keras as keras

from bert_pruning.compression import costs
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.outputs import progress_bar
from bert_pruning.training.snapshots import Snapshots
from bert_pruning.training.stepping import Stepper


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
        patience_steps: int or None. Steps without a better evaluation after
            which the training ends early; counted from the first evaluation
            that may be the best.
        keeps_last: bool. Whether the last evaluation's model is kept, not the
            best one's.
    """

    num_steps: int
    steps_per_epoch: int
    eval_steps: int
    save_steps: int = 500
    log_steps: int = 10
    accumulation: int = 1
    patience_steps: int | None = None
    keeps_last: bool = False


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
        evaluate: function of the model that returns a dict of metrics.
        primary_metric: str. The metric that chooses the best checkpoint.
        save_model: function of the model and a directory, which writes the
            model there.
        shrinking: shrinking.IterativeShrinking or None.

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
        shrinking=None,
    ):
        self.batches = batches
        self.plan = plan
        self.run = run
        self.summaries = summaries
        self.evaluate = evaluate
        self.primary_metric = primary_metric
        self.save_model = save_model
        self.shrinking = shrinking
        self.records = []
        self.best = None
        self.train_time = 0.0
        self.eval_time = 0.0
        self._snapshots = Snapshots(run)
        self._use(model)

    def train(self):
        """Trains to the end of the plan, resuming where a run left off.

        Returns:
            A dict: the kept model's metrics, `global_step`, `loss`,
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
                if self._has_stalled(step):
                    break
                losses = self._run_step(batch)
                step += 1
                pending.append(losses)
                if pruner is not None:
                    pruner.update(step)
                if self._shrinks(step):
                    self._use(self.shrinking.cut(self.model, step))
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

    def _use(self, model):
        self.model = model
        self._snapshots.track(model)
        self._stepper = Stepper(
            model, self.batches.label_dtype, self.plan.accumulation
        )

    def _run_step(self, batch):
        return self._stepper.run(batch)

    def _shrinks(self, step):
        return self.shrinking is not None and self.shrinking.is_due(step)

    def _has_stalled(self, step):
        """Whether an evaluation was too long after the best one to hope on."""
        if self.plan.patience_steps is None or self.best is None:
            return False
        if step % self.plan.eval_steps:
            return False
        return step - self.best["step"] >= self.plan.patience_steps

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
        saved = self._snapshots.latest
        precision = ""
        if keras.mixed_precision.global_policy().name != "float32":
            precision = ", or use --mixed_precision=float32"
        kept = "No checkpoint had been saved yet."
        if saved:
            kept = f"The last good checkpoint is kept: {saved}."
            if self.best is not None:
                kept += (
                    f" The model of step {self.best['step']} is "
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
        metrics = self.evaluate(self.model)
        self.eval_time += time.monotonic() - started
        pruner = self.model.pruner
        variables = bert.named_parameters(self.model.student)
        sparsity = costs.total(
            variable.numpy()
            for name, variable in variables.items()
            if name.startswith("layer_") and name.endswith("/kernel")
        ).sparsity
        at_target = True
        if pruner is not None:
            counts = pruner.measured()
            # An earlier, denser checkpoint would win unfairly.
            at_target = pruner.sparsity.at(step) == pruner.sparsity.final
            self.summaries.sparsity(counts, pruner.sparsity.at(step), step)
        if self.shrinking is not None:
            at_target = self.shrinking.is_final(step)
        parameters = sum(
            variable.shape.num_elements() for variable in variables.values()
        )
        scalars = {f"eval/{name}": value for name, value in metrics.items()}
        scalars["model/parameters"] = parameters
        self.summaries.scalars(scalars, step)
        self.records.append(
            {
                "step": step,
                "epoch": round(step / self.plan.steps_per_epoch, 4),
                "loss": loss,
                "sparsity": sparsity,
                "parameters": parameters,
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
            or self.plan.keeps_last
            or self._rank(metrics) > self._rank(self.best["metrics"])
        ):
            self.best = {
                "step": step,
                "loss": loss,
                "sparsity": sparsity,
                "metrics": metrics,
            }
            self.run.save_best(
                lambda directory: self.save_model(self.model, directory)
            )

    def _rank(self, metrics):
        # A small dev set often ties; then the lower loss is the better model.
        return metrics[self.primary_metric], -metrics.get("eval_loss", 0.0)

    def _save(self, step, pending, train_time):
        self._snapshots.save(
            step,
            {
                "records": self.records,
                "best": self.best,
                "pending": [
                    {name: float(value) for name, value in losses.items()}
                    for losses in pending
                ],
                "train_time": train_time,
                "eval_time": self.eval_time,
            },
        )

    def _restore(self):
        step = self._snapshots.latest_step
        if self.shrinking is not None and step:
            self._use(self.shrinking.model_at(step))
        progress = self._snapshots.restore()
        if progress is None:
            return 0, []
        self.records = progress["records"]
        self.best = progress["best"]
        self.train_time = progress["train_time"]
        self.eval_time = progress["eval_time"]
        self.run.write_metrics(self.records)
        return step, progress["pending"]

    def _progress_bar(self, step):
        return progress_bar(
            total=self.plan.num_steps,
            initial=step,
            unit="step",
            # A sweep's folders are TASK/lr_5e-5.
            desc="/".join(self.run.directory.parts[-2:]),
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
