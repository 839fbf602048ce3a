r"""Compares trained tickets with the whole model, by what they leave.

    python -m bert_pruning phases --runs=runs/phases/MRPC \
        --data_dir=glue --output_dir=phases

Every finished run of `train` in the folders of --runs is scored: those with a
--structure are tickets, the others the whole model. Writes `phases.csv`,
`phases.md` and `phases.png`, and says which winning ticket is the super
ticket: chosen on one half of the dev set, reported on the other.
"""

import dataclasses
import os
from pathlib import Path

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import settings
from bert_pruning.compression.tickets import KINDS
from bert_pruning.errors import UserError
from bert_pruning.training.run import RESUMABLE_FLAGS

FLAGS = flags.FLAGS


def define_flags():
    """Defines the flags of `phases`."""
    shared.define_data_flags()
    flags.DEFINE_list("runs", [], "Folders that hold the runs.")
    flags.DEFINE_string("output_dir", None, "Receives table and picture.")
    flags.DEFINE_bool("overwrite", False, "Replace what is in --output_dir.")


def check_flags():
    """Finds what is wrong before anything is loaded."""
    shared.require("runs", "data_dir", "output_dir")
    shared.check_separate(FLAGS.output_dir, "runs")
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

    dev_sets = {}
    found = [
        trained for folder in FLAGS.runs for trained in _find_runs(Path(folder))
    ]
    if not found:
        raise UserError(
            f"There are no finished runs of train in {', '.join(FLAGS.runs)}."
        )
    run = Run(FLAGS.output_dir, shared.flags_as_text(), FLAGS.overwrite)
    _check_kinds(found)
    inputs.find_gpus()
    rows = [
        _score(dev_sets, directory, *about)
        for directory, *about in progress_bar(
            found, total=len(found), desc="scoring", unit="run"
        )
    ]
    rows.sort(key=lambda row: (row.task, row.kind, -row.percent_left, row.seed))
    table = phases.to_markdown(rows)
    run.begin()
    run.write_text("phases.csv", phases.to_csv(rows))
    run.write_text("phases.md", table)
    with run.writing():
        phases.draw(rows, run.path("phases.png"))
    run.complete()
    print(table, end="")
    for choice in phases.choose(rows):
        print(
            f"{choice.task}: the super ticket leaves {choice.level} out, "
            f"{choice.percent_left:.1f} % stay; on the half of the dev set "
            f"that did not choose it {choice.reported:.4f}, the whole model "
            f"{choice.full:.4f}"
        )
    print(f"Table and picture: {run.directory}")
    return 0


def _check_kinds(found):
    """Finds what cannot be compared before the runs are scored."""
    kinds = {
        structure.about["kind"] if structure else "full"
        for _, structure, _ in found
    }
    if not kinds >= {"full", "winning"}:
        raise UserError(
            "The whole model's runs and winning tickets' are compared. "
            f"Received: {', '.join(sorted(kinds))}."
        )


def _find_runs(folder):
    """Yields each run of a folder with its structure and seed."""
    from bert_pruning.compression.structure import Structure
    from bert_pruning.training.run import parse_flags

    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    expected, first = None, None
    for directory in sorted(folder.iterdir()):
        if not all(
            (directory / name).exists()
            for name in ("DONE", "flags.cfg", "metrics.jsonl")
        ):
            continue
        flags_of = parse_flags((directory / "flags.cfg").read_text())
        seed = int(flags_of.get("seed", 0))
        others = {
            name: settings.whole_value(name, value)
            for name, value in flags_of.items()
            if name not in RESUMABLE_FLAGS | {"seed", "structure"}
        }
        if expected is None:
            expected, first = others, directory
        differing = [
            f"--{name}"
            for name in sorted(expected.keys() | others.keys())
            if expected.get(name) != others.get(name)
        ]
        if differing:
            raise UserError(
                f"{first} and {directory} differ in {', '.join(differing)}. "
                "Runs that are compared differ in --seed and --structure alone."
            )
        if len((directory / "metrics.jsonl").read_text().splitlines()) > 1:
            shared.LOG.warning(
                "%s is the best of several evaluations on the dev set. Train "
                "with --eval_steps=1000000 to compare the last step.",
                directory,
            )
        structure = None
        if "structure" in flags_of:
            path = str(directory / "structure.json")
            structure = Structure.load(path)
            if structure.about.get("kind") not in KINDS:
                raise UserError(
                    f"{path} does not say that it is a ticket. Draw it by "
                    "`tickets`."
                )
        yield directory, structure, seed


def _score(dev_sets, directory, structure, seed):
    import tf_keras as keras

    from bert_pruning.commands import inputs
    from bert_pruning.compression import costs
    from bert_pruning.data.metrics import compute_metrics
    from bert_pruning.delivery import phases
    from bert_pruning.training.evaluation import Evaluator

    checkpoint = inputs.load_checkpoint(str(directory))
    task = inputs.evaluation_task(checkpoint)
    keras.backend.clear_session()  # Of the run before.
    model = inputs.restore_classifier(checkpoint, task)
    # Tokenised once for all runs of a task.
    key = task.title, checkpoint.vocabulary
    if key not in dev_sets:
        tokenizer = inputs.find_tokenizer(checkpoint)
        dev_sets[key] = inputs.read_encoded(task, "dev", tokenizer)[1]
    dataset = dev_sets[key]
    logits = Evaluator(model).predict(dataset, FLAGS.eval_batch_size)
    values = []
    for rows in (slice(None), *phases.split_halves(len(dataset))):
        found = compute_metrics(task, dataset.labels[rows], logits[rows])
        values.append(round(float(found[task.primary_metric]), 6))
    kind, level, left = "full", "0/0", 100.0
    if structure is not None:
        kind, level = structure.about["kind"], structure.about["level"]
        whole = dataclasses.replace(
            checkpoint.config,
            num_heads=structure.num_heads,
            intermediate_sizes=structure.intermediate_sizes,
        )
        share = costs.parameters(checkpoint.config) / costs.parameters(whole)
        left = round(100 * share, 3)
    return phases.Row(
        *(task.title, kind, level, left, seed, task.primary_metric), *values
    )
