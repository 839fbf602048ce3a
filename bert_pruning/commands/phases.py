r"""Compares trained tickets with the whole model, by what they leave.

    python -m bert_pruning phases --runs=runs/phases/MRPC \
        --data_dir=glue --output_dir=phases

Every finished run of `train` in the folders of --runs is scored, but those
that others of them begin at: those with a --structure are tickets, the others
the whole model. Runs that are compared differ in --seed and --structure alone,
or each begins at a run of its own task and seed, wherever that lies. Writes
`phases.csv`, `phases.md` and `phases.png`, and says which winning ticket is the
super ticket: chosen on one half of the dev set, reported on the other. --tables
takes the phases.csv of calls before in, of other tasks or seeds, but of the
same pre-trained model, which a table does not tell.
"""

import dataclasses
import os
import zlib
from pathlib import Path

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import settings
from bert_pruning.compression.tickets import KINDS
from bert_pruning.errors import UserError
from bert_pruning.modeling.files import read_json
from bert_pruning.training.run import RESUMABLE_FLAGS
from bert_pruning.training.run import parse_flags

FLAGS = flags.FLAGS

_FILES_OF_RUNS = ("DONE", "flags.cfg", "metrics.jsonl")


def define_flags():
    """Defines the flags of `phases`."""
    shared.define_data_flags()
    # That of the runs.
    FLAGS.set_default("max_seq_length", None)
    flags.DEFINE_list("runs", [], "Folders that hold the runs.")
    flags.DEFINE_list(
        "tables", [], "Files that earlier calls wrote, phases.csv."
    )
    flags.DEFINE_string("output_dir", None, "Receives table and picture.")
    flags.DEFINE_bool("overwrite", False, "Replace what is in --output_dir.")


def check_flags():
    """Finds what is wrong before anything is loaded."""
    shared.require("output_dir")
    for name in ("runs", "tables"):
        if not all(FLAGS[name].value):
            raise UserError(
                f"--{name} has an empty item. Received: "
                f"{','.join(FLAGS[name].value)!r}."
            )
    if FLAGS.runs or not FLAGS.tables:
        shared.require("runs", "data_dir")
    shared.check_separate(FLAGS.output_dir, "runs", "tables")
    if os.path.exists(os.path.join(FLAGS.output_dir, "config.json")):
        raise UserError(
            f"{FLAGS.output_dir} holds a model. Choose another --output_dir."
        )


def main():
    """Compares by the flags; returns the exit status."""
    check_flags()

    from bert_pruning.commands import inputs
    from bert_pruning.delivery import phases
    from bert_pruning.outputs import progress_bar
    from bert_pruning.training.run import Run

    rows = [row for path in FLAGS.tables for row in phases.read_csv(path)]
    found = _find_runs()
    if FLAGS.runs and not found:
        raise UserError(
            f"There is nothing to compare in {', '.join(FLAGS.runs)}: no "
            "finished runs of train at which no others begin, folders with "
            f"{', '.join(_FILES_OF_RUNS)}."
        )
    # Before the long work: what was trained can be compared.
    levels = phases.find_levels([*rows, *found])
    for task, level in phases.find_incomplete([*rows, *found], levels):
        shared.LOG.warning(
            "%s cannot be the super ticket of %s: its winning tickets have "
            "other seeds than the whole model's runs.",
            *(level, task),
        )
    run = Run(FLAGS.output_dir, shared.flags_as_text(), FLAGS.overwrite)
    inputs.find_gpus()
    dev_sets = {}
    if found:
        bar = progress_bar(found, total=len(found), desc="scoring", unit="run")
        rows += [_score(dev_sets, trained) for trained in bar]
    rows.sort(key=lambda row: (row.task, row.kind, -row.percent_left, row.seed))
    table = phases.to_markdown(rows)
    run.begin()
    run.write_text("phases.csv", phases.to_csv(rows))
    run.write_text("phases.md", table)
    with run.writing():
        phases.draw(rows, run.path("phases.png"))
    choices = phases.choose(rows)
    run.complete()
    print(table, end="")
    for choice in choices:
        print(
            f"{choice.task}: the super ticket leaves {choice.level} out, "
            f"{choice.percent_left:.1f} % stay; on the half of the dev set "
            f"that did not choose it {choice.reported:.4f}, the whole model "
            f"{choice.full:.4f}"
        )
    print(f"Table and picture: {run.directory}")
    return 0


@dataclasses.dataclass(frozen=True)
class _Trained:
    """A finished run, of a kind of ticket, level and seed or of all.

    Its flags are those that must be alike, and those of the run that it begins
    at, if any; it is rewound if that one is of its task and seed.
    """

    directory: Path
    task: str
    kind: str
    level: str
    seed: int
    structure: object
    flags: dict
    init_checkpoint: str
    is_rewound: bool

    @property
    def settings(self):
        """A short name of the flags, but those that say where files are."""
        others = {
            name: value
            for name, value in sorted(self.flags.items())
            if name.split()[0] not in settings.PATH_FLAGS
        }
        return f"{zlib.crc32(repr(others).encode()):08x}"


def _find_runs():
    """Returns the finished runs of all folders, but those that others begin at.

    Raises:
        UserError: if two of a task differ in more than seed and structure.
    """
    every = {}
    for folder in map(Path, FLAGS.runs):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}.")
        if _is_run(folder):
            raise UserError(f"{folder} is a run. Give the folder it is in.")
        for directory in filter(_is_run, sorted(folder.iterdir())):
            flags_of = _read_flags(directory)
            start = _find_start(directory, flags_of.get("init_checkpoint"))
            every[_whole(directory)] = directory, flags_of, start
    starts = {
        start: (_read_flags(start), _read_task(start))
        for start in {start for *_, start in every.values() if start}
    }
    found, first = [], {}
    for path, (directory, flags_of, start) in every.items():
        if path in starts:
            print(f"Not compared, others begin at it: {directory}")
            continue
        trained = _read_run(directory, flags_of, starts.get(start))
        _warn_of_best(trained)
        _check_alike(trained, first.setdefault(trained.task, trained))
        found.append(trained)
    return found


def _is_run(directory):
    return all((directory / name).exists() for name in _FILES_OF_RUNS)


def _whole(path):
    return Path(settings.whole_path(str(path)))


def _find_start(directory, path):
    """Returns the finished run that another begins at, or None."""
    if not path:
        return None
    # It may have been moved or copied with the run.
    found, beside = Path(path), directory.parent / Path(path).name
    if not found.exists() or (
        _is_run(found)
        and _is_run(beside)
        and _read_flags(found) == _read_flags(beside)
    ):
        found = beside
    return _whole(found) if _is_run(found) and found != directory else None


def _check_alike(trained, other):
    differing = []
    if trained.init_checkpoint != other.init_checkpoint and not (
        trained.is_rewound and other.is_rewound
    ):
        differing.append("--init_checkpoint")
    # Where one begins at a run alone, that it does is what is to be said.
    names = (
        trained.flags.keys() & other.flags.keys()
        if differing
        else (trained.flags.keys() | other.flags.keys())
    )
    differing += [
        f"--{name}"
        for name in sorted(names)
        if trained.flags.get(name) != other.flags.get(name)
    ]
    if differing:
        raise UserError(
            f"{other.directory}, which begins at {_where(other)}, and "
            f"{trained.directory}, at {_where(trained)}, differ in "
            f"{', '.join(differing)}. Runs that are compared differ in --seed "
            "and --structure alone, or each begins at a finished run of its "
            "own task and --seed."
        )


def _where(trained):
    path = trained.init_checkpoint
    is_there = all(
        os.path.exists(name) or os.path.exists(f"{name}.index")
        for name in shared.paths_of("init_checkpoint", path)
    )
    return path if is_there else f"{path}, which is not there"


def _warn_of_best(trained):
    path = trained.directory / "metrics.jsonl"
    evaluations = path.read_text().splitlines()
    if len(evaluations) > 1 and trained.flags.get("keep") != "last":
        shared.LOG.warning(
            "%s is the best of several evaluations on the dev set. Train with "
            "--keep=last to compare the last step.",
            trained.directory,
        )


def _read_flags(directory):
    return parse_flags((directory / "flags.cfg").read_text())


def _read_task(directory):
    config = read_json(str(directory / "config.json"))
    task = config.get("bert_pruning", {}).get("task") or {}
    return task.get("data_name") or task.get("name")


def _flags_to_compare(flags_of):
    return {
        name: settings.whole_value(name, value)
        for name, value in flags_of.items()
        if name not in RESUMABLE_FLAGS | {"seed", "structure", "task_name"}
    }


def _read_run(directory, flags_of, start):
    from bert_pruning.compression.structure import Structure

    if "seed" not in flags_of:
        raise UserError(f"{directory}/flags.cfg does not say the --seed.")
    structure, kind, level = None, "full", "0/0"
    if "structure" in flags_of:
        path = str(directory / "structure.json")
        structure = Structure.load(path)
        kind, level = (structure.about.get(key) for key in ("kind", "level"))
        if kind not in KINDS:
            raise UserError(
                f"{path} does not say that it is a {', '.join(KINDS[:-1])} or "
                f"{KINDS[-1]} ticket. Draw it by `tickets`."
            )
    task = _read_task(directory)
    if not task:
        raise UserError(
            f"{directory} is no run of one task with labels or scores. Only "
            "these are compared."
        )
    compared = _flags_to_compare(flags_of)
    init_checkpoint = compared.pop("init_checkpoint", "")
    is_rewound = False
    if start:
        flags_of_start, task_of_start = start
        compared |= {
            f"{name} of the start": value
            for name, value in _flags_to_compare(flags_of_start).items()
        }
        if task_of_start != task:
            name = flags_of_start.get("task_name", "")
            compared["task_name of the start"] = name
        elif flags_of_start.get("seed") == flags_of["seed"]:
            is_rewound = True
    return _Trained(
        *(directory, task, kind, level, int(flags_of["seed"]), structure),
        *(compared, init_checkpoint, is_rewound),
    )


def _score(dev_sets, trained):
    import tf_keras as keras

    from bert_pruning.commands import inputs
    from bert_pruning.compression import costs
    from bert_pruning.data.metrics import compute_metrics
    from bert_pruning.delivery import phases
    from bert_pruning.training.evaluation import Evaluator

    shared.follow_run(str(trained.directory))
    checkpoint = inputs.load_checkpoint(str(trained.directory))
    task = inputs.evaluation_task(checkpoint)
    keras.backend.clear_session()  # Of the run before.
    model = inputs.restore_classifier(checkpoint, task)
    # Tokenised once for all runs of a task.
    key = task.title, checkpoint.vocabulary, FLAGS.max_seq_length
    if key not in dev_sets:
        tokenizer = inputs.find_tokenizer(checkpoint)
        dev_sets[key] = inputs.read_encoded(task, "dev", tokenizer)[1]
    dataset = dev_sets[key]
    logits = Evaluator(model).predict(dataset, FLAGS.eval_batch_size)
    values = []
    for rows in (slice(None), *phases.split_halves(len(dataset))):
        found = compute_metrics(task, dataset.labels[rows], logits[rows])
        values.append(round(float(found[task.primary_metric]), 6))
    left = 100.0
    if trained.structure is not None:
        whole = dataclasses.replace(
            checkpoint.config,
            num_heads=trained.structure.num_heads,
            intermediate_sizes=trained.structure.intermediate_sizes,
        )
        left = round(costs.percent_left(checkpoint.config, whole), 3)
    return phases.Row(
        *(trained.task, trained.kind, trained.level, left, trained.seed),
        *(task.primary_metric, *values, trained.settings),
    )
