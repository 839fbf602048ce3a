"""Reports name what each ratio is over, in every format."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
import tiny_bert
import tiny_runs

from bert_pruning.compression import costs
from bert_pruning.delivery import curves
from bert_pruning.delivery import fronts
from bert_pruning.delivery import report
from bert_pruning.modeling import bert
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.modeling.checkpoints import save_huggingface
from bert_pruning.training.summaries import Summaries

TASK = {
    "name": "SST-2",
    "labels": ["0", "1"],
    "primary_metric": "eval_accuracy",
}
CONFIG = tiny_runs.tiny_config(num_layers=2)
# Two layers of 4 * 16 * 16 + 2 * 16 * 32 weights.
ENCODER = 2 * (4 * 256 + 2 * 512)


@pytest.fixture(scope="module")
def sparse_run(tmp_path_factory):
    """A finished run whose first layer is three quarters zeros."""
    path = tmp_path_factory.mktemp("runs") / "sparse"
    weights = tiny_bert.random_weights(CONFIG, 0, 2)
    for name in bert.encoder_kernels(CONFIG)[:6]:
        weights[name][np.arange(len(weights[name])) % 4 > 0] = 0.0
    save_huggingface(path, CONFIG, weights, tiny_runs.VOCABULARY, True, TASK)
    (path / "eval_results.txt").write_text(
        "eval_accuracy = 0.875\neval_time = 1.5\nsparsity = 0.375\n"
    )
    (path / "DONE").write_text("")
    return path


@pytest.fixture(scope="module")
def dense_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "dense"
    return tiny_runs.write_checkpoint(path, num_layers=2)


def total_size():
    weights = tiny_bert.random_weights(CONFIG, 0, 2)
    return sum(array.size for array in weights.values())


def test_the_three_ratios_are_of_three_things(sparse_run):
    measured = report.measure(load_checkpoint(sparse_run))
    zeros = 3 * ENCODER // 8
    assert len(measured.matrices) == 12
    assert measured.pruned == costs.Count(ENCODER // 2, zeros)
    assert measured.encoder == costs.Count(ENCODER, zeros)
    assert measured.whole.size == total_size()
    # Biases of random weights are not zero.
    assert measured.whole.zeros == zeros
    assert measured.pruned.ratio == 4.0
    assert measured.raw_bytes == 4 * total_size()
    assert measured.compressed_bytes < measured.raw_bytes
    # What is kept, and a bit for each weight of the first layer.
    kept = 4 * (total_size() - zeros)
    assert measured.packed_bytes == kept + ENCODER // 2 // 8


def test_text_lists_every_matrix_and_says_what_a_ratio_is_over(sparse_run):
    status, out, err = tiny_runs.run_command(
        "report", f"--init_checkpoint={sparse_run}"
    )
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0] == str(sparse_run)
    (query,) = [line for line in lines if " layer_0_query " in line]
    assert "256 weights" in query
    assert "64 kept" in query
    assert "sparsity 0.750000" in query
    assert "Over the 6 pruned matrices: 1,536 of 2,048" in out
    assert "sparsity 0.7500000, ratio x4.00" in out
    assert "Over all 12 encoder kernels: 1,536 of 4,096" in out
    assert f"Over the whole model: 1,536 of {total_size():,}" in out
    assert f"Stored: {4 * total_size():,} bytes raw" in out
    packed = 4 * (total_size() - 3 * ENCODER // 8) + ENCODER // 16
    assert f"sparse matrices: {packed:,} bytes, x" in out
    assert "eval_accuracy = 0.875" in lines


def test_matrices_beyond_the_encoder_are_pruned_ones_too(tmp_path):
    weights = tiny_bert.random_weights(CONFIG, 0, 2)
    weights["pooler/kernel"][:8] = 0.0
    save_huggingface(
        tmp_path, CONFIG, weights, tiny_runs.VOCABULARY, True, TASK
    )
    measured = report.measure(load_checkpoint(tmp_path))
    measured.matrices["layer_0_query"] = costs.Count(1000, 1)  # By rounding.
    assert measured.pruned == costs.Count(256, 128)
    assert measured.encoder.zeros == 1
    text = report.as_text([measured])
    assert "Over the 1 pruned matrices, pooler among them: 128 of 256" in text
    assert "Over all 12 encoder kernels: 1 of " in text
    assert "  pooler " in text
    assert "classifier" not in text
    values = measured.to_dict()
    assert values["pruned_matrices"]["names"] == ["pooler"]
    assert values["matrices"]["pooler"]["zeros"] == 128
    assert values["encoder_kernels"]["zeros"] == 1


def test_json_holds_all_of_it(sparse_run):
    status, out, err = tiny_runs.run_command(
        *("report", f"--init_checkpoint={sparse_run}", "--format=json")
    )
    assert status == 0, err
    (values,) = json.loads(out)
    assert values["matrices"]["layer_0_output"] == {
        **{"size": 512, "zeros": 384},
        **{"sparsity": 0.75, "ratio": 4.0},
    }
    assert values["pruned_matrices"]["ratio"] == 4.0
    assert values["encoder_kernels"]["sparsity"] == 0.375
    assert values["whole_model"]["size"] == total_size()
    packed = 4 * (total_size() - 3 * ENCODER // 8) + ENCODER // 16
    assert values["packed_bytes"] == packed
    assert values["results"]["eval_accuracy"] == 0.875
    assert values["path"] == str(sparse_run)


def test_markdown_compares_checkpoints(sparse_run, dense_checkpoint):
    status, out, err = tiny_runs.run_command(
        "report",
        f"--init_checkpoint={sparse_run},{dense_checkpoint}",
        "--format=markdown",
    )
    assert status == 0, err
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in out.splitlines()
    ]
    assert len(rows) == 4
    assert len({len(row) for row in rows}) == 1
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    assert [row["checkpoint"] for row in table] == [
        *(str(sparse_run), dense_checkpoint)
    ]
    assert [row["zeros in pruned matrices"] for row in table] == [
        *("0.7500", "none")
    ]
    assert [row["zeros in encoder kernels"] for row in table] == [
        *("0.3750", "0.0000")
    ]
    assert [row["encoder kernels, times smaller"] for row in table] == [
        *("1.6", "1.0")
    ]
    packed = [float(row["MB packed"]) for row in table]
    assert packed[1] == float(table[1]["MB raw"])
    assert [row["eval_accuracy"] for row in table] == ["0.8750", ""]
    assert "eval_time" not in rows[0]


def test_all_zeros_are_still_json(tmp_path):
    weights = {
        name: np.zeros_like(array)
        for name, array in tiny_bert.random_weights(CONFIG).items()
    }
    save_huggingface(
        tmp_path, CONFIG, weights, tiny_runs.VOCABULARY, True, None
    )
    measured = report.measure(load_checkpoint(tmp_path))
    values = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert values["whole_model"]["ratio"] is None
    assert "xinf" in report.as_text([measured])


def test_an_unfinished_run_has_no_results_yet(sparse_run, tmp_path):
    shutil.copytree(sparse_run, tmp_path / "run")
    (tmp_path / "run" / "DONE").unlink()
    status, out, _ = tiny_runs.run_command(
        "report", f"--init_checkpoint={tmp_path}/run"
    )
    assert status == 0
    assert "eval_accuracy" not in out


def test_bad_input_is_named(tmp_path):
    for flags, message in (
        ([], "--init_checkpoint"),
        ([f"--init_checkpoint={tmp_path}/none"], f"{tmp_path}/none"),
        ([f"--init_checkpoint={tmp_path}"], f"{tmp_path}"),
    ):
        status, _, err = tiny_runs.run_command("report", *flags)
        assert status == 2
        assert message in err
        assert "Traceback" not in err


# === Shapes, latencies and pictures ===


def test_the_shape_and_its_operations_are_told(tmp_path):
    config = tiny_bert.uneven_config()
    weights = tiny_bert.random_weights(config)
    save_huggingface(tmp_path, config, weights, tiny_bert.vocabulary(), True)
    measured = report.measure(load_checkpoint(tmp_path))
    text = report.as_text([measured])
    assert "a1-2_l2_f5-12_e3; heads by layer 2 1; neurons 5 12" in text
    assert f"Encoder: {costs.encoder_macs(config, 128):,} mult" in text
    values = measured.to_dict()
    assert values["shape"]["num_heads"] == [2, 1]
    assert values["encoder_macs_128"] == costs.encoder_macs(config, 128)
    assert "| a1-2_l2_f5-12_e3 |" in report.as_markdown([measured])


def run_report(*flags):
    return tiny_runs.run_command("report", *flags)


def test_latencies_are_measured_for_each_setting(sparse_run, dense_checkpoint):
    flags = ("--latency", "--batch_sizes=1,3", "--lengths=5,16")
    both = f"--init_checkpoint={sparse_run},{dense_checkpoint}"
    status, out, err = run_report(both, *flags, "--format=json")
    assert status == 0, err
    for values in json.loads(out):
        found = values["latencies"]
        assert [(f["batch_size"], f["length"]) for f in found] == [
            *((1, 5), (3, 5), (1, 16), (3, 16))
        ]
        assert all(f["milliseconds"] > 0 for f in found)
    one = f"--init_checkpoint={sparse_run}"
    status, out, _ = run_report(one, *flags, "--format=markdown")
    assert "batch 3 of 16 tokens" in out
    assert out.count(" ms |") == 4


def test_a_plot_is_a_picture_of_all_runs(
    sparse_run, dense_checkpoint, tmp_path
):
    for runs, columns, panels in (
        # Heads, neurons, and quality against four costs.
        (f"{sparse_run},{sparse_run}", 3, 6),
        (dense_checkpoint, 2, 2),
    ):
        path = tmp_path / "new" / f"{columns}.png"
        status, _, err = run_report(
            f"--init_checkpoint={runs}", f"--plot={path}"
        )
        assert status == 0, err
        width, height = png_size(path)
        assert (width, height) == panels_size(columns, panels)


def test_runs_of_two_tasks_have_no_quality_in_common(sparse_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(sparse_run, other)
    config = json.loads((other / "config.json").read_text())
    config["bert_pruning"]["task"]["name"] = "MRPC"
    (other / "config.json").write_text(json.dumps(config))
    path = tmp_path / "kept.png"
    run_report(f"--init_checkpoint={sparse_run},{other}", f"--plot={path}")
    assert png_size(path) == panels_size(2, 2)


def test_a_page_holds_pictures_tables_and_all_that_is_known(
    sparse_run, dense_checkpoint, tmp_path
):
    path = tmp_path / "page.html"
    status, out, err = run_report(
        f"--init_checkpoint={sparse_run},{dense_checkpoint}",
        *(f"--plot={path}", "--format=markdown"),
    )
    assert status == 0, err
    page = path.read_text()
    picture = re.search(r"data:image/png;base64,([^\"]+)", page)[1]
    (tmp_path / "page.png").write_bytes(base64.b64decode(picture))
    assert png_size(tmp_path / "page.png") == panels_size(2, 2)
    # What the table of Markdown says.
    for cell in out.splitlines()[2].strip("| ").split(" | "):
        assert f"<td>{cell}</td>" in page
    assert "layer_1_query" in page
    # In one file: nothing is fetched.
    assert "http" not in page and "<script" not in page


def test_the_loss_of_a_run_is_drawn(sparse_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(sparse_run, run)
    with Summaries(run / "events") as summaries:
        for step, loss in ((10, 0.5), (20, 0.25)):
            summaries.scalars({"train/loss": loss}, step)
    with Summaries(run / "events") as resumed:
        resumed.scalars({"train/loss": 0.125}, 20)
    assert curves.read_losses(str(run)) == ([10, 20], [0.5, 0.125])
    assert curves.read_losses(str(sparse_run)) is None
    path = tmp_path / "loss.png"
    run_report(f"--init_checkpoint={run}", f"--plot={path}")
    assert png_size(path) == panels_size(3, 7, models=1)


def test_the_front_is_what_nothing_beats():
    points = [(3, 0.9), (1, 0.5), (2, 0.4), (2, 0.7), (4, 0.9), (1, 0.3)]
    assert fronts.pareto_front(points) == [1, 3, 0]


def panels_size(columns, panels, models=None):
    """Pixels of a picture of so many panels and a legend below."""
    models = models or columns - 1
    rows, lines = -(-panels // columns), -(-models // columns)
    return round(552 * columns), round(120 * (4.0 * rows + 0.25 * lines))


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--plot=kept.doc"], "must end in .png, .svg, .pdf or .html"),
        (["--plot=/dev/null/kept.png"], "Cannot write to /dev/null"),
        (["--latency", "--lengths=many"], "--lengths needs whole numbers"),
        (["--latency", "--batch_sizes=0"], "--batch_sizes must be positive"),
        (["--latency", "--lengths=17"], "at most 16 tokens"),
        (["--lengths=8"], "--lengths needs --latency"),
    ],
)
def test_what_cannot_be_reported_is_refused(dense_checkpoint, flags, message):
    status, _, err = run_report(f"--init_checkpoint={dense_checkpoint}", *flags)
    assert status == 2
    assert message in err
