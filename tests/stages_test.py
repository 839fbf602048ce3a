"""A stage is a process: its output, its errors and how it is stopped."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from bert_pruning.commands.stages import Stage


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Makes a stage that runs a script instead of `train`."""

    def make(script):
        path = tmp_path / "train.py"
        path.write_text(script)
        monkeypatch.setattr(
            Stage,
            "command",
            property(lambda self: [sys.executable, "-u", str(path)]),
        )
        return Stage("a stage", tmp_path / "runs" / "mrpc", ())

    return make


def test_the_command_trains_into_the_run_directory():
    stage = Stage("", Path("runs/mrpc"), ("--task_name=MRPC",))
    assert stage.command[1:] == [
        *("-m", "bert_pruning", "train"),
        *("--task_name=MRPC", "--output_dir=runs/mrpc"),
    ]


def test_output_is_passed_on_and_logged_beside_the_run(stage, capsys):
    made = stage("import sys; print('out ü'); print('err', file=sys.stderr)")
    assert made.run() == ""
    assert capsys.readouterr().out == "out ü\nerr\n"
    log = made.directory.parent / "mrpc.log"
    assert log.read_text(encoding="utf-8").splitlines()[1:] == ["out ü", "err"]
    assert not made.directory.exists()


def test_a_log_keeps_only_the_last_state_of_a_progress_bar(stage, capsys):
    made = stage(r"print('10 %\r50 %\r100 %\ndone', end='')")
    made.run()
    assert "50 %" in capsys.readouterr().out
    assert made.log.read_text().splitlines()[1:] == ["100 %", "done"]


def test_the_error_of_a_failed_stage_is_its_last_message(stage):
    made = stage("print('Error: no such folder'); print('bye'); exit(2)")
    assert made.run() == "no such folder"


def test_the_error_of_a_crash_is_the_last_line_of_its_traceback(stage):
    made = stage("print('Error: of an earlier run'); exit(2)")
    made.run()
    made = stage("raise ValueError('broken')")
    assert made.run() == "ValueError: broken"
    assert "of an earlier run" in made.log.read_text()


def test_a_killed_stage_says_by_what(stage):
    made = stage("import os; os.kill(os.getpid(), 9)")
    assert made.run() == "ended by SIGKILL"


def test_ctrl_c_lets_the_stage_save_its_state(stage, tmp_path):
    saved = tmp_path / "saved"
    made = stage(
        "import pathlib, time\n"
        "try:\n"
        "    print('training')\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    print('saving')\n"
        f"    pathlib.Path({str(saved)!r}).touch()\n"
    )

    def interrupt():
        while not made.log.exists() or "training" not in made.log.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        made.run()
    thread.join()
    assert saved.exists()
    assert made.log.read_text().endswith("saving\n")
