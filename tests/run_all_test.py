"""A sweep: checked first, resumed, never stopped by one failure."""

import subprocess
import sys
from pathlib import Path

import pytest
from defined_flags import defined_flags
from tiny_bert import random_weights
from tiny_bert import tiny_config
from tiny_bert import vocabulary

from bert_pruning.commands import assembly
from bert_pruning.commands import preflight
from bert_pruning.commands import run_all
from bert_pruning.commands.stages import Stage
from bert_pruning.commands.sweep import PRUNE_FLAGS
from bert_pruning.commands.sweep import Sweep
from bert_pruning.commands.sweep import find_tasks
from bert_pruning.commands.sweep import resolve_task
from bert_pruning.data.tasks import TASKS
from bert_pruning.errors import UserError
from bert_pruning.modeling.checkpoints import save_huggingface

SHORT = ("--max_seq_length=8",)
PRUNE = "--pruning=magnitude\n--sparsity=0.5\n--distill=logits\n"

# Stands for `train`: better at lower learning rates, with seed 2 best, and
# unable to do RTE.
FAKE_TRAIN = """
import pathlib, sys
flags = {}
for argument in sys.argv[1:]:
    name, _, value = argument.removeprefix("--").partition("=")
    flags[name] = value
run = pathlib.Path(flags["output_dir"])
if flags.get("task_name") == "RTE" and "teacher_checkpoint" not in flags:
    print("Error: RTE is broken")
    sys.exit(2)
run.mkdir(parents=True, exist_ok=True)
value = 0.9 - 100 * float(flags.get("learning_rate", 0))
value += 0.001 * (flags["seed"] == "2")
results = {"loss": 1.0, "train_time": 60.0, "eval_loss": 0.3}
results["sparsity"] = 0.5 * ("teacher_checkpoint" in flags)
for name in ("eval_f1", "eval_accuracy", "eval_spearman", "eval_pearson"):
    results[name] = value
lines = [f"{k} = {v}\\n" for k, v in results.items()]
(run / "eval_results.txt").write_text("".join(lines))
(run / "flags.cfg").write_text("\\n".join(sys.argv[1:]) + "\\n")
(run / "DONE").touch()
with open(pathlib.Path(__file__).with_name("calls"), "a") as calls:
    print(*sys.argv[1:], file=calls)
"""


@pytest.fixture
def run_all_flags():
    """Defines the flags of `run_all`."""
    with defined_flags("run_all") as flags:
        yield flags


@pytest.fixture
def fake_train(tmp_path, monkeypatch):
    """Runs stages without training; returns the calls so far."""
    script = tmp_path / "fake_train.py"
    script.write_text(FAKE_TRAIN)

    def command(self):
        output = f"--output_dir={self.directory}"
        return [sys.executable, str(script), *self.arguments, output]

    monkeypatch.setattr(Stage, "command", property(command))

    def calls():
        path = tmp_path / "calls"
        return path.read_text().splitlines() if path.exists() else []

    return calls


@pytest.fixture
def prepared(tmp_path):
    """A sweep over MRPC and one's own data, with a tiny BERT."""
    checkpoint = tmp_path / "tiny"
    config = tiny_config()
    save_huggingface(
        str(checkpoint), config, random_weights(config), vocabulary(), True
    )
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = [f"{i % 2}\t{i}\t{i}\tword{i % 9}\tword{i % 7}" for i in range(12)]
    for split in ("train", "dev"):
        write(tmp_path / "data" / "MRPC" / f"{split}.tsv", [header, *rows])
        rows_of_mine = [f"word{i}\t{i}.5" for i in range(8)]
        path = tmp_path / "data" / "mine" / f"{split}.tsv"
        write(path, ["text\tscore", *rows_of_mine])
    own = ["--task_name=custom", "--text_a_column=text"]
    write(
        tmp_path / "data" / "mine" / "task.cfg",
        [*own, "--label_column=score"],
    )
    write(tmp_path / "finetune.cfg", ["--max_steps=2"])
    write(tmp_path / "prune.cfg", [*PRUNE.split(), "--max_steps=2"])
    return make_sweep(tmp_path)


def make_sweep(folder, **changes):
    values = {
        "data_dir": str(folder / "data"),
        "init_checkpoint": str(folder / "tiny"),
        "output_dir": folder / "out",
        "tasks": ("MRPC", "mine"),
        "learning_rates": ("5e-5", "2e-5"),
        "finetune_flagfile": str(folder / "finetune.cfg"),
        "prune_flagfile": str(folder / "prune.cfg"),
        "finetune_flags": ("--max_seq_length=8",),
        "prune_flags": ("--max_seq_length=8",),
    }
    return Sweep(**{**values, **changes})


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def run(sweep, overwrite=False):
    tasks = {"mine": TASKS["STS-B"], **TASKS}
    runner = run_all.Runner(sweep, tasks, overwrite)
    runner.run()
    return runner


def test_every_run_has_its_place(tmp_path, fake_train):
    run(make_sweep(tmp_path))
    done = sorted(
        str(path.parent.relative_to(tmp_path / "out"))
        for path in tmp_path.rglob("DONE")
    )
    assert done == [
        "fine_tune_outputs/MRPC/lr_2e-5",
        "fine_tune_outputs/MRPC/lr_5e-5",
        "fine_tune_outputs/mine/lr_2e-5",
        "fine_tune_outputs/mine/lr_5e-5",
        "prune_outputs/MRPC",
        "prune_outputs/mine",
    ]
    table = (tmp_path / "out/fine_tune_outputs/results.md").read_text()
    assert "| MRPC | fine-tuned, 2e-5 |" in table
    assert "| mine | pruned, distilled |" in table


def test_the_best_run_is_the_teacher(tmp_path, fake_train):
    run(make_sweep(tmp_path, tasks=("MRPC",)))
    best = tmp_path / "out/fine_tune_outputs/MRPC/lr_2e-5"
    assert f"--teacher_checkpoint={best}" in fake_train()[-1].split()
    assert f"--init_checkpoint={tmp_path / 'tiny'}" in fake_train()[-1]


def test_pruning_can_begin_from_the_teacher(tmp_path, fake_train):
    run(make_sweep(tmp_path, tasks=("MRPC",), prune_from="finetuned"))
    best = tmp_path / "out/fine_tune_outputs/MRPC/lr_2e-5"
    assert f"--init_checkpoint={best}" in fake_train()[-1].split()


def test_with_seeds_the_best_seed_of_the_best_rate_is_the_teacher(
    tmp_path, fake_train
):
    run(make_sweep(tmp_path, tasks=("MRPC",), seeds=(1, 2, 3)))
    teacher = tmp_path / "out/fine_tune_outputs/MRPC/lr_2e-5/seed_2"
    pruning = [call for call in fake_train() if "teacher" in call]
    assert len(pruning) == 3
    for call in pruning:
        assert f"--teacher_checkpoint={teacher}" in call.split()
    assert (tmp_path / "out/prune_outputs/MRPC/seed_3/DONE").exists()


def test_a_second_call_runs_nothing_anew(tmp_path, fake_train):
    sweep = make_sweep(tmp_path)
    first = run(sweep)
    calls = fake_train()
    second = run(sweep)
    assert fake_train() == calls
    assert second.table() == first.table()


def test_only_what_is_missing_is_run(tmp_path, fake_train):
    sweep = make_sweep(tmp_path, tasks=("MRPC",))
    run(sweep)
    calls = fake_train()
    (tmp_path / "out/fine_tune_outputs/MRPC/lr_5e-5/DONE").unlink()
    run(sweep)
    assert fake_train()[len(calls) :] == [calls[0]]


def test_overwrite_runs_all_anew(tmp_path, fake_train):
    sweep = make_sweep(tmp_path, tasks=("MRPC",))
    run(sweep)
    run(sweep, overwrite=True)
    assert len(fake_train()) == 6


def test_a_failing_task_does_not_stop_the_others(tmp_path, fake_train):
    runner = run(make_sweep(tmp_path, tasks=("RTE", "MRPC")))
    assert len(runner.failures) == 3
    table = runner.table()
    log = tmp_path / "out/fine_tune_outputs/RTE/lr_5e-5.log"
    assert f"RTE, fine-tuning at 5e-5: RTE is broken (log: {log})" in table
    assert "RTE, pruning: no fine-tuned run" in table
    assert (tmp_path / "out/prune_outputs/MRPC/DONE").exists()


def test_a_pruned_model_of_another_teacher_does_not_pass_for_this_one(
    tmp_path, fake_train
):
    run(make_sweep(tmp_path, tasks=("MRPC",), learning_rates=("5e-5",)))
    runner = run(make_sweep(tmp_path, tasks=("MRPC",)))
    (failure,) = runner.failures
    assert "another teacher" in failure.error


def test_a_teacher_is_the_same_however_its_path_is_spelt(
    tmp_path, fake_train, monkeypatch
):
    run(make_sweep(tmp_path, tasks=("MRPC",)))
    monkeypatch.chdir(tmp_path)
    relative = make_sweep(tmp_path, tasks=("MRPC",), output_dir=Path("out"))
    assert not run(relative).failures


def test_a_table_that_cannot_be_written_stops_nothing(
    tmp_path, fake_train, capsys
):
    (tmp_path / "out/fine_tune_outputs/results.md").mkdir(parents=True)
    runner = run(make_sweep(tmp_path, tasks=("MRPC",)))
    assert not runner.failures
    assert "results.md: Is a directory" in capsys.readouterr().err
    assert (tmp_path / "out/prune_outputs/MRPC/DONE").exists()


def test_data_are_tokenised_once_for_all_stages(tmp_path, run_all_flags):
    for given, expected in (
        ((), tmp_path / "out" / "cache"),
        (("--cache_dir=mine",), "mine"),
    ):
        sweep = make_sweep(
            tmp_path, tasks=("MRPC",), finetune_flags=given, prune_flags=given
        )
        write(tmp_path / "finetune.cfg", [])
        write(tmp_path / "prune.cfg", PRUNE.split())
        for stage in preflight._stages(sweep, "MRPC"):
            preflight._set_flags(stage)
            assert str(run_all_flags.cache_dir) == str(expected)


def test_flagfiles_may_differ_by_task():
    sweep = make_sweep(Path("x"), prune_flagfile="configs/{task}.cfg")
    (stage,) = sweep.prune_stages("MRPC", "teacher")
    assert "--flagfile=configs/mrpc.cfg" in stage.arguments


def test_the_tasks_are_the_folders_there_are(tmp_path):
    for name in ("STS-B", "CoLA", "mine", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine" / "task.cfg").touch()
    assert find_tasks(str(tmp_path)) == ("CoLA", "STS-B", "mine")
    assert resolve_task("stsb", str(tmp_path)) == "STS-B"
    assert resolve_task("mine", str(tmp_path)) == "mine"
    with pytest.raises(UserError, match="--tasks=other"):
        resolve_task("other", str(tmp_path))
    with pytest.raises(UserError, match="no folder of a task"):
        find_tasks(str(tmp_path / "other"))


def test_tfds_has_every_task_that_can_be_trained():
    assert {"CoLA", "MNLI", "WNLI"} < set(find_tasks("tfds"))
    assert "AX" not in find_tasks("tfds")


def test_a_good_sweep_passes_the_checks(prepared, run_all_flags):
    tasks = preflight.check(prepared)
    assert tasks["MRPC"] == TASKS["MRPC"]
    assert tasks["mine"].is_regression
    assert not any(prepared.output_dir.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune_flags": ("--no_such_flag=1",)}, "no_such_flag"),
        ({"finetune_flags": ("--max_steps=many",)}, "max_steps"),
        ({"prune_flags": ("--sparsity=1.0",)}, r"\[0, 1\)"),
        ({"prune_flagfile": "missing.cfg"}, "missing.cfg"),
        ({"finetune_flags": ("--max_seq_length=99",)}, "16 positions"),
        (
            {"prune_flags": ("--max_seq_length=8", "--nodo_lower_case")},
            "uncased vocabulary",
        ),
        ({"prune_flags": (*SHORT, "--prune_targets=x")}, "'x' fits"),
        (
            {
                "prune_flags": (
                    *SHORT,
                    "--distill=hidden,logits",
                    "--layer_map=0,1",
                )
            },
            "--layer_map needs 3 entries",
        ),
        ({"prune_flags": (*SHORT, "--block_size=0x1")}, "two positive sizes"),
        ({"prune_flags": (*SHORT, "--block_size=3x1")}, "does not divide"),
        (
            {
                "tasks": ("MRPC",),
                "prune_flags": (
                    *(*SHORT, "--prune_targets=classifier"),
                    "--block_size=1x3",
                ),
            },
            "the kernel of classifier",
        ),
        ({"prune_flags": ("--pruning=none",)}, "--sparsity needs --pruning"),
        ({"finetune_flags": ("--num_train_epochs=inf",)}, "must be finite"),
        ({"finetune_flags": ("--doc_stride=64",)}, "needs --task_name=SQuAD"),
        ({"finetune_flags": ("--train_fraction=0.001",)}, "cannot be drawn"),
        (
            {"prune_flags": (*SHORT, "--aug_train=nowhere")},
            "nowhere holds no finished augmentation",
        ),
        ({"tasks": ("MRPC", "RTE")}, "RTE"),
        ({"init_checkpoint": "missing"}, "missing"),
        ({"data_dir": "missing"}, "missing"),
    ],
)
def test_what_is_wrong_is_found_before_the_first_training(
    prepared, run_all_flags, changes, message
):
    folder = prepared.output_dir.parent
    with pytest.raises(UserError, match=message):
        preflight.check(make_sweep(folder, **changes))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--structure=a.json", "cut the checkpoint first"),
        ("--quantize=int8", "goes on with a finished run"),
        ("--task_name=CoLA", "use --tasks. Received: CoLA in "),
        ("--data_dir=nowhere", "Received: MRPC in nowhere"),
    ],
)
def test_a_flagfile_says_no_more_than_the_command_line(
    prepared, run_all_flags, line, message
):
    folder = prepared.output_dir.parent
    write(folder / "prune.cfg", [*PRUNE.split(), line])
    with pytest.raises(UserError, match=message):
        preflight.check(make_sweep(folder, prune_flags=SHORT))


def test_a_fine_tuning_has_no_teacher(prepared, run_all_flags):
    folder = prepared.output_dir.parent
    lines = ["--distill=logits", "--teacher_checkpoint=x"]
    write(folder / "finetune.cfg", lines)
    path = str(folder / "finetune.cfg")
    with pytest.raises(UserError, match="the best fine-tuned run is the"):
        preflight.check(make_sweep(folder, finetune_flagfile=path))


def test_a_flagfile_may_be_of_the_task(prepared, run_all_flags):
    folder = prepared.output_dir.parent
    write(
        folder / "prune.cfg", [*PRUNE.split(), "--task_name=mrpc", "--seed=7"]
    )
    preflight.check(make_sweep(folder, tasks=("MRPC",), prune_flags=SHORT))


def test_a_schedule_is_checked_in_its_steps(prepared, run_all_flags):
    folder = prepared.output_dir.parent
    write(folder / "prune.cfg", PRUNE.split())
    rare = ("--max_seq_length=8", "--pruning_frequency=20000")
    preflight.check(
        make_sweep(folder, prune_flags=(*rare, "--max_steps=20000"))
    )
    for limit, steps in (("--max_steps=99", 99), ("--train_batch_size=1", 36)):
        with pytest.raises(UserError, match=f"the ramp of {steps} steps"):
            preflight.check(make_sweep(folder, prune_flags=(*rare, limit)))


def test_the_mistakes_of_all_tasks_are_told_at_once(prepared, run_all_flags):
    folder = prepared.output_dir.parent
    sweep = make_sweep(
        folder, tasks=("RTE", "MRPC", "CoLA"), init_checkpoint="missing"
    )
    with pytest.raises(UserError) as error:
        preflight.check(sweep)
    first, *lines = str(error.value).splitlines()
    assert first == "3 mistakes before the first run:"
    assert lines[0].startswith("RTE: Missing file")
    assert lines[1].startswith("CoLA: Missing file")
    assert lines[2].startswith("--init_checkpoint: There is no checkpoint")


def test_a_mistake_of_many_stages_is_told_once(prepared, run_all_flags):
    folder = prepared.output_dir.parent
    sweep = make_sweep(folder, finetune_flags=("--max_seq_length=99",))
    with pytest.raises(UserError) as error:
        preflight.check(sweep)
    assert str(error.value).startswith("MRPC, fine-tuning at 5e-5: --max_seq")
    assert str(error.value).count("--max_seq_length=99") == 1


def test_tensorboard_names_a_task_by_its_folder(
    prepared, run_all_flags, monkeypatch
):
    described = {}
    monkeypatch.setattr(
        "bert_pruning.delivery.experiment.write_experiment",
        lambda directory, **values: described.update(values),
    )
    tasks = preflight.prepare(prepared)
    assert described["tasks"] == ["MRPC", "mine"]
    for task in tasks.values():
        logged = assembly.hyperparameters(task.title)["task_name"]
        assert logged in described["tasks"]


def test_a_malformed_row_of_the_last_task_is_found_first(
    prepared, run_all_flags
):
    path = Path(prepared.data_dir) / "mine" / "dev.tsv"
    path.write_text(path.read_text() + "word1\tnot a number\n")
    with pytest.raises(UserError, match=r"dev\.tsv.*10"):
        preflight.check(prepared)


def test_an_output_that_cannot_be_written_is_found(prepared, run_all_flags):
    prepared.output_dir.write_text("a file")
    with pytest.raises(UserError, match="Cannot write.*--output_dir"):
        preflight.check(prepared)


def test_a_full_disk_is_found(tmp_path):
    with pytest.raises(UserError, match="GB free"):
        preflight.check_space(tmp_path, 10**18)


def test_a_finished_run_of_other_flags_is_not_taken_for_this_one(
    prepared, run_all_flags, monkeypatch
):
    monkeypatch.setattr(preflight, "_read_labels", lambda task: [0] * 32)
    stage = prepared.finetune_stages("MRPC")["5e-5"][0]
    preflight._set_flags(stage)
    write(
        stage.directory / "flags.cfg",
        preflight.shared.flags_as_text().splitlines(),
    )
    (stage.directory / "DONE").touch()
    preflight.check(prepared)
    folder = prepared.output_dir.parent
    for given in (
        "--max_seq_length=9",
        "--jit_compile",
        "--optimizer=bert_adam",
    ):
        changes = {"finetune_flags": ("--max_seq_length=8", given)}
        with pytest.raises(UserError, match="finished, but with other flags"):
            preflight.check(make_sweep(folder, **changes))
    harmless = ("--max_seq_length=8", "--log_steps=5", "--cache_dir=other")
    preflight.check(make_sweep(folder, finetune_flags=harmless))
    monkeypatch.chdir(folder)
    relative = {"data_dir": "data", "init_checkpoint": "./tiny"}
    preflight.check(make_sweep(folder, **relative))
    anew = ("--max_seq_length=9", "--overwrite")
    preflight.check(make_sweep(folder, finetune_flags=anew))


def test_the_flags_of_pruning_are_flags_of_train(run_all_flags):
    assert set(PRUNE_FLAGS) < set(preflight.train_flags())


def test_the_flags_of_train_are_those_that_it_defines():
    with defined_flags("train") as flags:
        expected = {
            flag.name
            for module, found in flags.flags_by_module_dict().items()
            if module.startswith("bert_pruning.")
            for flag in found
        }
    with defined_flags("run_all"):
        assert set(preflight.train_flags()) >= expected


def read_sweep(flags, *arguments):
    flags(["run_all", "--init_checkpoint=x", "--data_dir=tfds", *arguments])
    return run_all._read_sweep()


def test_flags_of_train_are_passed_on_to_the_stages_they_concern(
    run_all_flags,
):
    sweep = read_sweep(
        run_all_flags,
        *("--prune_flagfile=p.cfg", "--max_steps=9", "--sparsity=0.7"),
        *("--overwrite", "--tasks=mrpc,RTE", "--learning_rates=5e-5,1e-4"),
    )
    assert sweep.tasks == ("MRPC", "RTE")
    assert sweep.learning_rates == ("5e-5", "1e-4")
    assert set(sweep.finetune_flags) == {"--max_steps=9", "--overwrite"}
    assert set(sweep.prune_flags) == {
        *("--max_steps=9", "--overwrite", "--sparsity=0.7")
    }


def no_tasks(sweep):
    return {}


def test_what_goes_on_after_a_stop_is_said(run_all_flags, monkeypatch, capsys):
    def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(preflight, "prepare", no_tasks)
    monkeypatch.setattr(run_all, "stop_on_signals", lambda: None)
    monkeypatch.setattr(run_all.Runner, "run", stopped)
    for given, expected in (
        ([], "The same command goes on from here"),
        (["--overwrite"], "same command, without --overwrite, goes on"),
    ):
        read_sweep(run_all_flags, "--prune_flagfile=p.cfg", *given)
        assert run_all.main() == 130
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rate=1e-5"], "use --learning_rates"),
        (["--seed=1"], "use --seeds"),
        (["--learning_rates=1e-5,fast"], "Received: 1e-5,fast"),
        (["--learning_rates=1e-5,0.00001"], "different numbers"),
        (["--learning_rates="], "empty"),
        (["--seeds=-1"], "--seeds"),
        (["--noprune", "--sparsity=0.5"], "contradict"),
        (["--prune_flagfile="], "How shall be pruned"),
        (["--tasks=squad"], "--tasks=squad"),
    ],
)
def test_contradicting_flags_are_refused(run_all_flags, arguments, message):
    with pytest.raises(UserError, match=message):
        read_sweep(run_all_flags, "--prune_flagfile=p.cfg", *arguments)


def test_a_sweep_with_real_training(prepared):
    folder = prepared.output_dir.parent
    command = [
        *(sys.executable, "-m", "bert_pruning", "run_all"),
        f"--data_dir={prepared.data_dir}",
        f"--init_checkpoint={prepared.init_checkpoint}",
        f"--finetune_flagfile={prepared.finetune_flagfile}",
        f"--prune_flagfile={prepared.prune_flagfile}",
        *("--tasks=MRPC", "--max_seq_length=8", "--train_batch_size=4"),
        f"--output_dir={folder / 'out'}",
    ]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    table = (folder / "out/fine_tune_outputs/results.md").read_text()
    assert "| MRPC | fine-tuned, 5e-5 | 0.0 |" in table
    assert "| MRPC | pruned, distilled | 50.0 |" in table
    assert table in finished.stdout
