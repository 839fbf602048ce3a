"""A chain of commands runs in order, skips what is done, and goes on."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny_runs
from folders import contents

from bert_pruning.commands.flags import paths_of
from bert_pruning.commands.recipe_file import read_recipe
from bert_pruning.errors import UserError
from bert_pruning.modeling.checkpoints import load_checkpoint

VALUES = {"task_name": "SST-2", "data_dir": "d", "init_checkpoint": None}

RECIPE = """
# Fine-tunes, scores, cuts, and trains what is left.
teacher: train --task_name={task_name} --data_dir={data_dir} \\
  --flagfile={here}/quick.cfg \\
  --init_checkpoint={init_checkpoint}
scores: score --init_checkpoint={teacher} --data_dir={data_dir} \\
  --max_seq_length=16 --method=magnitude

cut: shrink --init_checkpoint={teacher} --scores={scores} --keep_heads=1
small: train --task_name={task_name} --data_dir={data_dir} \\
  --flagfile={here}/quick.cfg \\
  --init_checkpoint={cut}/a1_l1_f32_e-1 --teacher_checkpoint={teacher} \\
  --distill=logits
"""


# === Reading ===


def read(tmp_path, text, **values):
    path = tmp_path / "a.recipe"
    path.write_text(text)
    return read_recipe(str(path), {**VALUES, **values}, pathlib.Path("out"))


def test_stages_are_read_with_their_placeholders(tmp_path):
    stages = read(
        tmp_path,
        "# comment\n"
        "a: train --x={init_checkpoint} --y='two words'\n\n"
        "b: score \\\n  --z={a} \\\n  --file={here}/b.cfg\n",
        init_checkpoint="bert",
    )
    assert [(s.title, s.name, s.directory) for s in stages] == [
        ("a", "train", pathlib.Path("out/a")),
        ("b", "score", pathlib.Path("out/b")),
    ]
    assert stages[0].arguments == ("--x=bert", "--y=two words")
    assert stages[1].arguments == ("--z=out/a", f"--file={tmp_path}/b.cfg")


def test_a_name_with_placeholders_is_a_stage_for_each_value(tmp_path):
    stages = read(
        tmp_path,
        "full_{seed}: train --seed={seed}\n"
        "t_{seed}: tickets --scores={full_{seed}} --levels={level}\n"
        "{level}-{seed}: train --structure={t_{seed}}/{level}.json --x={seed}\n"
        "last: score --a={full_2}",
        seed="1, 2",
        level="10,28_2",
    )
    assert [stage.title for stage in stages] == [
        *("full_1", "full_2", "t_1", "t_2"),
        *("10-1", "10-2", "28_2-1", "28_2-2", "last"),
    ]
    found = {stage.title: stage.arguments for stage in stages}
    assert found["full_2"] == ("--seed=2",)
    assert found["t_1"] == ("--scores=out/full_1", "--levels=10,28_2")
    assert found["28_2-1"] == ("--structure=out/t_1/28_2.json", "--x=1")
    assert found["last"] == ("--a=out/full_2",)
    dotted = read(tmp_path, "a_{x}: train\nb_{x}: score --y={a_{x}}", x="2.5")
    assert dotted[1].arguments == ("--y=out/a_2.5",)


def test_a_default_stands_for_what_is_not_given(tmp_path):
    text = (
        "seed = 1, 2\nrate = 5e-5\nplace = {here}/x\n"
        "a_{seed}: train --seed={seed} --learning_rate={rate} --x={place}"
    )
    found = read(tmp_path, text)
    assert [stage.title for stage in found] == ["a_1", "a_2"]
    expected = ("--learning_rate=5e-5", f"--x={tmp_path}/x")
    assert found[1].arguments == ("--seed=2", *expected)
    [found] = read(tmp_path, text, seed="3", rate="1e-4")
    assert found.title == "a_3"
    assert found.arguments[1] == "--learning_rate=1e-4"


def test_a_default_may_be_one_of_each_choice(tmp_path):
    text = "x_a = 1\nx_b = 2\nt_{name}: train --seed={x_{name}}"
    found = read(tmp_path, text, name="a,b", x_b="3")
    assert [s.arguments for s in found] == [("--seed=1",), ("--seed=3",)]


def test_a_default_may_stand_for_a_flag(tmp_path):
    text = "init_checkpoint = BERT\na: train --x={init_checkpoint}"
    [found] = read(tmp_path, text)
    assert found.arguments == ("--x=BERT",)
    [found] = read(tmp_path, text, init_checkpoint="other")
    assert found.arguments == ("--x=other",)


def test_a_value_that_nothing_asks_for_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--set=sed=.*stands for {sed}"):
        read(tmp_path, "seed = 1\na_{seed}: train", sed="2")


def test_a_value_may_be_asked_for_by_a_default_alone(tmp_path):
    text = "x = {base}/y\na: train --z={x}"
    [found] = read(tmp_path, text, base="b")
    assert found.arguments == ("--z=b/y",)


def test_a_stage_s_folder_is_that_of_its_name(tmp_path):
    with pytest.raises(UserError, match="Leave it out of a"):
        read(tmp_path, "a: train --output_dir=x")


def test_a_task_that_nothing_asks_for_is_refused(place, tmp_path):
    (tmp_path / "a.recipe").write_text(
        "# Not {task_name}\nscores: score --init_checkpoint={init_checkpoint}\n"
    )
    finished = run(
        *(place, f"--recipe={tmp_path}/a.recipe", f"--output_dir={tmp_path}/o")
    )
    assert finished.returncode == 2
    assert "Leave out --task_name=SST-2" in finished.stderr


def test_a_ticket_s_file_is_a_path_too(tmp_path):
    assert paths_of("tickets", "RTE:a/b.json,MRPC:c") == ["a/b.json", "c"]
    assert paths_of("tickets", ["RTE:a"]) == ["a"]
    assert paths_of("scores", "a") == ["a"]
    assert paths_of("data_dir", "tfds") == paths_of("x", None) == []
    assert paths_of("init_checkpoint", "preset:bert") == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r":1: {seed} stands for nothing. Give --set=seed=..."),
        ({"seed": ""}, r":1: {seed} names stages and needs words.*Received: "),
        ({"seed": "1,a/b"}, r"needs words.* Write a_b for a/b"),
        ({"seed": "1,1"}, "the name a_1 is taken"),
    ],
)
def test_values_that_cannot_name_stages_are_refused(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, "a_{seed}: train", **values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no stages"),
        ("# nothing\n", "has no stages"),
        ("train --x=1", r":1: expected NAME: COMMAND"),
        ("\na: tarin --x=1", r":2: a stage runs one of train.*'tarin'"),
        ("a:", r":1: a stage runs one of"),
        ("a: train\na: train", ":2: the name a is taken"),
        ("task_name: train", "the name task_name is taken"),
        ("a: train --x={b}\nb: train", r":1: {b} stands.*--set=b=...* before"),
        ("a: train --x={init_checkpoint}", "Give --init_checkpoint"),
        ("a: train --x='", r":1: No closing quotation"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        read_recipe("nowhere", {}, tmp_path)


# === Running ===


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny_runs.write_sst2(folder / "data")
    tiny_runs.write_checkpoint(folder / "init")
    (folder / "rosita.recipe").write_text(RECIPE)
    (folder / "quick.cfg").write_text("\n".join(tiny_runs.QUICK))
    return folder


def command(folder, *flags):
    return [
        *(sys.executable, "-m", "bert_pruning", "recipe"),
        *(f"--recipe={folder}/rosita.recipe", "--task_name=SST-2"),
        *(f"--data_dir={folder}/data", f"--init_checkpoint={folder}/init"),
        *flags,
    ]


def run(folder, *flags):
    return subprocess.run(
        command(folder, *flags), capture_output=True, text=True
    )


def test_a_chain_runs_and_is_not_run_twice(place, tmp_path):
    out = tmp_path / "out"
    # Killed in its first stage, it goes on.
    process = subprocess.Popen(
        command(place, f"--output_dir={out}"), stdout=subprocess.DEVNULL
    )
    while not (out / "teacher" / "flags.cfg").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 130
    finished = run(place, f"--output_dir={out}")
    assert finished.returncode == 0, finished.stderr
    assert "[4/4] small" in finished.stdout
    config = load_checkpoint(str(out / "small")).config
    assert config.num_heads == (1,)
    before = contents(out)
    again = run(place, f"--output_dir={out}")
    assert again.returncode == 0
    assert again.stdout.count("Done before.") == 4
    assert contents(out) == before
    # Other flags are another run.
    changed = RECIPE.replace("scores: score", "scores: score --seed=7")
    (tmp_path / "changed.recipe").write_text(
        changed.replace("{here}", str(place))
    )
    flags = (f"--output_dir={out}", f"--recipe={tmp_path}/changed.recipe")
    other = run(place, *flags)
    assert other.returncode == 2
    assert "Stage scores is finished" in other.stderr
    assert "--seed: 42 before, 7 now" in other.stderr
    assert contents(out) == before
    # What was made from a stage does not outlive it.
    shutil.rmtree(out / "teacher")
    stale = run(place, f"--output_dir={out}")
    assert stale.returncode == 2
    assert "from which it takes something, is to be run anew" in stale.stderr
    folders = ", ".join(f"{out}/{name}" for name in ("scores", "cut", "small"))
    assert f"Delete {folders} for new runs" in stale.stderr
    # Of what was only begun, too.
    (out / "small" / "DONE").unlink()
    (out / "small" / "checkpoint").mkdir()
    begun = run(place, f"--output_dir={out}")
    assert "Stage small was begun, but stage teacher, from whi" in begun.stderr
    assert f"Delete {folders} for new runs" in begun.stderr


def test_a_wrong_flag_anywhere_is_found_before_the_first_stage(place, tmp_path):
    text = RECIPE.replace("--keep_heads=1", "--keep_head=1")
    (tmp_path / "rosita.recipe").write_text(text.replace("{here}", str(place)))
    flags = (f"--recipe={tmp_path}/rosita.recipe", f"--output_dir={tmp_path}/o")
    finished = run(place, *flags)
    assert finished.returncode == 2
    assert "Stage cut: Unknown command line flag 'keep_head'" in finished.stderr
    assert not contents(tmp_path / "o")


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ("0_0,9", "The levels 0_0 and 9 are one, 0/0"),
        ("10,2_0", "The level 2_0 leaves 2 heads"),
        ("100", "the level 100 % is too much"),
    ],
)
def test_a_level_that_is_none_is_found_before_the_first_stage(
    place, tmp_path, levels, message
):
    (tmp_path / "a.recipe").write_text(
        "scores: score --method=random --init_checkpoint={init_checkpoint}\n"
        "tickets_{level}: tickets --init_checkpoint={init_checkpoint} "
        "--scores={scores} --levels={level}\n"
    )
    flags = (
        *(f"--set=level={levels}", f"--output_dir={tmp_path}/o"),
        "--task_name=",
    )
    finished = run(place, f"--recipe={tmp_path}/a.recipe", *flags)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert not contents(tmp_path / "o")


@pytest.mark.parametrize(
    ("kind", "last", "message"),
    [
        (
            "winning",
            "ticket: train --task_name=SST-2 --data_dir={data_dir} "
            "--init_checkpoint={init_checkpoint} "
            "--structure={tickets}/winning_1/0.json",
            "Stage ticket: there is no --structure=",
        ),
        (
            "random",
            "phases: phases --runs={runs} --data_dir={data_dir}",
            "Stage phases compares winning tickets with the whole model, but "
            "only random ones are drawn",
        ),
    ],
)
def test_a_ticket_that_is_not_drawn_is_missed_before_the_first_stage(
    place, tmp_path, kind, last, message
):
    (tmp_path / "a.recipe").write_text(
        "scores: score --method=random --init_checkpoint={init_checkpoint}\n"
        "tickets: tickets --init_checkpoint={init_checkpoint} "
        f"--scores={{scores}} --levels=1/0 --kinds={kind}\n{last}\n"
    )
    finished = run(
        *(place, f"--recipe={tmp_path}/a.recipe", "--task_name="),
        f"--output_dir={tmp_path}/o",
    )
    assert finished.returncode == 2
    assert message in finished.stderr
    assert not contents(tmp_path / "o")


def test_what_was_begun_otherwise_is_found_before_the_first_stage(
    place, tmp_path
):
    begun = tmp_path / "o" / "small"
    (begun / "checkpoint").mkdir(parents=True)
    (begun / "flags.cfg").write_text("--seed=7\n")
    before = contents(tmp_path / "o")
    finished = run(place, f"--output_dir={tmp_path}/o")
    assert finished.returncode == 2
    assert "Stage small was begun, but with other flags" in finished.stderr
    assert "--seed: 7 before, 42 now" in finished.stderr
    assert f"Delete {begun} for new runs" in finished.stderr
    assert contents(tmp_path / "o") == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task_name=RTE"], "Stage teacher: Missing file: expected"),
        (["--init_checkpoint=nowhere"], "teacher: there is no --init_check"),
        (["--data_dir=nowhere"], "teacher: there is no --data_dir="),
        (["--task_name=squad"], "squad"),
        (["--set=here"], "--set needs NAME=VALUE"),
        (["--set=here=x"], "--set cannot give {here}: it is the recipe's"),
        (["--set=data_dir=x"], "--set cannot give {data_dir}: --data_dir does"),
    ],
)
def test_a_missing_input_is_found_before_the_first_stage(
    place, tmp_path, flags, message
):
    finished = run(place, f"--output_dir={tmp_path}/o", *flags)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert not contents(tmp_path / "o")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        # Another shape than the stage makes.
        ("--keep_heads=1", "--keep_heads=2", "small: there is no --init_check"),
        # No folder of a stage, though it begins like one.
        ("scores={scores}", "scores={scores}2", "cut: there is no --scores="),
        # Of a stage that comes later.
        (
            "scores: score",
            "early: score --method=random --init_checkpoint=OUT/small\n"
            "scores: score",
            "early: there is no --init_check",
        ),
    ],
)
def test_what_no_stage_before_makes_is_found_before_the_first(
    place, tmp_path, before, after, message
):
    text = RECIPE.replace(before, after).replace("{here}", str(place))
    text = text.replace("OUT", f"{tmp_path}/o")
    (tmp_path / "rosita.recipe").write_text(text)
    flags = (f"--recipe={tmp_path}/rosita.recipe", f"--output_dir={tmp_path}/o")
    finished = run(place, *flags)
    assert finished.returncode == 2
    assert f"Stage {message}" in finished.stderr
    assert not contents(tmp_path / "o")


def test_a_cut_with_other_flags_is_not_taken_for_another(place, tmp_path):
    text = (
        "cut: shrink --init_checkpoint={init_checkpoint} --emb_hidden_dim=2 "
        "--max_seq_length={length}"
    )
    (tmp_path / "cut.recipe").write_text(text)
    flags = (f"--recipe={tmp_path}/cut.recipe", f"--output_dir={tmp_path}/o")
    command = (
        *("recipe", f"--init_checkpoint={place}/init", *flags),
        "--set=length=16",
    )
    status, _, err = tiny_runs.run_command(*command)
    assert status == 0, err
    status, out, err = tiny_runs.run_command(*command)
    assert status == 0 and "Done before." in out, err
    status, _, err = tiny_runs.run_command(*command[:-1], "--set=length=8")
    assert status == 2
    assert "--max_seq_length: 16 before, 8 now" in err


def test_values_may_hold_spaces_and_quotes(tmp_path):
    stages = read(tmp_path, "a: train --data_dir={data_dir}", data_dir="a 'b c")
    assert stages[0].arguments == ("--data_dir=a 'b c",)


def test_a_missing_flagfile_says_what_is_there(place, tmp_path):
    (place / "other.cfg").write_text("")
    text = RECIPE.replace("quick.cfg", "slow.cfg")
    (place / "slow.recipe").write_text(text)
    flags = (f"--recipe={place}/slow.recipe", f"--output_dir={tmp_path}/o")
    finished = run(place, *flags)
    assert finished.returncode == 2
    assert "no flagfile" in finished.stderr
    assert "Beside it: other.cfg, quick.cfg." in finished.stderr


def test_a_failing_stage_ends_the_chain(place, tmp_path):
    (tmp_path / "SST-2").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "SST-2" / name).write_text("sentence\tlabel\n")
    flags = (f"--data_dir={tmp_path}", f"--output_dir={tmp_path}/o")
    finished = run(place, *flags)
    assert finished.returncode == 1
    assert "[1/4] teacher" in finished.stdout
    assert "Failed after" in finished.stdout
    assert f"Log: {tmp_path}/o/teacher.log" in finished.stdout
    assert "[2/4]" not in finished.stdout
