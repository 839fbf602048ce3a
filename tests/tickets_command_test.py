"""Tickets, drawn and trained as typed."""

import json

import numpy as np
import pytest
import tiny_runs
from folders import contents

from bert_pruning.compression import costs
from bert_pruning.compression import surgery
from bert_pruning.compression.structure import Structure
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.training.run import read_results

pytestmark = pytest.mark.usefixtures("eagerly")

SST2 = {"name": "SST-2", "labels": ["0", "1"]}
SHAPE = {"num_layers": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, a fine-tuned model and its sensitivities."""
    folder = tmp_path_factory.mktemp("place")
    tiny_runs.write_sst2(folder / "data")
    tiny_runs.write_checkpoint(folder / "model", SST2, seed=1, **SHAPE)
    tiny_runs.write_checkpoint(folder / "other", SST2, seed=2, **SHAPE)
    status, _, err = tiny_runs.run_command(
        *("score", "--method=sensitivity", "--task_name=SST-2"),
        f"--data_dir={folder}/data",
        *(f"--init_checkpoint={folder}/model", "--max_seq_length=16"),
        f"--output_dir={folder}/sensitivity",
    )
    assert status == 0, err
    return folder


def tickets(folder, *flags):
    return tiny_runs.run_command(
        *("tickets", f"--init_checkpoint={folder}/model"),
        *(f"--scores={folder}/sensitivity", *flags),
    )


def combine(folder, *flags):
    return tiny_runs.run_command(
        *("tickets", f"--init_checkpoint={folder}/model", *flags)
    )


def train(folder, *flags):
    return tiny_runs.run_command(
        *("train", "--task_name=SST-2", f"--data_dir={folder}/data"),
        *(f"--init_checkpoint={folder}/model", *tiny_runs.QUICK, *flags),
    )


def test_tickets_of_all_kinds_and_levels_are_written_at_once(place, tmp_path):
    status, out, err = tickets(
        *(place, f"--output_dir={tmp_path}/tickets", "--levels=1/0,60"),
        "--seeds=1,2",
    )
    assert status == 0, err
    index = json.loads((tmp_path / "tickets" / "tickets.json").read_text())
    index = index["tickets"]
    assert [entry["file"] for entry in index] == [
        *("winning_1_0.json", "winning_60.json"),
        *("losing_1_0.json", "losing_60.json"),
        *("random_1_0_seed1.json", "random_1_0_seed2.json"),
        *("random_60_seed1.json", "random_60_seed2.json"),
    ]
    config = load_checkpoint(str(place / "model")).config
    for entry in index:
        ticket = Structure.load(tmp_path / "tickets" / entry["file"])
        shape = ticket.shrink(config)
        assert sum(shape.num_heads) == 8 - entry["heads_out"]
        assert shape.intermediate_sizes.count(0) == entry["blocks_out"]
        left = costs.parameters(shape) / costs.parameters(config)
        assert entry["percent_left"] == pytest.approx(100 * left, abs=0.01)
        assert f"{entry['file']}: {entry['heads_out']} of 8 heads" in out
    assert (tmp_path / "tickets" / "DONE").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--levels="], "Missing: --levels"),
        (["--kinds="], "Missing: --kinds"),
        (["--kinds=losing,losing"], "--kinds gives one twice"),
        (["--kinds=lucky"], "--kinds takes winning, losing, random"),
        (["--levels=7/0"], "can lose 6 of its 8 heads"),
        (["--levels=x"], "A level is a percentage"),
        (["--levels=60,60"], "60 leaves out what one before does"),
        (["--seeds=-1"], "--seeds takes whole numbers"),
        (["--seeds=1,01"], "--seeds gives one twice"),
        (["--scores="], "need --scores"),
        (["--scores=nowhere"], "Cannot read nowhere"),
        (["--init_checkpoint=P/other"], "the scores of another model"),
        (["--union=a.json,b.json"], "--scores is not for --union or"),
    ],
)
def test_tickets_that_cannot_be_drawn_are_refused(place, flags, message):
    flags = [flag.replace("P/", f"{place}/") for flag in flags]
    before = contents(place)
    status, _, err = tickets(place, f"--output_dir={place}/t", *flags)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert contents(place) == before


def test_a_ticket_is_trained_alone(place, tmp_path):
    assert tickets(place, f"--output_dir={tmp_path}/t", "--levels=60")[0] == 0
    # As good as no step: the new classifier is the whole model's.
    flags = ("--learning_rate=1e-12", f"--init_checkpoint={tmp_path}/pre")
    tiny_runs.write_checkpoint(tmp_path / "pre", seed=3, **SHAPE)
    found = {}
    for name, structure in {
        "whole": (),
        "part": (f"--structure={tmp_path}/t/winning_60.json",),
    }.items():
        status, _, err = train(
            place, f"--output_dir={tmp_path}/{name}", *flags, *structure
        )
        assert status == 0, err
        found[name] = load_checkpoint(str(tmp_path / name))
    whole, part = found["whole"], found["part"]
    ticket = Structure.load(tmp_path / "part" / "structure.json")
    assert part.config == ticket.shrink(whole.config)
    left = costs.percent_left(part.config, whole.config)
    results = read_results(tmp_path / "part" / "eval_results.txt")
    assert results["percent_left"] == pytest.approx(left, abs=1e-4)
    assert "2 of 2 layers, 4 of 8 heads, 32 of 64 neurons" in err
    assert sum(part.config.num_heads) == 4
    assert part.config.intermediate_sizes.count(0) == 1
    np.testing.assert_allclose(
        part.weights["classifier/kernel"],
        whole.weights["classifier/kernel"],
        atol=1e-8,
    )
    assert np.abs(part.weights["classifier/kernel"]).max() > 0.01
    # The part is the whole one's, cut.
    _, cut = surgery.shrink(whole.config, whole.weights, ticket)
    np.testing.assert_allclose(
        part.weights["layer_0_query/kernel"],
        cut["layer_0_query/kernel"],
        atol=1e-8,
    )
    status, out, err = tiny_runs.run_command(
        *("evaluate", f"--init_checkpoint={tmp_path}/part"),
        *(f"--data_dir={place}/data", "--max_seq_length=16"),
    )
    assert status == 0, err
    assert "eval_accuracy" in out


def test_a_ticket_is_rewound_to_a_step_of_a_training(place, tmp_path):
    assert tickets(place, f"--output_dir={tmp_path}/t", "--levels=60")[0] == 0
    status, _, err = train(
        *(place, f"--output_dir={tmp_path}/early", "--keep=last"),
        # No evaluation is better than the first.
        *("--max_steps=2", "--eval_steps=1", "--learning_rate=0"),
        *("--lr_schedule=constant", "--warmup_proportion=0"),
    )
    assert status == 0, err
    status, _, err = train(
        *(place, f"--output_dir={tmp_path}/part", "--learning_rate=1e-12"),
        f"--init_checkpoint={tmp_path}/early",
        f"--structure={tmp_path}/t/winning_60.json",
    )
    assert status == 0, err
    results = read_results(tmp_path / "early" / "eval_results.txt")
    assert results["global_step"] == 2
    early = load_checkpoint(str(tmp_path / "early"))
    ticket = Structure.load(tmp_path / "part" / "structure.json")
    _, cut = surgery.shrink(early.config, early.weights, ticket)
    part = load_checkpoint(str(tmp_path / "part"))
    assert cut.keys() == part.weights.keys()
    for name, array in part.weights.items():
        np.testing.assert_allclose(array, cut[name], atol=1e-8, err_msg=name)


def test_tickets_are_not_overwritten_by_what_they_train(place, tmp_path):
    folder = tmp_path / "t"
    assert tickets(place, f"--output_dir={folder}", "--levels=20")[0] == 0
    before = contents(folder)
    status, _, err = train(
        *(place, f"--structure={folder}/winning_20.json", "--overwrite"),
        f"--output_dir={folder}",
    )
    assert status == 2
    assert "would be written over" in err
    assert contents(folder) == before


def test_a_ticket_says_where_it_is_from(place, tmp_path):
    folder = tmp_path / "t"
    assert tickets(place, f"--output_dir={folder}", "--levels=20")[0] == 0
    ticket = Structure.load(folder / "random_20.json")
    assert ticket.about == {
        **{"kind": "random", "level": "1/0", "seed": 1},
        **{"checkpoint": f"{place}/model", "scores": f"{place}/sensitivity"},
    }


def test_tickets_are_united_and_turned_round(place, tmp_path):
    folder = tmp_path / "t"
    levels = ("--levels=3/0", "--kinds=winning,losing")
    assert tickets(place, f"--output_dir={folder}", *levels)[0] == 0
    files = [folder / "winning_3_0.json", folder / "losing_3_0.json"]
    Structure((4, 4), (32, 32), ((0, 1), (2,)), ((), range(32))).save(
        folder / "half.json"
    )
    status, out, err = combine(
        *(place, f"--output_dir={tmp_path}/both"),
        f"--union={files[0]},{files[1]}",
        f"--complement={folder}/half.json",
    )
    assert status == 0, err
    first, second = map(Structure.load, files)
    both = Structure.load(tmp_path / "both" / "union.json")
    for layer in range(2):
        kept = {*first.heads[layer], *second.heads[layer]}
        assert set(both.heads[layer]) == kept
    assert both.about["of"] == [str(file) for file in files]
    other = Structure.load(tmp_path / "both" / "complement.json")
    assert other.heads == ((2, 3), (0, 1, 3))
    assert list(map(len, other.neurons)) == [32, 0]
    assert "complement.json: 3 of 8 heads and 1 block left out" in out


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--union=a.json", "--union takes two tickets or more"),
        ("--union=a.json,b.json", "Cannot read a.json"),
        ("--union=P/small.json,P/other.json", "Only structures of one model"),
        ("--complement=a.json", "Cannot read a.json"),
        ("--complement=P/small.json", "The structure is of a model with heads"),
        ("--complement=P/other.json", "other.json has no complement: Layer 0"),
    ],
)
def test_tickets_that_do_not_go_together_are_refused(
    place, tmp_path, flag, message
):
    Structure((4,), (32,), ((0,),), ((),)).save(tmp_path / "small.json")
    Structure((4, 4), (32, 32), (range(4), (0,)), ((), ())).save(
        tmp_path / "other.json"
    )
    flag = flag.replace("P/", f"{tmp_path}/")
    status, _, err = combine(place, f"--output_dir={tmp_path}/t", flag)
    assert status == 2
    assert message in err
    assert not (tmp_path / "t" / "DONE").exists()


def test_a_structure_of_another_shape_is_not_trained(place, tmp_path):
    path = tmp_path / "other.json"
    Structure((4,), (32,), ((0, 2),), ((),)).save(path)
    status, _, err = train(
        place, f"--output_dir={tmp_path}/run", f"--structure={path}"
    )
    assert status == 2
    assert "The structure is of a model with heads [4]" in err
    assert not (tmp_path / "run").exists() or not any(
        (tmp_path / "run").iterdir()
    )
    path.write_text(
        json.dumps(
            {
                "num_heads": [4, 4],
                "intermediate_sizes": [32, 32],
                "heads": [[], [0]],
                "neurons": [[1], [1]],
            }
        )
    )
    status, _, err = train(
        place, f"--output_dir={tmp_path}/run", f"--structure={path}"
    )
    assert status == 2
    assert "Layer 0 must keep one head at least" in err
    ticket = Structure(
        *((4, 4), (32, 32), ((0,), ()), ((), ())), {"kind": "winning"}
    )
    ticket.save(path)
    status, _, err = train(
        place, f"--output_dir={tmp_path}/run", f"--structure={path}"
    )
    assert status == 2
    assert "keeps no head of layer 1, but a ticket keeps one" in err
