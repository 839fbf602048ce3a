r"""Compares trained tickets with the whole model, by what they leave.

    python -m bert_pruning phases --runs=runs/phases/MRPC \
        --data_dir=glue --output_dir=phases

Every finished run of `train` in the folders of --runs is scored: those with a
--structure are tickets, the others the whole model. Writes `phases.csv`,
`phases.md` and `phases.png`, and says which winning ticket is the super
ticket: chosen on one half of the dev set, reported on the other.
"""

import os
from pathlib import Path

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.errors import UserError

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


def main():
    """Compares by the flags; returns the exit status."""
    check_flags()

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
    rows = [
        _score(dev_sets, directory, *about)
        for directory, *about in progress_bar(
            found, total=len(found), desc="scoring", unit="run"
        )
    ]
    rows.sort(key=lambda row: (row.task, row.kind, -row.percent_left, row.seed))
    choices = phases.choose(rows)
    table = phases.to_markdown(rows)
    run.begin()
    run.write_text("phases.csv", phases.to_csv(rows))
    run.write_text("phases.md", table)
    with run.writing():
        phases.draw(rows, run.path("phases.png"))
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


def _find_runs(folder):
    """Yields each run with its kind, level, share left and seed."""
    from bert_pruning.modeling.files import read_json
    from bert_pruning.training.run import parse_flags

    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    for directory in sorted(folder.iterdir()):
        if not all(
            (directory / name).exists()
            for name in ("DONE", "flags.cfg", "eval_results.txt")
        ):
            continue
        settings = parse_flags((directory / "flags.cfg").read_text())
        seed = int(settings.get("seed", 0))
        path = settings.get("structure")
        if not path:
            yield directory, "full", "0/0", 100.0, seed
            continue
        index = os.path.join(os.path.dirname(path), "tickets.json")
        entries = read_json(index).get("tickets", [])
        entry = next(
            (e for e in entries if e["file"] == os.path.basename(path)), None
        )
        if entry is None:
            raise UserError(
                f"{directory} was trained on {path}, which is not one of the "
                f"tickets in {index}."
            )
        level = f"{entry['heads_out']}/{entry['blocks_out']}"
        yield directory, entry["kind"], level, entry["percent_left"], seed


def _score(dev_sets, directory, kind, level, percent_left, seed):
    from bert_pruning.commands import inputs
    from bert_pruning.data.metrics import compute_metrics
    from bert_pruning.delivery import phases
    from bert_pruning.training.evaluation import Evaluator

    checkpoint = inputs.load_checkpoint(str(directory))
    task = inputs.evaluation_task(checkpoint)
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
    return phases.Row(
        *(task.title, kind, level, percent_left, seed, task.primary_metric),
        *values,
    )
