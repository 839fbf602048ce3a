"""Score, shrink and iterative pruning, as typed."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tiny_runs
from folders import contents

from bert_pruning.compression import costs
from bert_pruning.compression.importance import Scores
from bert_pruning.compression.structure import Structure
from bert_pruning.modeling import bert
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.training.run import parse_flags
from bert_pruning.training.run import read_results

pytestmark = pytest.mark.usefixtures("eagerly")

SST2 = {"name": "SST-2", "labels": ["0", "1"]}
SHAPE = {"num_layers": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, a fine-tuned model and its scores."""
    folder = tmp_path_factory.mktemp("place")
    tiny_runs.write_sst2(folder / "data")
    tiny_runs.write_checkpoint(folder / "model", SST2, seed=1, **SHAPE)
    tiny_runs.write_checkpoint(folder / "other", SST2, seed=2, **SHAPE)
    for method in ("taylor", "sensitivity", "magnitude", "random"):
        status, out, err = score(
            folder, f"--method={method}", f"--output_dir={folder}/{method}"
        )
        assert status == 0, err
        assert out.count("layer") == 2
        assert f"Scores: {folder}/{method}/scores.npz" in out
    return folder


def score(folder, *flags):
    return tiny_runs.run_command(
        *("score", "--task_name=SST-2", f"--init_checkpoint={folder}/model"),
        *(f"--data_dir={folder}/data", "--max_seq_length=16"),
        *("--train_batch_size=4", *flags),
    )


def shrink(folder, *flags):
    return tiny_runs.run_command(
        *("shrink", f"--init_checkpoint={folder}/model"),
        *(f"--output_dir={folder}/shrunk", *flags),
    )


def shrunk_at(out):
    """The run that a command says it has written."""
    line = out.splitlines()[-1]
    assert line.startswith("Run: ")
    return pathlib.Path(line.removeprefix("Run: "))


def test_scores_say_what_they_were_computed_on(place):
    found = {
        method: Scores.load(place / method / "scores.npz")
        for method in ("taylor", "sensitivity", "magnitude", "random")
    }
    config = load_checkpoint(str(place / "model")).config
    for method, scores in found.items():
        scores.check_fits(config)
        assert scores.about["method"] == method
        assert scores.about["checkpoint"] == f"{place}/model"
    about = found["taylor"].about
    assert (about["task"], about["examples"]) == ("SST-2", "24")
    assert about["batch_size"] == "4"
    assert (place / "taylor" / "DONE").exists()
    values = [tuple(scores.neurons[0]) for scores in found.values()]
    assert len(set(values)) == 4


def test_a_part_of_the_training_set_is_scored_on(place, tmp_path):
    status, _, err = score(
        *(place, "--train_fraction=0.5", f"--output_dir={tmp_path}/a")
    )
    assert status == 0, err
    found = Scores.load(tmp_path / "a" / "scores.npz")
    assert found.about["examples"] == "12"
    for wrong, message in (
        ("--train_fraction=0", "must be above 0"),
        ("--subset_seed=2", "needs --train_fraction"),
        ("--train_fraction=0.01", "of 24 rows cannot be drawn"),
    ):
        status, _, err = score(place, wrong, f"--output_dir={tmp_path}/b")
        assert status == 2
        assert message in err


def test_a_teacher_s_objective_gives_other_scores(place, tmp_path):
    status, _, err = score(
        place,
        f"--teacher_checkpoint={place}/other",
        *("--distill=logits,hidden", f"--output_dir={tmp_path}/scores"),
    )
    assert status == 0, err
    ours = Scores.load(tmp_path / "scores" / "scores.npz")
    labels = Scores.load(place / "taylor" / "scores.npz")
    assert ours.about["distill"] == "logits,hidden"
    assert not np.allclose(ours.neurons[0], labels.neurons[0])


def test_a_shrunk_model_is_a_run_that_is_evaluated_and_shrunk_again(place):
    status, out, err = shrink(
        place,
        *(f"--scores={place}/taylor", "--keep_heads=2", "--num_layers=1"),
        *("--ffn_hidden_dim=8", "--emb_hidden_dim=6"),
    )
    assert status == 0, err
    run = shrunk_at(out)
    assert run == place / "shrunk" / "a2_l1_f8_e6"
    small = load_checkpoint(str(run))
    assert small.config.num_heads == (2,)
    assert small.config.embedding_rank == 6
    assert small.task["labels"] == ["0", "1"]
    before = load_checkpoint(str(place / "model")).config
    counts = [costs.parameters(c) for c in (before, small.config)]
    assert f"parameters: {counts[0]:,} -> {counts[1]:,}" in out
    scores = Scores.load(place / "taylor" / "scores.npz")
    structure = Structure.load(run / "structure.json")
    assert set(structure.heads[0]) == set(np.argsort(scores.heads[0])[-2:])
    flags = (f"--init_checkpoint={run}", f"--data_dir={place}/data")
    flags += ("--max_seq_length=16", "--task_name=SST-2")
    status, out, err = tiny_runs.run_command("evaluate", *flags)
    assert status == 0, err
    assert "eval_accuracy" in out
    status, out, err = shrink(
        place, f"--init_checkpoint={run}", "--emb_hidden_dim=3"
    )
    assert shrunk_at(out).name == "a2_l1_f8_e3"
    status, out, err = tiny_runs.run_command("report", *flags[:1])
    assert status == 0, err


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_scores_of_weights_alone_have_no_teacher(place, tmp_path, method):
    status, _, err = score(
        *(place, f"--method={method}", f"--output_dir={tmp_path}/scores"),
        *(f"--teacher_checkpoint={place}/other", "--distill=logits"),
    )
    assert status == 2
    assert f"is not for --method={method}" in err
    assert not contents(tmp_path)


def test_a_smaller_run_cuts_texts_as_the_one_it_came_from(place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "run")
    given = {"max_seq_length": "12", "doc_stride": "7", "task_name": "SQuAD"}
    text = "".join(f"--{name}={value}\n" for name, value in given.items())
    (tmp_path / "run" / "flags.cfg").write_text(text)
    flags = (f"--init_checkpoint={tmp_path}/run", f"--output_dir={tmp_path}")
    status, out, err = shrink(place, *flags, "--num_layers=1")
    assert status == 0, err
    small = shrunk_at(out)
    assert parse_flags((small / "texts.cfg").read_text()) == given
    # And what is cut from that.
    flags = (f"--init_checkpoint={small}", f"--output_dir={tmp_path}")
    status, out, err = shrink(place, *flags, "--emb_hidden_dim=3")
    assert status == 0, err
    smaller = shrunk_at(out)
    assert parse_flags((smaller / "texts.cfg").read_text()) == given
    status, out, err = tiny_runs.run_command(
        *("predict", f"--init_checkpoint={smaller}", "--text=it")
    )
    assert status == 0, err
    assert "--max_seq_length=12, as" in err
    # Its flags are a flagfile that gives it again.
    status, out, err = tiny_runs.run_command(
        *("shrink", f"--flagfile={smaller}/flags.cfg", "--overwrite")
    )
    assert status == 0, err
    assert shrunk_at(out) == smaller
    status, out, err = shrink(place, *flags)
    assert status == 2
    assert "What shall be cut?" in err


def test_a_budget_is_shared_by_all_layers(place):
    status, out, err = shrink(
        *(place, f"--scores={place}/taylor/scores.npz", "--mac_ratio=0.3"),
        "--max_seq_length=16",
    )
    assert status == 0, err
    whole = load_checkpoint(str(place / "model")).config
    found = load_checkpoint(str(shrunk_at(out))).config
    share = costs.encoder_macs(found, 16) / costs.encoder_macs(whole, 16)
    assert found.num_layers == 2
    assert sum(found.num_heads) < 8
    assert sum(found.intermediate_sizes) < 64
    head = costs.unit_costs(whole, "macs", 16)[0]
    slack = head / costs.encoder_macs(whole, 16)
    assert 0.3 - slack < share <= 0.3
    status, out, err = shrink(
        *(place, f"--scores={place}/taylor", "--mac_ratio=0.3"),
        "--num_layers=1",
    )
    assert load_checkpoint(str(shrunk_at(out))).config.num_layers == 1


def test_a_structure_is_kept_as_given(place):
    path = place / "given.json"
    Structure(
        (4, 4), (32, 32), ((0, 2), (1,)), ((3, 4, 5), tuple(range(32)))
    ).save(path)
    status, out, err = shrink(place, f"--keep_structure={path}")
    assert status == 0, err
    assert shrunk_at(out).name == "a1-2_l2_f3-32_e-1"
    config = load_checkpoint(str(shrunk_at(out))).config
    assert config.intermediate_sizes == (3, 32)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "What shall be cut?"),
        (["--keep_heads=2"], "--keep_heads=2 needs --scores"),
        (["--mac_ratio=0.5"], "--mac_ratio needs --scores"),
        (["--keep_heads=0"], "keep_heads"),
        (["--keep_heads=5", "S"], "1 to 4, what layer 0 has. Received: 5"),
        (["--ffn_hidden_dim=33", "S"], "1 to 32"),
        (["--num_layers=3"], "1 to 2"),
        (["--emb_hidden_dim=17"], "1 to 16"),
        (["--mac_ratio=1.5", "S"], "--mac_ratio"),
        (["--mac_ratio=0.0001", "S"], "cannot be reached"),
        (["--mac_ratio=0.5", "--keep_heads=2", "S"], "two ways"),
        (["--mac_ratio=0.5", "--param_ratio=0.5", "S"], "two ways"),
        (["--keep_structure=x", "--num_layers=1"], "not --num_layers"),
        (["--keep_structure=x"], "Cannot read x"),
        (["--scores=nowhere", "--keep_heads=2"], "Cannot read nowhere"),
        (["--num_layers=1", "S"], "or leave out --scores"),
        (["--init_checkpoint=nowhere", "--num_layers=1"], "nowhere"),
    ],
)
def test_a_cut_that_cannot_be_made_is_refused(place, flags, message):
    flags = [f"--scores={place}/taylor" if f == "S" else f for f in flags]
    before = contents(place)
    status, _, err = shrink(place, *flags)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert contents(place) == before


def test_scores_of_another_model_are_refused(place, tmp_path):
    flags = ("--keep_heads=2", f"--scores={place}/taylor")
    status, _, err = shrink(place, *flags, f"--init_checkpoint={place}/other")
    assert status == 2
    assert f"the scores of another model, {place}/model" in err
    path = tiny_runs.write_checkpoint(tmp_path / "m", SST2, num_layers=3)
    status, _, err = shrink(place, *flags, f"--init_checkpoint={path}")
    assert status == 2
    assert "The scores are of a model with heads [4, 4]" in err


def test_a_shape_that_was_cut_before_is_not_touched(place):
    flags = ("--num_layers=1", f"--output_dir={place}/again")
    assert shrink(place, *flags)[0] == 0
    before = contents(place / "again")
    status, _, err = shrink(place, *flags)
    assert status == 2
    assert "--overwrite" in err
    assert contents(place / "again") == before
    assert shrink(place, *flags, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--init_checkpoint=nowhere"], "nowhere"),
        (["--data_dir=nowhere"], "nowhere"),
        (["--data_dir="], "Missing: --data_dir"),
        (["--teacher_checkpoint=x"], "--teacher_checkpoint needs --distill"),
        (["--method=best"], "--method"),
        (
            ["--method=magnitude", "--hard_label_weight=2"],
            "--hard_label_weight is not for --method=magnitude",
        ),
        (["--task_name=SQuAD"], "scores on labelled texts"),
        (["--task_name=AX"], "AX has no training data"),
        (
            [
                *("--teacher_checkpoint=x", "--distill=logits"),
                "--temperature=nan",
            ],
            "--temperature must be finite",
        ),
    ],
)
def test_a_model_that_cannot_be_scored_is_refused(
    place, tmp_path, flags, message
):
    status, _, err = score(place, f"--output_dir={tmp_path}/out", *flags)
    assert status == 2
    assert message in err
    assert not (tmp_path / "out" / "scores.npz").exists()


def test_a_model_without_a_classifier_has_no_loss_to_score(place, tmp_path):
    path = tiny_runs.write_checkpoint(tmp_path / "pretrained", **SHAPE)
    flags = (f"--init_checkpoint={path}", f"--output_dir={tmp_path}/out")
    status, _, err = score(place, *flags, "--task_name=SST-2")
    assert status == 2
    assert "has no classifier" in err
    # Its weights alone can be looked at.
    assert score(place, *flags, "--method=magnitude")[0] == 0


def test_what_is_read_is_never_written_over(place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "model")
    before = contents(tmp_path)
    flags = (f"--init_checkpoint={tmp_path}/model", "--overwrite")
    for output_dir in (tmp_path / "model", f"{tmp_path}/x/../model/"):
        status, _, err = score(place, *flags, f"--output_dir={output_dir}")
        assert status == 2
        assert "would be written over" in err
        status, _, err = train(place, output_dir, *flags, "--distill=logits")
        assert status == 2
        assert "would be written over" in err
    assert contents(tmp_path) == before


# === Iterative pruning ===


def train(folder, output_dir, *flags):
    return tiny_runs.run_command(
        *("train", "--task_name=SST-2", f"--data_dir={folder}/data"),
        *(f"--init_checkpoint={folder}/model", f"--output_dir={output_dir}"),
        *(f"--teacher_checkpoint={folder}/other", *tiny_runs.QUICK),
        *flags,
    )


def test_width_is_cut_while_it_trains(place, tmp_path):
    status, _, err = train(
        *(place, tmp_path / "run", "--distill=logits,hidden"),
        *("--pruning=width", "--pruning_end=0.5", "--keep_heads=2"),
        *("--ffn_hidden_dim=10", "--emb_hidden_dim=4", "--max_steps=8"),
    )
    assert status == 0, err
    checkpoint = load_checkpoint(str(tmp_path / "run"))
    assert checkpoint.config.num_heads == (2, 2)
    assert checkpoint.config.intermediate_sizes == (10, 10)
    assert checkpoint.config.embedding_rank == 4
    results = read_results(tmp_path / "run" / "eval_results.txt")
    assert results["global_step"] >= 4
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    sizes = [json.loads(line)["parameters"] for line in lines]
    assert sizes[0] > sizes[1] == sizes[-1]
    assert sizes[-1] == costs.parameters(checkpoint.config, 2)


def test_depth_is_cut_while_it_trains(place, tmp_path):
    status, _, err = train(
        *(place, tmp_path / "run", "--distill=logits"),
        *("--pruning=depth", "--pruning_end=0.5", "--num_layers=1"),
    )
    assert status == 0, err
    assert load_checkpoint(str(tmp_path / "run")).config.num_layers == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pruning=width"], "needs --keep_heads, such as 2"),
        (["--pruning=depth"], "needs --num_layers, such as 8"),
        (["--keep_heads=2"], "--keep_heads needs --pruning=width"),
        (["--pruning=width", "--keep_heads=2"], "needs --pruning_end"),
        (
            ["--pruning=width", "--keep_heads=2", "--sparsity=0.5"],
            "--sparsity needs --pruning=magnitude",
        ),
        (
            ["--pruning=width", "--keep_heads=4", "--pruning_end=0.5"],
            "1 to 3. Received: 4",
        ),
        (
            ["--pruning=depth", "--num_layers=2", "--pruning_end=0.5"],
            "1 to 1. Received: 2",
        ),
        (
            ["--pruning=width", "--keep_heads=1", "--pruning_end=0.5"],
            "3 cuts need at least as many optimizer steps. Received: 2",
        ),
        (
            [
                *("--pruning=width", "--keep_heads=3", "--pruning_end=0.5"),
                "--distill=attention,logits",
            ],
            "equal numbers of heads",
        ),
        (["--patience=-1"], "--patience"),
        (
            [
                *("--pruning=depth", "--num_layers=1", "--pruning_end=0.5"),
                *("--quantize=int8", "--quantize_layers=layer_1_*"),
            ],
            "called layer_1_*",
        ),
        (
            [
                *("--pruning=width", "--keep_heads=3", "--pruning_end=0.5"),
                *("--emb_hidden_dim=3", "--quantize=int8"),
                "--quantize_layers=*",
            ],
            "Leave it out of --quantize_layers",
        ),
    ],
)
def test_cuts_that_cannot_be_made_are_refused_before_any_work(
    place, tmp_path, monkeypatch, flags, message
):
    def long_work(*_, **__):
        raise AssertionError("a model was built before the refusal")

    monkeypatch.setattr(bert, "build_model", long_work)
    if not any("--distill" in flag for flag in flags):
        flags = ["--distill=logits", *flags]
    status, _, err = train(place, tmp_path / "run", *flags)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
