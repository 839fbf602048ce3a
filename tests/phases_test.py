"""Tickets are compared by what they leave, and chosen on other rows."""

import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
import tiny_runs

from bert_pruning.commands import phases as command
from bert_pruning.commands import settings
from bert_pruning.commands.recipe_file import read_recipe
from bert_pruning.compression.structure import Structure
from bert_pruning.delivery import phases
from bert_pruning.delivery.phases import Row
from bert_pruning.errors import UserError
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.training.run import read_results


def row(kind, level, left, seed, dev, selection=0.0, reported=0.0, task="RTE"):
    metric = "eval_accuracy"
    values = dev, selection, reported
    return Row(task, kind, level, left, seed, metric, *values, "alike")


ROWS = [
    row("full", "0/0", 100.0, 1, 0.60, 0.61, 0.59),
    row("full", "0/0", 100.0, 2, 0.64, 0.63, 0.65),
    row("winning", "14/1", 93.2, 1, 0.66, 0.70, 0.62),
    row("winning", "14/1", 93.2, 2, 0.66, 0.66, 0.66),
    row("winning", "28/2", 86.4, 1, 0.70, 0.60, 0.80),
    row("random", "14/1", 93.2, 1, 0.61),
    row("losing", "14/1", 93.2, 1, 0.50),
]


def test_the_super_ticket_is_chosen_on_one_half_and_reported_on_the_other():
    [choice] = phases.choose(ROWS)
    # Not 28/2, which is better on the whole dev set and on the other half.
    assert (choice.task, choice.level) == ("RTE", "14/1")
    assert choice.percent_left == pytest.approx(93.2)
    assert choice.reported == pytest.approx(0.64)
    assert choice.full == pytest.approx(0.62)
    with pytest.raises(
        UserError, match="whole model: 0; of winning tickets: 3"
    ):
        phases.choose(ROWS[2:5])


def test_halves_are_all_rows_once_and_always_the_same():
    first, second = phases.split_halves(11)
    assert sorted([*first, *second]) == list(range(11))
    assert (len(first), len(second)) == (5, 6)
    np.testing.assert_array_equal(first, phases.split_halves(11)[0])
    assert list(first) != list(range(5))


def test_rows_become_a_file_of_one_line_each():
    lines = list(csv.DictReader(io.StringIO(phases.to_csv(ROWS))))
    assert len(lines) == len(ROWS)
    assert lines[2]["kind"] == "winning"
    assert float(lines[2]["percent_left"]) == 93.2
    assert lines[2]["level"] == "14/1"


def test_the_table_has_means_and_deviations():
    text = phases.to_markdown([*ROWS, row("full", "", 100, 1, 1, task="CoLA")])
    assert "RTE, eval_accuracy; the whole model 0.6200 ± 0.0283" in text
    assert "| 14/1 | 93.2 | 0.6600 ± 0.0000 | 0.6100 | 0.5000 |" in text
    assert "| 28/2 | 86.4 | 0.7000 | – | – |" in text
    assert "CoLA, eval_accuracy" in text


def test_a_picture_is_drawn(tmp_path):
    phases.draw(
        [*ROWS, row("full", "", 100, 1, 1, task="CoLA")], tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# === As typed ===

SST2 = {"name": "SST-2", "labels": ["0", "1"]}
SHAPE = {"num_layers": 2, "num_heads": 4}
RECIPE = """
full_{seed}: train --flagfile={here}/quick.cfg --seed={seed}
scores_{seed}: score --init_checkpoint={full_{seed}} --data_dir={data_dir} \\
  --task_name=SST-2 --max_seq_length=16 --method=sensitivity
tickets_{level}_{seed}: tickets --init_checkpoint={full_{seed}} \\
  --scores={scores_{seed}} --levels={level} --kinds={kind} --seeds={seed}
{kind}_{level}_{seed}: train --flagfile={here}/quick.cfg --seed={seed} \\
  --structure={tickets_{level}_{seed}}/{kind}_{level}.json
phases: phases --runs={runs} --data_dir={data_dir}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, eagerly):
    """A folder with the runs of a recipe."""
    folder = tmp_path_factory.mktemp("place")
    tiny_runs.write_sst2(folder / "data")
    tiny_runs.write_checkpoint(folder / "init", seed=1, **SHAPE)
    (folder / "a.recipe").write_text(RECIPE)
    quick = [
        *("--task_name=SST-2", f"--data_dir={folder}/data"),
        *(f"--init_checkpoint={folder}/init", *tiny_runs.QUICK),
    ]
    (folder / "quick.cfg").write_text("\n".join(quick) + "\n")
    values = {"seed": "1", "kind": "winning,losing", "level": "60"}
    # In this process, which has TensorFlow.
    for stage in read_recipe(
        str(folder / "a.recipe"),
        {**values, "data_dir": str(folder / "data")},
        folder / "runs",
    ):
        status, out, err = tiny_runs.run_command(
            *(stage.name, *stage.arguments),
            f"--output_dir={stage.directory}",
        )
        assert status == 0, out + err
    assert "SST-2: the super ticket leaves 4/1 out" in out
    return folder


def compare(folder, output_dir, *flags):
    return tiny_runs.run_command(
        *("phases", f"--runs={folder}/runs", f"--data_dir={folder}/data"),
        *(f"--output_dir={output_dir}", *flags),
    )


def test_the_runs_of_a_recipe_are_compared(place, tmp_path):
    status, out, err = compare(place, tmp_path / "phases")
    assert status == 0, err
    text = (tmp_path / "phases" / "phases.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(r["kind"], r["level"]) for r in rows] == [
        *(("full", "0/0"), ("losing", "4/1"), ("winning", "4/1")),
    ]
    for each in rows:
        name = "full_1" if each["kind"] == "full" else f"{each['kind']}_60_1"
        results = read_results(place / "runs" / name / "eval_results.txt")
        dev = float(each["dev"])
        assert dev == pytest.approx(results["eval_accuracy"], abs=1e-6)
        halves = float(each["selection"]), float(each["reported"])
        assert np.mean(halves) == pytest.approx(dev, abs=1e-5)
    part = load_checkpoint(str(place / "runs" / "winning_60_1"))
    ticket = Structure.load(place / "runs" / "winning_60_1" / "structure.json")
    assert (
        part.config.num_heads
        == ticket.shrink(load_checkpoint(str(place / "init")).config).num_heads
    )
    assert "SST-2: the super ticket leaves 4/1 out" in out
    assert (tmp_path / "phases" / "phases.png").exists()
    assert (tmp_path / "phases" / "phases.md").read_text() in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runs="], "Missing: --runs"),
        (["--runs=nowhere"], "There is no folder nowhere"),
        (["--runs=P/data"], "no finished runs of train"),
        (["--runs=P/runs,"], "--runs has an empty item. Received: 'P/runs,'"),
        (["--runs=P/runs/full_1"], "full_1 is a run. Give the folder it is in"),
        (["--data_dir=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_compared_is_refused(place, tmp_path, flags, message):
    flags = [flag.replace("P/", f"{place}/") for flag in flags]
    status, _, err = compare(place, tmp_path / "x", *flags)
    assert status == 2
    assert message.replace("P/", f"{place}/") in err
    assert not list(tmp_path.glob("x/*"))


def test_runs_that_differ_in_more_are_not_compared(place, tmp_path):
    shutil.copytree(place / "runs", tmp_path / "runs")
    path = tmp_path / "runs" / "losing_60_1" / "flags.cfg"
    before = path.read_text()
    path.write_text(before.replace("--train_batch_size=4", "--clip_norm=2"))
    flags = [f"--runs={tmp_path}/runs"]
    status, _, err = compare(place, tmp_path / "x", *flags)
    assert status == 2
    assert "differ in --clip_norm, --train_batch_size" in err
    path.write_text(before)
    path = tmp_path / "runs" / "winning_60_1" / "structure.json"
    values = json.loads(path.read_text())
    del values["about"]
    path.write_text(json.dumps(values))
    status, _, err = compare(place, tmp_path / "x", *flags)
    assert status == 2
    assert "does not say that it is a winning, losing or random" in err
    shutil.rmtree(tmp_path / "runs" / "winning_60_1")
    status, _, err = compare(place, tmp_path / "x", *flags)
    assert status == 2
    assert (
        "Of SST-2 there are runs of the whole model: 1; of winning tickets: 0"
        in err
    )
    assert not (tmp_path / "x" / "DONE").exists()
    status, _, err = compare(place, tmp_path / "runs", *flags, "--overwrite")
    assert status == 2
    assert "would be written over" in err
    status, _, err = compare(place, place / "runs" / "full_1", "--overwrite")
    assert status == 2
    assert "holds a model" in err


def test_other_settings_of_a_task_are_not_taken_for_more_seeds(place, tmp_path):
    shutil.copytree(place / "runs", tmp_path / "runs")
    both = f"--runs={place}/runs,{tmp_path}/runs"
    status, _, err = compare(place, tmp_path / "x", both)
    assert status == 2
    assert "SST-2 has the full model of level 0/0 and seed 1 twice" in err
    for name in ("full_1", "winning_60_1", "losing_60_1"):
        change(tmp_path / "runs" / name, seed=2)
    change(tmp_path / "runs" / "full_1", train_fraction=0.5)
    status, _, err = compare(place, tmp_path / "x", both)
    assert status == 2
    assert "differ in --train_fraction" in err


def test_runs_that_begin_at_a_run_of_their_seed_are_compared(
    place, tmp_path, monkeypatch
):
    # Which runs are compared and by what settings; others test their scores.
    monkeypatch.setattr(
        command,
        "_score",
        lambda _, run: dataclasses.replace(
            row(run.kind, run.level, 50.0, run.seed, 0.5, task=run.task),
            settings=run.settings,
        ),
    )
    folders = [tmp_path / "1", tmp_path / "2"]
    for seed, folder in enumerate(folders, start=1):
        shutil.copytree(place / "runs", folder)
        shutil.copytree(folder / "full_1", folder / "start")
        for name in ("full_1", "winning_60_1", "losing_60_1", "start"):
            begin = place / "init" if name == "start" else folder / "start"
            change(folder / name, seed=seed, init_checkpoint=begin)
    flags = [f"--runs={folders[0]},{folders[1]}"]
    status, out, err = compare(place, tmp_path / "x", *flags)
    assert status == 0, err
    for folder in folders:
        assert f"Not compared, others begin at it: {folder}/start\n" in out
    rows = phases.read_csv(str(tmp_path / "x" / "phases.csv"))
    assert [(row.kind, row.seed) for row in rows] == [
        (kind, seed)
        for kind in ("full", "losing", "winning")
        for seed in (1, 2)
    ]
    # Wherever the starts lie, and when all has been moved.
    for number, folder in enumerate(folders):
        shutil.move(folder / "start", tmp_path / f"start_{number}")
    status, _, err = compare(place, tmp_path / "y", *flags)
    assert status == 2
    assert "differ in --init_checkpoint. Runs that are compared" in err
    assert f"begins at {folders[0]}/start, which is not there, and" in err
    moved = [tmp_path / "moved_1", tmp_path / "moved_2"]
    for number, folder in enumerate(folders):
        for name in ("full_1", "winning_60_1", "losing_60_1"):
            start = tmp_path / f"start_{number}"
            change(folder / name, init_checkpoint=start)
    assert find_rows(place, tmp_path / "out_1", folders) == rows
    # A copy beside them, while the first ones are there too.
    for number, folder in enumerate(folders):
        copy = folder / f"start_{number}"
        shutil.copytree(tmp_path / f"start_{number}", copy)
    assert find_rows(place, tmp_path / "out_4", folders) == rows
    for number, folder in enumerate(folders):
        shutil.rmtree(folder / f"start_{number}")
    for number, (folder, to) in enumerate(zip(folders, moved, strict=True)):
        shutil.move(folder, to)
        shutil.move(tmp_path / f"start_{number}", to / f"start_{number}")
    assert find_rows(place, tmp_path / "out_2", moved) == rows
    # Trained otherwise, of another seed, unfinished.
    flags = [f"--runs={moved[0]},{moved[1]}"]
    start = moved[1] / "start_1"
    change(start, train_fraction=0.5)
    status, _, err = compare(place, tmp_path / "y", *flags)
    assert status == 2
    assert "differ in --train_fraction of the start. Runs that" in err
    change(start, train_fraction=1.0, seed=1)
    status, _, err = compare(place, tmp_path / "y", *flags)
    assert status == 2
    assert "differ in --init_checkpoint. Runs that are compared" in err
    change(start, seed=2)
    (start / "DONE").unlink()
    status, _, err = compare(place, tmp_path / "y", *flags)
    assert status == 2
    assert "differ in --init_checkpoint. Runs that are compared" in err
    # All may begin at one run.
    (start / "DONE").touch()
    for folder in moved:
        for name in ("full_1", "winning_60_1", "losing_60_1"):
            change(folder / name, init_checkpoint=start)
    shutil.move(moved[0] / "start_0", tmp_path / "start_0")
    found = find_rows(place, tmp_path / "out_3", moved)
    assert [row.seed for row in found] == [row.seed for row in rows]
    assert len({row.settings for row in found}) == 1


def find_rows(place, output_dir, folders):
    runs = ",".join(map(str, folders))
    status, _, err = compare(place, output_dir, f"--runs={runs}")
    assert status == 0, err
    return phases.read_csv(str(output_dir / "phases.csv"))


def change(run, **flags):
    """Writes other values of flags into a run's flagfile."""
    lines = (run / "flags.cfg").read_text().splitlines()
    kept = [
        line for line in lines if line.split("=")[0].lstrip("-") not in flags
    ]
    kept += [f"--{name}={value}" for name, value in flags.items()]
    (run / "flags.cfg").write_text("\n".join(kept) + "\n")


def test_tables_are_joined_and_drawn_again(place, tmp_path):
    table = place / "runs" / "phases" / "phases.csv"
    other = [dataclasses.replace(each, task="RTE") for each in ROWS]
    (tmp_path / "rte.csv").write_text(phases.to_csv(other))
    status, out, err = tiny_runs.run_command(
        *("phases", f"--tables={table},{tmp_path}/rte.csv"),
        f"--output_dir={tmp_path}/both",
    )
    assert status == 0, err
    rows = phases.read_csv(tmp_path / "both" / "phases.csv")
    assert len(rows) == len(ROWS) + 3
    assert {*rows} == {*other, *phases.read_csv(table)}
    assert "RTE: the super ticket leaves 14/1 out" in out
    unlike = [dataclasses.replace(each, settings="other") for each in other]
    (tmp_path / "unlike.csv").write_text(phases.to_csv(unlike))
    (tmp_path / "bad.csv").write_text("task,kind\nRTE,full\n")
    for flag, message in (
        (f"--tables={table},{table}", "seed 1 twice"),
        (
            f"--tables={tmp_path}/rte.csv,{tmp_path}/unlike.csv",
            "The runs of RTE in the tables were not trained alike",
        ),
        (f"--tables={tmp_path}/bad.csv", "its columns are ['task', 'kind']"),
        ("--tables=nowhere.csv", "Cannot read nowhere.csv"),
        (f"--tables={tmp_path}/both/phases.csv", "would be written over"),
    ):
        status, _, err = tiny_runs.run_command(
            *("phases", flag, f"--output_dir={tmp_path}/both", "--overwrite")
        )
        assert status == 2
        assert message in err
        assert (tmp_path / "both" / "DONE").exists()


def test_several_draws_of_a_random_ticket_are_averaged():
    again = row("random", "14/1", 93.2, 1, 0.63)
    text = phases.to_markdown([*ROWS, again])
    assert phases.find_levels([*ROWS, again]) == {"RTE": ["14/1"]}
    assert "| 14/1 | 93.2 | 0.6600 ± 0.0000 | 0.6200 ± 0.0141 |" in text
    with pytest.raises(UserError, match="losing model of level 14/1 .* twice"):
        phases.find_levels([*ROWS, ROWS[-1]])


def test_folders_are_the_same_however_they_are_spelt(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    whole = f"{tmp_path}/a,{tmp_path}/b"
    for name in ("runs", "tables", "union"):
        assert settings.whole_value(name, "a,./b") == whole
        assert settings.whole_value(name, "") == ""


def test_a_picture_does_not_outlive_what_it_shows(place):
    status, _, err = tiny_runs.run_command(
        *("recipe", f"--recipe={place}/a.recipe", "--set=seed=1"),
        *("--set=kind=winning,losing", "--set=level=60,20"),
        *(f"--data_dir={place}/data", f"--output_dir={place}/runs"),
    )
    assert status == 2
    assert "Stage phases is finished, but stage tickets_20_1" in err


def test_runs_of_several_evaluations_and_of_several_tasks(place, tmp_path):
    shutil.copytree(place / "runs", tmp_path / "runs")
    flags = [f"--runs={tmp_path}/runs"]
    status, _, err = compare(place, tmp_path / "x", *flags)
    assert status == 0
    assert "is the best of several evaluations" in err
    for path in tmp_path.glob("runs/*/flags.cfg"):
        path.write_text(path.read_text().replace("keep=best", "keep=last"))
    status, _, err = compare(place, tmp_path / "x", *flags, "--overwrite")
    assert status == 0
    assert "is the best of several evaluations" not in err
    path = tmp_path / "runs" / "full_1" / "config.json"
    values = json.loads(path.read_text())
    values["bert_pruning"]["task"] = None
    path.write_text(json.dumps(values))
    status, _, err = compare(place, tmp_path / "y", *flags)
    assert status == 2
    assert "full_1 is no run of one task" in err


def test_a_level_without_all_seeds_is_not_chosen():
    levels = phases.find_levels(ROWS)
    assert levels == {"RTE": ["14/1"]}
    assert phases.find_incomplete(ROWS, levels) == [("RTE", "28/2")]
    rows = [row for row in ROWS if (row.level, row.seed) != ("14/1", 2)]
    with pytest.raises(UserError, match="No level of RTE.* seeds .* 1, 2"):
        phases.choose(rows)
