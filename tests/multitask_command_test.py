"""Several tasks, trained and used as typed."""

import dataclasses
import shutil

import numpy as np
import pytest
import tiny_runs
from folders import contents
from tiny_training import Crash

from bert_pruning.compression import costs
from bert_pruning.compression.structure import Structure
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.training import trainer
from bert_pruning.training.run import read_results

pytestmark = pytest.mark.usefixtures("eagerly")

SHAPE = {"num_layers": 2, "num_heads": 4}
TICKET = Structure(
    (4, 4), (32, 32), ((0, 2), (0, 1, 2, 3)), ((), tuple(range(32)))
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with three tasks, a model, a ticket, and a run of all."""
    folder = tmp_path_factory.mktemp("place")
    data = folder / "data"
    tiny_runs.write_sst2(data)
    header = ["index", "sentence1", "sentence2", "score"]
    write_pairs(data / "STS-B", header, lambda i: f"{i % 6}.0")
    header = ["index", "sentence1", "sentence2", "label"]
    names = ("entailment", "not_entailment")
    write_pairs(data / "RTE", header, lambda i: names[i % 2])
    tiny_runs.write_checkpoint(folder / "init", seed=1, **SHAPE)
    TICKET.save(folder / "ticket.json")
    status, out, err = train(folder, folder / "run")
    assert status == 0, err
    assert "eval_mean = " in out
    return folder


def write_pairs(folder, header, label):
    folder.mkdir()
    for seed, (split, count) in enumerate({"train": 20, "dev": 8}.items()):
        texts, _ = tiny_runs.sentences(2 * count, seed)
        rows = [
            (i, texts[2 * i], texts[2 * i + 1], label(i)) for i in range(count)
        ]
        tiny_runs.write_table(folder / f"{split}.tsv", header, rows)
    rows = [row[:3] for row in rows]
    tiny_runs.write_table(folder / "test.tsv", header[:3], rows)


def train(folder, output_dir, *flags):
    return tiny_runs.run_command(
        *("train", "--task_name=SST-2,stsb,RTE", f"--data_dir={folder}/data"),
        *(f"--init_checkpoint={folder}/init", f"--output_dir={output_dir}"),
        *(f"--tickets=SST-2:{folder}/ticket.json", *tiny_runs.QUICK),
        *("--max_steps=30", "--eval_steps=15", *flags),
    )


def command(name, folder, *flags):
    return tiny_runs.run_command(
        *(name, f"--init_checkpoint={folder}/run", *flags)
    )


def data_flags(folder, task):
    return (
        *(f"--data_dir={folder}/data", f"--task_name={task}"),
        "--max_seq_length=16",
    )


def test_a_run_holds_the_encoder_the_classifiers_and_the_tickets(place):
    run = load_checkpoint(str(place / "run"))
    init = load_checkpoint(str(place / "init"))
    assert run.config == init.config
    assert list(run.tasks) == ["SST-2", "STS-B", "RTE"]
    shapes = {
        name: run.weights[f"classifier_{name}/kernel"].shape
        for name in run.tasks
    }
    assert shapes == {"SST-2": (16, 2), "STS-B": (16, 1), "RTE": (16, 2)}
    assert run.tasks["RTE"]["structure"] is None
    stored = run.tasks["SST-2"]["structure"]
    assert Structure.from_dict(stored, "run") == TICKET
    results = read_results(place / "run" / "eval_results.txt")
    assert {
        *("eval_accuracy_SST-2", "eval_spearman_STS-B", "eval_accuracy_RTE"),
        *("eval_mean", "eval_loss", "global_step"),
    } <= results.keys()


def test_a_task_is_scored_as_while_it_trained(place):
    results = read_results(place / "run" / "eval_results.txt")
    for task, metric in (
        ("SST-2", "eval_accuracy"),
        ("STS-B", "eval_loss"),
        ("RTE", "eval_accuracy"),
    ):
        status, out, err = command("evaluate", place, *data_flags(place, task))
        assert status == 0, err
        [line] = [x for x in out.splitlines() if x.startswith(f"{metric} =")]
        value = float(line.split(" = ")[1])
        assert value == pytest.approx(results[f"{metric}_{task}"], rel=1e-5)


def test_all_tasks_are_scored_at_once(place, tmp_path):
    flags = (f"--data_dir={place}/data", "--max_seq_length=16")
    trained = read_results(place / "run" / "eval_results.txt")
    status, _, err = command(
        *("evaluate", place, *flags, f"--output_dir={tmp_path}")
    )
    assert status == 0, err
    found = read_results(tmp_path / "eval_results.txt")
    for name in ("eval_mean", "eval_accuracy_RTE", "eval_spearman_STS-B"):
        assert found[name] == pytest.approx(trained[name], rel=1e-5)
    assert "eval_accuracy_SST-2" in found
    status, out, err = command(
        *("evaluate", place, *flags, "--task_name=rte,stsb")
    )
    assert status == 0, err
    assert "eval_accuracy_RTE = " in out
    assert "SST-2" not in out


def test_tasks_are_predicted_one_or_all(place, tmp_path):
    flags = (f"--data_dir={place}/data", "--max_seq_length=16")
    one = (*flags, "--task_name=STS-B", f"--output_dir={tmp_path}/one")
    for more in (one, (*flags, f"--output_dir={tmp_path}/all")):
        status, _, err = command("predict", place, *more)
        assert status == 0, err
    names = [path.name for path in sorted((tmp_path / "all").iterdir())]
    assert names == ["RTE.tsv", "SST-2.tsv", "STS-B.tsv"]
    found = [tmp_path / name / "STS-B.tsv" for name in ("one", "all")]
    assert found[0].read_text() == found[1].read_text()


def test_a_task_s_part_is_cut_out(place, tmp_path):
    status, out, err = command(
        *("shrink", place, "--task_name=sst2", f"--output_dir={tmp_path}")
    )
    assert status == 0, err
    path = out.splitlines()[-1].removeprefix("Run: ")
    part = load_checkpoint(path)
    assert part.config.num_heads == (2, 4)
    assert part.config.intermediate_sizes == (0, 32)
    assert part.task["name"] == "SST-2"
    assert not part.tasks
    assert Structure.load(f"{path}/structure.json") == TICKET
    smaller = ("--num_layers=1", f"--output_dir={tmp_path}/smaller")
    status, out, err = command("shrink", place, "--task_name=sst2", *smaller)
    assert status == 0, err
    smaller = out.splitlines()[-1].removeprefix("Run: ")
    structure = Structure.load(f"{smaller}/structure.json")
    assert structure.heads == (TICKET.heads[0], ())
    structure.check_fits(load_checkpoint(f"{place}/run").config)
    flags = data_flags(place, "SST-2")
    found = [
        tiny_runs.run_command("evaluate", f"--init_checkpoint={x}", *flags)[1]
        for x in (path, place / "run")
    ]
    lines = [
        [x for x in out.splitlines() if x.startswith("eval_loss")]
        for out in found
    ]
    assert lines[0] == lines[1] != []
    status, _, err = tiny_runs.run_command(
        *("score", f"--init_checkpoint={place}/run", *flags),
        f"--output_dir={tmp_path}/scores",
    )
    assert status == 0, err


def test_the_encoder_starts_another_task(place, tmp_path):
    (place / "data" / "CoLA").mkdir(exist_ok=True)
    for split in ("train", "dev"):
        path = place / "data" / "CoLA" / f"{split}.tsv"
        path.write_text("".join(f"x\t{i % 2}\t\tgood film\n" for i in range(8)))
    status, _, err = tiny_runs.run_command(
        *("train", *data_flags(place, "CoLA"), *tiny_runs.QUICK),
        *(f"--init_checkpoint={place}/run", f"--output_dir={tmp_path}/run"),
    )
    assert status == 0, err
    assert "its encoder alone is taken" in err
    assert load_checkpoint(str(tmp_path / "run")).config.num_heads == (4, 4)
    status, _, err = command("evaluate", place, *data_flags(place, "CoLA"))
    assert status == 2
    assert "has no classifier for CoLA" in err


def test_the_sizes_of_the_parts_are_told(place):
    results = read_results(place / "run" / "eval_results.txt")
    config = load_checkpoint(str(place / "run")).config
    for title, count in (
        ("percent_left", costs.parameters),
        ("encoder_percent_left", costs.encoder_parameters),
    ):
        share = 100 * count(TICKET.shrink(config)) / count(config)
        assert results[f"{title}_SST-2"] == pytest.approx(share, abs=1e-3)
        assert results[f"{title}_RTE"] == 100
        mean = (share + 200) / 3
        assert results[f"{title}_mean"] == pytest.approx(mean, abs=1e-3)
        assert results[f"{title}_union"] == 100


def test_what_no_task_uses_is_counted(place, tmp_path):
    tickets = ",".join(
        f"{task}:{place}/ticket.json" for task in ("SST-2", "RTE", "STS-B")
    )
    flags = ("--max_steps=1", f"--tickets={tickets}")
    assert train(place, tmp_path / "run", *flags)[0] == 0
    results = read_results(tmp_path / "run" / "eval_results.txt")
    assert results["percent_left_union"] == results["percent_left_mean"] < 100


def test_tickets_are_not_overwritten(place, tmp_path):
    (tmp_path / "t").mkdir()
    TICKET.save(tmp_path / "t" / "winning_20.json")
    status, _, err = train(
        *(place, tmp_path / "t", "--overwrite"),
        f"--tickets=RTE:{tmp_path}/t/winning_20.json",
    )
    assert status == 2
    assert "would be written over" in err
    assert Structure.load(tmp_path / "t" / "winning_20.json") == TICKET


def test_one_task_may_have_its_dropout_too(place, tmp_path):
    flags = ("--task_name=SST-2", "--tickets=", "--max_steps=1")
    for value, rate in (("0.3", 0.3), ("SST-2:0.4", 0.4)):
        path = tmp_path / value
        status, _, err = train(
            place, path, *flags, f"--classifier_dropout={value}"
        )
        assert status == 0, err
        assert load_checkpoint(str(path)).config.classifier_dropout == rate


def test_a_stopped_run_resumes_to_the_same_weights(
    place, tmp_path, monkeypatch
):
    flags = ("--max_steps=12", "--eval_steps=6", "--save_steps=4")
    assert train(place, tmp_path / "whole", *flags)[0] == 0
    original, steps = trainer.Trainer._run_step, []

    def crashing(self, batch):
        steps.append(batch["task"])
        if len(steps) == 10:
            raise Crash
        return original(self, batch)

    monkeypatch.setattr(trainer.Trainer, "_run_step", crashing)
    ticket = tmp_path / "ticket.json"
    TICKET.save(ticket)
    flags += (f"--tickets=SST-2:{ticket}",)
    with pytest.raises(Crash):
        train(place, tmp_path / "killed", *flags)
    assert len(set(steps)) == 3
    heads = ((0, 1), TICKET.heads[1])
    dataclasses.replace(TICKET, heads=heads).save(ticket)
    status, _, err = train(place, tmp_path / "killed", *flags)
    assert status == 2
    assert f"{ticket} is not what it was when" in err
    # What it says of its origin is not what it keeps.
    dataclasses.replace(TICKET, about={"of": "another"}).save(ticket)
    assert train(place, tmp_path / "killed", *flags)[0] == 0
    whole, killed = (
        load_checkpoint(str(tmp_path / name)).weights
        for name in ("whole", "killed")
    )
    for name, array in whole.items():
        np.testing.assert_array_equal(array, killed[name])


def test_it_prunes_and_drops_out_as_asked(place, tmp_path):
    status, _, err = train(
        *(place, tmp_path / "run", "--pruning=magnitude", "--sparsity=0.5"),
        *("--classifier_dropout=0.2,RTE:0.05", "--sampling_temperature=5"),
        "--optimizer=adamax",
    )
    assert status == 0, err
    run = load_checkpoint(str(tmp_path / "run"))
    assert run.config.classifier_dropout == 0.2
    kernel = run.weights["layer_0_query/kernel"]
    assert (kernel == 0).mean() == 0.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tickets=CoLA:x"], "CoLA is not trained"),
        (["--tickets=RTE"], "--tickets takes TASK:FILE. Received: 'RTE'"),
        (["--tickets=RTE:x,rte:y"], "RTE is named twice"),
        (["--tickets=RTE:nowhere"], "Cannot read nowhere"),
        (["--task_name=SST-2,sst2", "--tickets="], "names SST-2 twice"),
        (["--task_name=SST-2,x", "--tickets="], "Unknown task"),
        (["--task_name=SST-2,AX", "--tickets="], "AX has no training data"),
        (["--task_name=SST-2,custom", "--tickets="], "is trained alone"),
        (["--task_name=SST-2,MRPC", "--tickets="], "MRPC"),
        (["--task_name=SST-2"], "--tickets needs several tasks"),
        (
            ["--task_name=SST-2", "--tickets=", "--sampling_temperature=2"],
            "--sampling_temperature needs several tasks",
        ),
        (["--sampling_temperature=0.5"], "sampling_temperature"),
        (["--classifier_dropout=1"], "must lie in [0, 1)"),
        (["--classifier_dropout=0.1,0.2"], "one rate for all tasks"),
        (["--classifier_dropout=CoLA:0.1"], "CoLA is not trained"),
        (["--structure=P/ticket.json"], "--structure is for one task"),
        (
            ["--teacher_checkpoint=P/run", "--distill=logits"],
            "--teacher_checkpoint is for one task",
        ),
        (
            ["--pruning=depth", "--num_layers=1", "--pruning_end=0.5"],
            "--pruning=depth is for one task",
        ),
        (["--strategy=mirrored"], "on one device"),
        (["--hard_label_weight=2"], "--hard_label_weight is for one task"),
        (["--classifier_dropout=custom:0.1"], "custom is not trained"),
        (["--tickets=SQuAD:x"], "SQuAD is not trained"),
    ],
)
def test_what_cannot_be_trained_is_refused(place, tmp_path, flags, message):
    flags = [flag.replace("P/", f"{place}/") for flag in flags]
    status, _, err = train(place, tmp_path / "new", *flags)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "new" / "flags.cfg").exists()


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        (
            "score",
            ["--data_dir=P/data", "--max_seq_length=16"],
            "Say which by --task_name",
        ),
        (
            "evaluate",
            [
                "--data_dir=P/data",
                "--max_seq_length=16",
                "--task_name=rte,cola",
            ],
            "not on cola",
        ),
        ("shrink", ["--num_layers=1"], "Say which by --task_name"),
        ("shrink", ["--task_name=CoLA"], "Received: CoLA"),
    ],
)
def test_the_task_must_be_said(place, tmp_path, name, flags, message):
    flags = [flag.replace("P/", f"{place}/") for flag in flags]
    before = contents(place)
    status, _, err = command(name, place, *flags, f"--output_dir={tmp_path}")
    assert status == 2
    assert message in err
    assert contents(place) == before


def test_what_is_refused_late_clears_nothing(place, tmp_path):
    """The classifiers have names of their own, which the model alone knows."""
    shutil.copytree(place / "run", tmp_path / "run")
    before = contents(tmp_path / "run")
    status, _, err = train(
        *(place, tmp_path / "run", "--overwrite", "--pruning=magnitude"),
        *("--sparsity=0.5", "--prune_targets=classifier"),
    )
    assert status == 2
    assert "'classifier' fits no Dense layer" in err
    assert contents(tmp_path / "run") == before
