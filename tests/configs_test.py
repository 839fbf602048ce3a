"""Every flagfile can be read, and says how it is used."""

import importlib
import shlex
from pathlib import Path

import pytest
from absl import flags

ROOT = Path(__file__).parents[1]
FLAGFILES = sorted((ROOT / "configs").rglob("*.cfg"))

FLAGS = flags.FLAGS


@pytest.fixture
def define_flags():
    """Defines the flags of a command, and takes them back."""
    before = set(FLAGS)

    def define(command):
        importlib.import_module(
            f"bert_pruning.commands.{command}"
        ).define_flags()

    yield define
    for name in set(FLAGS) - before:
        delattr(FLAGS, name)


def named(path):
    return str(path.relative_to(ROOT))


def header(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    length = next(i for i, line in enumerate(lines) if line[:1] != "#")
    return [line[1:].strip() for line in lines[:length]]


def commands(path):
    """The commands in a flagfile's header, each as a list of arguments."""
    text = "\n".join(header(path)).replace("\\\n", " ")
    return [
        shlex.split(line)[3:]
        for line in text.splitlines()
        if line.startswith("python -m bert_pruning ")
    ]


def test_there_are_flagfiles_for_each_purpose():
    names = {named(path) for path in FLAGFILES}
    assert names >= {
        "configs/finetune.cfg",
        "configs/sparsebert/mrpc.cfg",
        "configs/sparsebert/qnli.cfg",
        "configs/minilm/prune.cfg",
        "configs/demo/run_all.cfg",
    }


@pytest.mark.parametrize("path", FLAGFILES, ids=named)
def test_a_flagfile_says_its_command_and_time(path):
    found = commands(path)
    assert any(f"--flagfile={named(path)}" in command for command in found)
    assert any(line.startswith("time:") for line in header(path))


@pytest.mark.parametrize("path", FLAGFILES, ids=named)
def test_a_flagfile_and_its_commands_have_flags_that_exist(
    path, define_flags, monkeypatch
):
    monkeypatch.chdir(ROOT)
    for command, *arguments in commands(path):
        define_flags(command)
        # Those of a task come with its data.
        arguments = [a for a in arguments if not a.endswith("/task.cfg")]
        assert FLAGS([command, *arguments])[1:] == []


@pytest.mark.parametrize("path", FLAGFILES, ids=named)
def test_a_flagfile_includes_no_other(path):
    # A relative path in it would only be found from one folder.
    assert "\n--flagfile" not in path.read_text(encoding="utf-8")


def read(name, define_flags):
    define_flags("train")
    FLAGS(["train", f"--flagfile={ROOT / 'configs' / name}"])
    return FLAGS


@pytest.mark.parametrize(
    ("name", "task", "epochs"),
    [("mrpc", "MRPC", 12), ("qnli", "QNLI", 5)],
)
def test_sparsebert_has_its_published_settings(
    name, task, epochs, define_flags
):
    found = read(f"sparsebert/{name}.cfg", define_flags)
    assert found.task_name == task
    assert found.num_train_epochs == epochs
    assert found.sparsity == 0.95
    assert found.learning_rate == 3e-5
    assert found.lr_schedule == "constant"
    assert found.optimizer == "bert_adam"
    assert found.train_batch_size == 32
    assert found.max_seq_length == 128
    assert found.eval_steps == 200
    assert found.distill == ["logits", "hidden", "attention"]


def test_finetuning_has_the_published_settings(define_flags):
    found = read("finetune.cfg", define_flags)
    assert found.optimizer == "bert_adam"
    assert found.lr_schedule == "official"
    assert found.num_train_epochs == 3.0
    assert found.warmup_proportion == 0.1
    assert found.weight_decay == 0.01
    assert found.clip_norm == 1.0
