"""Models are measured side by side, whatever runs them."""

import dataclasses
import importlib.util
import json
import shutil

import numpy as np
import pytest
import tiny_bert
import tiny_runs

from bert_pruning.delivery import benchmark
from bert_pruning.delivery import latency
from bert_pruning.delivery import runners
from bert_pruning.modeling.checkpoints import save_huggingface

TASK = {
    "name": "SST-2",
    "labels": ["0", "1"],
    "primary_metric": "eval_accuracy",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Returns a folder with a run and what it was exported to."""
    folder = tmp_path_factory.mktemp("place")
    config = tiny_runs.tiny_config()
    weights = tiny_bert.random_weights(config, 0, 2)
    save_huggingface(
        *(str(folder / "run"), config, weights, tiny_runs.VOCABULARY, True),
        task=TASK,
    )
    (folder / "run" / "eval_results.txt").write_text("eval_accuracy = 0.75\n")
    (folder / "run" / "DONE").write_text("")
    for name in ("tflite", "saved_model"):
        status, _, err = tiny_runs.run_command(
            *("export", f"--init_checkpoint={folder}/run"),
            *(f"--format={name}", f"--output_dir={folder}/{name}"),
            "--max_seq_length=16",
        )
        assert status == 0, err
    uneven = dataclasses.replace(config, embedding_rank=3)
    weights = tiny_bert.random_weights(uneven, 0, 2)
    save_huggingface(
        *(str(folder / "uneven"), uneven, weights, tiny_runs.VOCABULARY, True)
    )
    (folder / "broken").mkdir()
    (folder / "broken" / "export.json").write_text('{"format"')
    # As if it had been scored.
    path = folder / "tflite" / "export.json"
    found = json.loads(path.read_text())
    path.write_text(
        json.dumps({**found, "split": "dev", "eval_accuracy_file": 0.5})
    )
    return folder


def run_benchmark(*flags, status=0):
    found, out, err = tiny_runs.run_command("benchmark", *flags)
    assert found == status, err
    return out if status == 0 else err


def test_runs_and_exports_are_measured_side_by_side(place, tmp_path):
    names = [f"{place}/{name}" for name in ("run", "tflite", "saved_model")]
    picture = tmp_path / "new" / "picture.png"
    out = run_benchmark(
        f"--models={','.join(names)}",
        *("--batch_sizes=1,3", "--lengths=5", "--rounds=4", "--threads=1"),
        *("--format=json", f"--plot={picture}"),
    )
    rows = json.loads(out)
    assert [row["model"] for row in rows] == names
    for row in rows:
        first, second = row["latencies"]
        assert (first["batch_size"], second["batch_size"]) == (1, 3)
        for found in row["latencies"]:
            assert found["length"] == 5
            assert 0 < found["milliseconds"] <= found["milliseconds_95"]
    sizes = [row["bytes"] for row in rows]
    weights = place / "run" / "model.safetensors"
    content = place / "tflite" / "model.tflite"
    assert sizes[:2] == [weights.stat().st_size, content.stat().st_size]
    qualities = [row["quality"] for row in rows]
    scored = {"metric": "eval_accuracy", "value": 0.75, "task": "SST-2"}
    assert qualities[0] == scored
    assert qualities[1]["value"] == 0.5 and qualities[2] is None
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", ["run", "tflite", "saved_model"])
def test_a_runner_gives_what_the_model_does(place, name):
    reference = runners.Runner(f"{place}/run", 1)
    runner = runners.Runner(f"{place}/{name}", 1)
    batch = list(
        tiny_bert.random_inputs(tiny_runs.tiny_config(), 3, 9).values()
    )
    np.testing.assert_allclose(
        runner.ids(batch), reference.ids(batch), atol=1e-5
    )
    texts = ["a good film", "it was bad", ""]
    expected = reference.texts(texts)
    found = runner.texts(texts)
    if name == "saved_model":
        found = found["probabilities"]
        expected = np.exp(expected) / np.exp(expected).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("program", runners.PEERS)
def test_other_programs_give_what_the_model_does(place, program):
    for package in ("torch", "transformers", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    reference = runners.Runner(f"{place}/run", 1)
    runner = runners.Runner(f"{program}:{place}/run", 1)
    for rows, length in ((1, 4), (3, 9)):
        config = tiny_runs.tiny_config()
        batch = list(tiny_bert.random_inputs(config, rows, length).values())
        np.testing.assert_allclose(
            runner.ids(batch), reference.ids(batch), atol=1e-5
        )
    texts = ["a good film", "it was bad"]
    np.testing.assert_allclose(
        runner.texts(texts), reference.texts(texts), atol=1e-5
    )


def test_a_table_says_how_much_faster_than_the_first():
    setting = latency.Setting(1, 64)

    def row(name, milliseconds, value):
        found = latency.Latency(setting, milliseconds, 2 * milliseconds)
        measured = latency.Measured(name, 5_000_000, (found,))
        quality = value and benchmark.Quality("eval_mcc", value)
        return benchmark.Row(measured, quality)

    text = benchmark.as_markdown([row("a", 10, 0.5), row("b", 2.5, None)])
    lines = text.splitlines()
    assert lines[0] == "| model | mcc | MB | 1 of 64, ms (95 %), a second |"
    assert lines[2] == "| a | 0.5000 | 5.0 | 10.00 (20.00), 100 |"
    assert lines[3] == "| b | | 5.0 | 2.50 (5.00), 400 x4.0 |"


def test_what_is_scored_on_another_task_is_not_drawn(tmp_path):
    setting = latency.Setting(1, 64)

    def row(name, task):
        found = latency.Latency(setting, 10.0, 20.0)
        measured = latency.Measured(name, 5_000_000, (found,))
        quality = task and benchmark.Quality("eval_accuracy", 0.5, task)
        return benchmark.Row(measured, quality)

    rows = [row("a", None), row("b", "SST-2"), row("c", "RTE")]
    rows.append(row("d", "SST-2"))
    assert benchmark.draw(rows, str(tmp_path / "x.png")) == ["a", "c"]


def test_the_weights_that_are_loaded_are_counted(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "run" / "pytorch_model.bin").write_bytes(bytes(1000))
    (tmp_path / "run" / "training_args.bin").write_bytes(bytes(1000))
    weights = tmp_path / "run" / "model.safetensors"
    runner = runners.Runner(str(tmp_path / "run"), 1)
    assert runner.num_bytes == weights.stat().st_size


def test_as_many_rounds_count_as_were_asked_for(monkeypatch):
    asked = []

    class Worker:
        num_bytes = 1

        def __init__(self, name, _):
            self.name = name

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def measure(self, setting, rounds):
            asked.append((self.name, setting.length))
            return [0.001] * rounds

    monkeypatch.setattr(latency, "_Worker", Worker)
    settings = [latency.Setting(1, 8), latency.Setting(1, 16)]
    found = latency.measure_latencies(["a", "b"], settings, 1, rounds=10)
    # They take turns.
    assert asked[:4] == [("a", 8), ("b", 8)] * 2
    assert [each.name for each in found] == ["a", "b"]
    assert found[0].latencies[0].milliseconds == pytest.approx(1.0)
    assert found[0].latencies[0].examples_per_second == pytest.approx(1000)


def test_texts_have_as_many_words_as_tokens_are_asked_for():
    texts = latency._make_texts(latency.Setting(3, 10, True))
    assert [len(text.split()) for text in texts] == [8, 8, 8]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--models"),
        (["--models=nowhere"], "There is no folder nowhere"),
        (["--models=PLACE/run", "--lengths=many"], "whole numbers"),
        (["--models=PLACE/run", "--plot=x.doc"], "--plot must end in"),
        (["--models=PLACE/saved_model", "--plot=x.png"], "scored"),
        (["--models=pytorch:PLACE/tflite"], "checkpoints"),
        (["--models=PLACE/run", "--lengths=999"], "takes up to 16 tokens"),
        (
            [
                *("--models=PLACE/saved_model", "--lengths=17"),
                "--with_tokenization",
            ],
            "takes up to 16 tokens",
        ),
        (
            ["--models=PLACE/run", "--lengths=2", "--with_tokenization"],
            "at least 3",
        ),
        (["--models=pytorch:PLACE/uneven"], "--format=huggingface first"),
        (["--models=PLACE/broken"], "is not JSON"),
    ],
)
def test_what_cannot_be_measured_is_refused(place, flags, message):
    flags = [flag.replace("PLACE", str(place)) for flag in flags]
    assert message in run_benchmark(*flags, status=2)


def test_a_program_that_is_not_installed_is_named(place, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = run_benchmark(f"--models=onnx:{place}/run", status=2)
    assert "package torch" in error and "bert_pruning[peers]" in error
