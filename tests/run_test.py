"""A run directory is whole, or resumable, or as it was before."""

import errno
import json
import os
import pathlib
import re
import shutil

import pytest
from folders import contents

from bert_pruning.errors import UserError
from bert_pruning.training import run as runs
from bert_pruning.training.run import Run

FLAGS = "--learning_rate=5e-5\n--task_name=MRPC\n"


def save_model(text):
    """A stand-in for saving a checkpoint."""

    def save(directory):
        for name in ("config.json", "model.safetensors"):
            with open(os.path.join(directory, name), "w") as file:
                file.write(text)

    return save


def finished_run(directory):
    run = Run(directory, FLAGS)
    run.begin()
    run.save_best(save_model("best"))
    run.write_metrics([{"step": 1}])
    run.finish({"eval_loss": 0.5})
    return run


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_new_run_holds_its_flags(tmp_path):
    run = Run(tmp_path / "a" / "b", FLAGS)
    assert not run.is_resumed
    run.begin()
    assert contents(tmp_path / "a" / "b") == {"flags.cfg": FLAGS.encode()}


def test_a_finished_run_is_a_checkpoint_with_its_results(tmp_path):
    finished_run(tmp_path)
    assert contents(tmp_path) == {
        "DONE": b"",
        "config.json": b"best",
        "model.safetensors": b"best",
        "eval_results.txt": b"eval_loss = 0.5\n",
        "flags.cfg": FLAGS.encode(),
        "metrics.jsonl": b'{"step": 1}\n',
    }


def test_a_finished_run_is_refused(tmp_path):
    finished_run(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} .*--overwrite"):
        Run(tmp_path, FLAGS)


def test_overwriting_begins_only_with_begin(tmp_path):
    finished_run(tmp_path)
    before = contents(tmp_path)
    run = Run(tmp_path, "--seed=1\n", overwrite=True)
    assert contents(tmp_path) == before
    assert not run.is_resumed
    run.begin()
    after = contents(tmp_path)
    assert after["flags.cfg"] == b"--seed=1\n"
    # Nor may the old model pass for that of the new flags.
    assert set(after) == {"flags.cfg"}


@pytest.mark.parametrize("calls", range(1, 14))
def test_a_kill_while_overwriting_leaves_a_fresh_start(
    tmp_path, monkeypatch, calls
):
    class Killed(BaseException):
        pass

    def kill_at(owner, name):
        action = getattr(owner, name)

        def killing(*args, **kwargs):
            nonlocal calls
            calls -= 1
            if not calls:
                raise Killed
            return action(*args, **kwargs)

        monkeypatch.setattr(owner, name, killing)

    run = Run(tmp_path, FLAGS)
    run.begin()
    run.save_best(save_model("old"))
    run.write_metrics([{"step": 1}])
    for name in ("config.json", "model.safetensors"):
        run.write_text(name, "old")
    for owner, name in (
        *((pathlib.Path, "unlink"), (shutil, "rmtree"), (os, "replace")),
    ):
        kill_at(owner, name)
    with pytest.raises(Killed):
        Run(tmp_path, FLAGS, overwrite=True).begin()
    monkeypatch.undo()
    if (tmp_path / "checkpoint").exists():
        # Nothing but DONE is gone: the old run could still be resumed.
        assert (tmp_path / "checkpoint/best/config.json").read_text() == "old"
        return
    again = Run(tmp_path, FLAGS)
    assert not again.is_resumed
    again.begin()
    assert set(contents(tmp_path)) == {"flags.cfg"}


def test_a_checkpoint_that_is_no_run_is_not_replaced(tmp_path):
    (tmp_path / "config.json").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"{tmp_path} .* no run"):
            Run(tmp_path, FLAGS, overwrite=overwrite)


def test_an_unfinished_run_is_resumed_by_the_same_flags(tmp_path):
    run = Run(tmp_path, FLAGS)
    run.begin()
    run.save_best(save_model("best"))
    resumed = Run(tmp_path, FLAGS)
    assert resumed.is_resumed
    resumed.begin()
    assert "checkpoint/best/config.json" in contents(tmp_path)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (
            FLAGS.replace("5e-5", "1e-5"),
            "--learning_rate: begun with 5e-5, now 1e-5",
        ),
        ("--task_name=MRPC\n", "--learning_rate: begun with 5e-5, now not set"),
        (FLAGS + "--nojit_compile\n", "--jit_compile: .* not set, now false"),
        (FLAGS + "--distill=\n", "--distill: begun with not set, now $"),
    ],
)
def test_other_flags_do_not_resume_and_are_named(tmp_path, now, message):
    run = Run(tmp_path, FLAGS)
    run.begin()
    run.save_best(save_model("best"))
    before = contents(tmp_path)
    with pytest.raises(UserError) as error:
        Run(tmp_path, now)
    reason = str(error.value).split("(")[1].split(")")[0]
    assert re.search(message, reason)
    assert "--overwrite" in str(error.value)
    assert contents(tmp_path) == before
    assert not Run(tmp_path, now, overwrite=True).is_resumed


def test_flags_that_change_no_weight_may_differ(tmp_path):
    run = Run(tmp_path, FLAGS + "--save_steps=5\n--output_dir=elsewhere\n")
    run.begin()
    run.save_best(save_model("best"))
    other = FLAGS + "--save_steps=7\n--cache_dir=c\n--output_dir=here\n"
    assert Run(tmp_path, other).is_resumed


def test_a_file_is_no_directory(tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(UserError, match=f"{path}, which is a file"):
        Run(path, FLAGS, overwrite=True)
    with pytest.raises(UserError, match=f"Cannot write to {path}/below"):
        Run(path / "below", FLAGS)
    assert path.read_text() == "precious"


def test_a_read_only_directory_is_refused_at_once(tmp_path, read_only):
    with pytest.raises(UserError, match=f"{tmp_path}: Permission denied"):
        Run(tmp_path, FLAGS)


def test_a_full_disk_leaves_the_former_file(tmp_path, monkeypatch):
    run = Run(tmp_path, FLAGS)
    run.begin()
    run.write_results({"eval_loss": 1.0})
    monkeypatch.setattr(runs.os, "fsync", no_space)
    with pytest.raises(UserError, match=f"{tmp_path}: No space left"):
        run.write_results({"eval_loss": 0.5})
    assert runs.read_results(tmp_path / "eval_results.txt") == {
        "eval_loss": 1.0
    }


def test_a_full_disk_leaves_the_former_best_model(tmp_path):
    run = Run(tmp_path, FLAGS)
    run.begin()
    run.save_best(save_model("first"))

    def half(directory):
        save_model("second")(directory)
        no_space()

    with pytest.raises(UserError, match="No space left"):
        run.save_best(half)
    best = tmp_path / "checkpoint" / "best"
    assert set(contents(best).values()) == {b"first"}
    run.save_best(save_model("third"))
    assert set(contents(best).values()) == {b"third"}
    assert [path.name for path in best.parent.iterdir()] == ["best"]


@pytest.mark.parametrize("fails", ["copyfile", "fsync"])
def test_a_run_is_not_done_before_all_is_in_place(tmp_path, monkeypatch, fails):
    run = Run(tmp_path, FLAGS)
    run.begin()
    run.save_best(save_model("best"))
    module = runs.shutil if fails == "copyfile" else runs.os
    with monkeypatch.context() as patch:
        patch.setattr(module, fails, no_space)
        with pytest.raises(UserError, match="No space left"):
            run.finish({"eval_loss": 0.5})
    assert not (tmp_path / "DONE").exists()
    resumed = Run(tmp_path, FLAGS)
    assert resumed.is_resumed
    resumed.finish({"eval_loss": 0.5})
    assert contents(tmp_path)["model.safetensors"] == b"best"


def test_metrics_are_one_json_object_per_evaluation(tmp_path):
    run = Run(tmp_path, FLAGS)
    records = [{"step": 1, "eval_f1": 0.5}, {"step": 2, "eval_f1": 1 / 3}]
    run.write_metrics(records)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records


def test_results_are_sorted_and_read_back_exactly(tmp_path):
    run = Run(tmp_path, FLAGS)
    results = {"loss": 1e-30, "eval_f1": 1 / 3, "global_step": 7}
    run.write_results(results)
    text = (tmp_path / "eval_results.txt").read_text()
    assert text.splitlines() == [
        *("eval_f1 = 0.3333333333333333", "global_step = 7", "loss = 1e-30")
    ]
    assert runs.read_results(tmp_path / "eval_results.txt") == results


def test_a_run_that_trains_nothing_is_done_before_its_rest_goes(
    tmp_path, monkeypatch
):
    run = Run(tmp_path, FLAGS)
    run.begin()
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.setattr(runs.shutil, "rmtree", no_space)
    with pytest.raises(UserError):
        run.complete()
    assert (tmp_path / "DONE").exists()
