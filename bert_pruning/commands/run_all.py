r"""Trains every task at every learning rate, prunes from the best, reports.

    python -m bert_pruning run_all --data_dir=glue \
        --init_checkpoint=uncased_L-12_H-768_A-12 \
        --tasks=MRPC,STS-B --learning_rates=5e-5,4e-5,3e-5,2e-5 \
        --finetune_flagfile=configs/finetune.cfg \
        --prune_flagfile=configs/sparsebert/glue.cfg

Runs go to fine_tune_outputs/TASK/lr_X and prune_outputs/TASK in --output_dir,
the table to fine_tune_outputs/results.md, tokenised data to cache. What is
missing or wrong is told before the first run. Each run is a process of its own:
one that fails does not stop the others, and the same command goes on where it
was stopped. All flags of `train` are understood and passed on, those of
distillation and pruning to the pruning alone.

A folder in --data_dir with a `task.cfg` is a task too. That file holds the
flags to read it: --task_name=custom, --text_a_column, --label_column, ...
"""

import concurrent.futures
import multiprocessing
import sys
import time
from pathlib import Path

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import preflight
from bert_pruning.commands import settings
from bert_pruning.commands import train
from bert_pruning.commands.stages import Stage
from bert_pruning.commands.stages import stop_on_signals
from bert_pruning.commands.sweep import DECIDED
from bert_pruning.commands.sweep import PRUNE_FLAGS
from bert_pruning.commands.sweep import Sweep
from bert_pruning.commands.sweep import find_tasks
from bert_pruning.commands.sweep import resolve_task
from bert_pruning.data.tasks import Task
from bert_pruning.delivery.summary import Failure
from bert_pruning.delivery.summary import TaskResults
from bert_pruning.delivery.summary import summarize
from bert_pruning.errors import UserError
from bert_pruning.training.run import read_results

FLAGS = flags.FLAGS


def define_flags():
    """Defines the flags of `run_all`: its own and those of `train`."""
    train.define_flags()
    FLAGS.set_default("output_dir", ".")
    FLAGS["output_dir"].help = "Holds fine_tune_outputs and prune_outputs."
    FLAGS["cache_dir"].help += " Default: cache in --output_dir."
    flags.DEFINE_list(
        "tasks", [], "GLUE tasks, or folders with a task.cfg. Default: all."
    )
    flags.DEFINE_list(
        "learning_rates", ["5e-5"], "Each task is fine-tuned at each of them."
    )
    flags.DEFINE_list("seeds", ["42"], "Each run is done with each of them.")
    flags.DEFINE_string(
        "finetune_flagfile",
        "",
        "Flags of the fine-tuning; {task} in the path stands for the task.",
    )
    flags.DEFINE_string(
        "prune_flagfile", "", "The same of the pruning and distillation."
    )
    flags.DEFINE_bool("prune", True, "Whether to prune from the best run.")
    flags.DEFINE_enum(
        "prune_from",
        "pretrained",
        ["pretrained", "finetuned"],
        "What is pruned: the pre-trained model, or the fine-tuned teacher's "
        "own weights, which need fewer steps.",
    )


def main():
    """Sweeps by the flags; returns the exit status."""
    sweep = _read_sweep()
    # A process of its own, so that neither TensorFlow nor the data stay in
    # this one, which only waits.
    with concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("fork")
    ) as pool:
        tasks = pool.submit(preflight.prepare, sweep).result()
    stop_on_signals()
    runner = Runner(sweep, tasks, FLAGS.overwrite)
    try:
        runner.run()
    except KeyboardInterrupt:
        without = ", without --overwrite," if FLAGS.overwrite else ""
        print(
            f"\nStopped. The same command{without} goes on from here.",
            file=sys.stderr,
        )
        return 130
    print(f"\n{runner.table()}")
    print(f"This table: {sweep.finetune_dir / 'results.md'}")
    print(f"TensorBoard: {_tensorboard_command(sweep)}")
    return 1 if runner.failures else 0


class Runner:
    """Runs the stages of a sweep and keeps its table up to date.

    Args:
        sweep: `Sweep`, checked.
        tasks: dict of `Task` by the name that the sweep gives them.
        overwrite: bool. Run even what is done.
    """

    def __init__(
        self, sweep: Sweep, tasks: dict[str, Task], overwrite: bool = False
    ):
        self.failures: list[Failure] = []
        self._sweep = sweep
        self._tasks = tasks
        self._overwrite = overwrite
        self._begun: list[str] = []
        self._num_stages = 0

    def run(self) -> None:
        """Runs every stage; failures are noted and the rest goes on."""
        for name in self._sweep.tasks:
            self._begun.append(name)
            for stages in self._sweep.finetune_stages(name).values():
                for stage in stages:
                    self._run_stage(stage)
            if self._sweep.prune:
                self._run_pruning(name)

    def table(self) -> str:
        """What is finished so far, as Markdown."""
        results = [self._results(name) for name in self._begun]
        return summarize(results, self.failures)

    def _run_pruning(self, name):
        teacher = self._best_run(name)
        if teacher is None:
            self._num_stages += len(self._sweep.seeds)
            error = "no fine-tuned run to prune from"
            self.failures.append(Failure(f"{name}, pruning", error))
            return
        for stage in self._sweep.prune_stages(name, teacher):
            if self._has_other_teacher(stage, teacher):
                error = (
                    f"{stage.directory} is finished with another teacher than "
                    f"{teacher}, now the best; delete it to prune again"
                )
                self.failures.append(Failure(stage.title, error))
            self._run_stage(stage)

    def _run_stage(self, stage: Stage):
        self._num_stages += 1
        print(
            f"\n[{self._num_stages}/{self._sweep.num_stages}] {stage.title}: "
            f"{stage.directory}",
            flush=True,
        )
        if stage.is_done and not self._overwrite:
            print("Done before.")
        else:
            started = time.monotonic()
            error = stage.run()
            minutes = (time.monotonic() - started) / 60
            print(f"{'Failed' if error else 'Done'} in {minutes:.1f} minutes.")
            if error:
                failure = Failure(stage.title, error, str(stage.log))
                self.failures.append(failure)
        path = self._sweep.finetune_dir / "results.md"
        try:
            path.write_text(self.table(), encoding="utf-8")
        except OSError as error:
            print(f"Cannot write {path}: {error.strerror}.", file=sys.stderr)

    def _best_run(self, name) -> Path | None:
        """The best of the runs at the learning rate that is best on average."""
        results = self._results(name)
        rate = results.best_learning_rate
        if rate is None:
            return None
        done = [
            stage
            for stage in self._sweep.finetune_stages(name)[rate]
            if stage.is_done
        ]
        return max(
            done, key=lambda s: _read(s)[results.primary_metric]
        ).directory

    def _results(self, name):
        task = self._tasks[name]
        finetuned = {
            rate: [_read(stage) for stage in stages if stage.is_done]
            for rate, stages in self._sweep.finetune_stages(name).items()
        }
        pruning = self._sweep.prune_stages(name, "") * self._sweep.prune
        return TaskResults(
            name,
            task.metrics,
            task.primary_metric,
            finetuned,
            [_read(stage) for stage in pruning if stage.is_done],
        )

    def _has_other_teacher(self, stage, teacher):
        if self._overwrite or not stage.is_done:
            return False
        flag = "--teacher_checkpoint="
        before = [
            settings.whole_path(line.removeprefix(flag))
            for line in (stage.directory / "flags.cfg").read_text().splitlines()
            if line.startswith(flag)
        ]
        return before != [settings.whole_path(str(teacher))]


def _read(stage):
    return read_results(stage.directory / "eval_results.txt")


def _read_sweep():
    """Makes the sweep of the flags; all others of `train` are passed on."""
    shared.require("data_dir", "init_checkpoint")
    for name, advice in DECIDED.items():
        if FLAGS[name].present:
            raise UserError(f"--{name} is decided by the sweep: {advice}.")
    own = {"data_dir", "init_checkpoint", "output_dir", *DECIDED}
    given = {
        name: FLAGS[name].serialize()
        for name in preflight.train_flags()
        if FLAGS[name].present and name not in own
    }
    if not FLAGS.prune:
        unused = [name for name in PRUNE_FLAGS if name in given]
        if unused:
            raise UserError(f"--noprune and --{unused[0]} contradict.")
    elif not FLAGS.prune_flagfile and "distill" not in given:
        raise UserError(
            "How shall be pruned? Give --prune_flagfile, such as "
            "configs/sparsebert/glue.cfg, or --noprune."
        )
    names = [resolve_task(name, FLAGS.data_dir) for name in FLAGS.tasks]
    return Sweep(
        data_dir=FLAGS.data_dir,
        init_checkpoint=FLAGS.init_checkpoint,
        output_dir=Path(FLAGS.output_dir),
        tasks=tuple(dict.fromkeys(names)) or find_tasks(FLAGS.data_dir),
        learning_rates=_numbers("learning_rates", float),
        seeds=tuple(int(seed) for seed in _numbers("seeds", int)),
        finetune_flagfile=FLAGS.finetune_flagfile,
        prune_flagfile=FLAGS.prune_flagfile,
        prune=FLAGS.prune,
        prune_from=FLAGS.prune_from,
        finetune_flags=tuple(
            text for name, text in given.items() if name not in PRUNE_FLAGS
        ),
        prune_flags=tuple(given.values()),
    )


def _numbers(name, kind):
    """The texts of a list of different, positive numbers."""
    values = {}
    for text in FLAGS[name].value:
        try:
            value = kind(text)
        except ValueError:
            value = -1
        if value < 0 or value in values:
            raise UserError(
                f"--{name} needs different numbers, separated by commas. "
                f"Received: {','.join(FLAGS[name].value)}"
            )
        values[value] = text.strip()
    if not values:
        raise UserError(f"--{name} is empty.")
    return tuple(values.values())


def _tensorboard_command(sweep):
    program = Path(sys.executable).with_name("tensorboard")
    folders = [f"fine-tuned:{sweep.finetune_dir}"]
    if sweep.prune:
        folders.append(f"pruned:{sweep.prune_dir}")
    return f"{program} --logdir_spec={','.join(folders)}"
