"""A sweep: the stages that `run_all` runs, as plain values.

sweep = Sweep("glue", "uncased_L-12_H-768_A-12", Path("."), ("MRPC",))
sweep.finetune_stages("MRPC")["5e-5"][0].directory
# fine_tune_outputs/MRPC/lr_5e-5
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from bert_pruning.commands import distillation_flags
from bert_pruning.commands import pruning_flags
from bert_pruning.commands.stages import Stage
from bert_pruning.data.tasks import TASKS
from bert_pruning.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Which runs there are, where they go and with which flags.

    The flags of a run, the later ones winning: those of the task's own
    `task.cfg`, of the stage's flagfile, of the sweep, and the person's.

    Args:
        data_dir: str. Holds one folder per task, or is "tfds".
        init_checkpoint: str. The pre-trained model.
        output_dir: path. Receives `fine_tune_outputs`, `prune_outputs` and,
            unless a flag names another, the `cache` of tokenised data.
        tasks: tuple of str. Names of GLUE tasks, or of folders in `data_dir`
            with a `task.cfg`.
        learning_rates: tuple of str. As they shall appear in paths.
        seeds: tuple of int. With several, each run has a folder per seed.
        finetune_flagfile: str. Flags of the fine-tuning; "{task}" in it
            stands for the task in lower case. Empty: none.
        prune_flagfile: str. The same of the pruning.
        prune: bool. Whether to prune at all.
        prune_from: str. Where the pruning begins: "pretrained", as SparseBERT
            does, or "finetuned", from the teacher's own weights.
        finetune_flags: tuple of str. Flags that the person gave.
        prune_flags: tuple of str. The same for the pruning.
    """

    data_dir: str
    init_checkpoint: str
    output_dir: Path
    tasks: tuple[str, ...]
    learning_rates: tuple[str, ...] = ("5e-5",)
    seeds: tuple[int, ...] = (42,)
    finetune_flagfile: str = ""
    prune_flagfile: str = ""
    prune: bool = True
    prune_from: str = "pretrained"
    finetune_flags: tuple[str, ...] = ()
    prune_flags: tuple[str, ...] = ()

    @property
    def num_stages(self) -> int:
        per_seed = len(self.learning_rates) + self.prune
        return len(self.tasks) * len(self.seeds) * per_seed

    @property
    def finetune_dir(self) -> Path:
        return self.output_dir / "fine_tune_outputs"

    @property
    def prune_dir(self) -> Path:
        return self.output_dir / "prune_outputs"

    def finetune_stages(self, task: str) -> Mapping[str, list[Stage]]:
        """The fine-tuning runs of a task by learning rate, one per seed."""
        return {
            rate: [
                self._stage(
                    f"{task}, fine-tuning at {rate}",
                    self.finetune_dir / task / f"lr_{rate}",
                    seed,
                    *self.task_flags(task),
                    *_flagfile(self.finetune_flagfile, task),
                    f"--init_checkpoint={self.init_checkpoint}",
                    f"--learning_rate={rate}",
                    *self.finetune_flags,
                )
                for seed in self.seeds
            ]
            for rate in self.learning_rates
        }

    def prune_stages(self, task: str, teacher: Path | str) -> list[Stage]:
        """The pruning runs of a task, one per seed.

        Args:
            task: str. One of `tasks`.
            teacher: path. The run directory of the fine-tuned model.
        """
        begin = {"pretrained": self.init_checkpoint, "finetuned": teacher}
        return [
            self._stage(
                f"{task}, pruning",
                self.prune_dir / task,
                seed,
                *self.task_flags(task),
                *_flagfile(self.prune_flagfile, task),
                f"--init_checkpoint={begin[self.prune_from]}",
                f"--teacher_checkpoint={teacher}",
                *self.prune_flags,
            )
            for seed in self.seeds
        ]

    def _stage(self, title, directory, seed, *arguments):
        if len(self.seeds) > 1:
            title = f"{title}, seed {seed}"
            directory = directory / f"seed_{seed}"
        # First, so that a person's own one wins.
        cache = f"--cache_dir={self.output_dir / 'cache'}"
        return Stage(title, directory, (cache, *arguments, f"--seed={seed}"))

    def task_flags(self, task: str) -> tuple[str, ...]:
        """The flags that say which task it is, and where its data are."""
        if task in TASKS:
            return (f"--task_name={task}", f"--data_dir={self.data_dir}")
        folder = os.path.join(self.data_dir, task)
        return (
            f"--flagfile={os.path.join(folder, TASK_FILE)}",
            f"--data_dir={folder}",
        )


def find_tasks(data_dir: str) -> tuple[str, ...]:
    """Finds the tasks that a folder has data for.

    Args:
        data_dir: str. Holds one folder per task, or is "tfds".

    Returns:
        tuple of str. GLUE's that can be trained, in its order, then those
        with a `task.cfg`, sorted.

    Raises:
        UserError: there are none.
    """
    # MRPC-MSR shares the folder of MRPC: it is a variant to ask for.
    glue = [
        task.name
        for task in TASKS.values()
        if "train" in task.splits and task.name == task.folder
    ]
    if data_dir == "tfds":
        return tuple(glue)
    folder = Path(data_dir)
    if not folder.is_dir():
        raise UserError(f"There is no folder --data_dir={data_dir}.")
    found = [name for name in glue if (folder / name).is_dir()]
    found += sorted(path.parent.name for path in folder.glob(f"*/{TASK_FILE}"))
    if not found:
        raise UserError(
            f"--data_dir={data_dir} has no folder of a task. Expected one of "
            f"{', '.join(glue)}, or a folder with a {TASK_FILE}."
        )
    return tuple(found)


def resolve_task(name: str, data_dir: str) -> str:
    """Spells a task as `TASKS` or its folder does.

    Raises:
        UserError: there is no such task.
    """
    if (Path(data_dir) / name / TASK_FILE).is_file():
        return name
    for task in TASKS:
        if task.replace("-", "").lower() == name.replace("-", "").lower():
            return task
    raise UserError(
        f"Unknown task: --tasks={name}. Expected one of {', '.join(TASKS)}, or "
        f"a folder in {data_dir} with a {TASK_FILE}."
    )


def _flagfile(path, task):
    if not path:
        return ()
    return (f"--flagfile={path.replace('{task}', task.lower())}",)


TASK_FILE = "task.cfg"

# The flags of `train` that only the pruning understands, having a teacher.
PRUNE_FLAGS = (
    "distill",
    "pruning",
    *distillation_flags.NAMES,
    *pruning_flags.NAMES,
)

# The flags of `train` that the sweep decides itself, and what to do instead.
DECIDED = {
    "learning_rate": "use --learning_rates",
    "seed": "use --seeds",
    "task_name": "use --tasks",
    "teacher_checkpoint": "the best fine-tuned run is the teacher",
    "tickets": "`train` takes several tasks",
    "sampling_temperature": "`train` takes several tasks",
    "quantize": "`train` goes on with a finished run in 8 bits",
    "structure": "cut the checkpoint first, by `shrink --keep_structure`",
}
