"""8-bit arithmetic: the layer, its training and the file it ends in."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
import tiny_bert
import tiny_runs
from tiny_int8 import CONFIG
from tiny_int8 import INT8
from tiny_int8 import logits_of
from tiny_int8 import normal
from tiny_int8 import observed_weights

from bert_pruning.compression import surgery
from bert_pruning.compression.structure import Structure
from bert_pruning.delivery import report
from bert_pruning.delivery import restoring
from bert_pruning.delivery import tflite
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.modeling.checkpoints import save_huggingface
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.quantization import Quantization
from bert_pruning.modeling.quantization import as_stored
from bert_pruning.modeling.quantization import is_range
from bert_pruning.modeling.quantized_layers import QuantizedDense
from bert_pruning.modeling.quantized_layers import round_weights
from bert_pruning.training.step import INPUT_NAMES


def make_dense(inputs, **options):
    """Returns a layer that has seen some inputs, with random weights."""
    layer = QuantizedDense(4, **options)
    layer.build(inputs.shape)
    layer.kernel.assign(normal(inputs.shape[-1], 4, seed=1))
    layer.bias.assign(normal(4, seed=2))
    layer(inputs, training=True)
    return layer


# === Rounding ===


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_weights_are_stored_as_the_whole_numbers_they_are_rounded_to(
    granularity,
):
    weights = normal(50, 3) * np.float32([1.0, 10.0, 0.0])
    axis = 0 if granularity == "per_channel" else None
    scale = np.abs(weights).max(axis, keepdims=True) / 127
    quantization = Quantization(granularity)
    levels = as_stored("layer_0_query/kernel", weights, quantization)
    assert levels.dtype == np.int8
    np.testing.assert_array_equal(
        levels * scale, round_weights(tf.constant(weights), granularity)
    )
    for name in ("layer_0_query/bias", "classifier/kernel"):
        assert as_stored(name, weights, quantization) is weights
    table = "word_embeddings/embeddings"
    assert as_stored(table, weights, quantization) is weights
    quantization = dataclasses.replace(quantization, embeddings=True)
    # One scale for the whole table.
    assert np.abs(as_stored(table, weights, quantization)).max(0)[0] < 127


def test_a_column_takes_255_values_up_to_its_largest():
    weights = normal(50, 3) * np.float32([1.0, 10.0, 0.0])
    rounded = round_weights(tf.constant(weights), "per_channel").numpy()
    for column in range(2):
        scale = np.abs(weights[:, column]).max() / 127
        levels = rounded[:, column] / scale
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
        assert np.abs(levels).max() == pytest.approx(127)
        errors = np.abs(rounded - weights)[:, column]
        assert errors.max() <= 0.5001 * scale
    assert not rounded[:, 2].any()


def test_a_tensor_has_one_scale():
    weights = normal(50, 2) * np.float32([1.0, 10.0])
    rounded = round_weights(tf.constant(weights), "per_tensor").numpy()
    levels = rounded / (np.abs(weights).max() / 127)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)


def test_zeros_stay_zeros():
    weights = normal(20, 5)
    weights[::2] = 0.0
    for granularity in ("per_channel", "per_tensor"):
        rounded = round_weights(tf.constant(weights), granularity).numpy()
        assert not rounded[::2].any()


def test_the_gradient_passes_through_the_rounding_of_weights():
    weights = tf.Variable(normal(6, 4))
    with tf.GradientTape() as tape:
        rounded = round_weights(weights, "per_channel")
        loss = tf.reduce_sum(rounded * normal(6, 4, seed=3))
    gradient = tape.gradient(loss, weights).numpy()
    np.testing.assert_allclose(gradient, normal(6, 4, seed=3), rtol=1e-6)


# === The layer ===


def test_the_product_is_that_of_whole_numbers():
    inputs = normal(7, 5)
    layer = make_dense(inputs)
    low, high = layer.input_range.numpy()
    x_scale = (high - low) / 255
    x = np.round(inputs / x_scale)
    kernel = layer.kernel.numpy()
    w_scale = np.abs(kernel).max(0) / 127
    w = np.round(kernel / w_scale)
    bias = np.round(layer.bias.numpy() / (x_scale * w_scale))
    y = (x @ w + bias) * (x_scale * w_scale)
    limits = layer.output_limits.numpy()
    expected = np.round(y / limits * 127) / 127 * limits
    actual = layer(inputs).numpy()
    # Within a step: the zero point of the inputs is rounded too.
    assert (np.abs(actual - expected) <= 1.01 * limits / 127).all()
    levels = actual / limits * 127
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)


def test_the_first_batch_begins_a_range_and_others_move_it():
    inputs = normal(8, 5)
    layer = make_dense(inputs)
    low, high = inputs.min(), inputs.max()
    np.testing.assert_allclose(layer.input_range.numpy(), [low, high])
    layer(3 * inputs, training=True)
    moved = [1.02 * low, 1.02 * high]
    np.testing.assert_allclose(layer.input_range.numpy(), moved, rtol=1e-5)
    layer(9 * inputs)
    np.testing.assert_allclose(layer.input_range.numpy(), moved, rtol=1e-5)


def test_a_range_includes_zero():
    layer = make_dense(np.abs(normal(8, 5)) + 1.0)
    assert layer.input_range.numpy()[0] == 0.0


def test_inputs_and_weights_that_are_all_zero_are_no_trouble():
    for activated in (False, True):
        layer = make_dense(np.zeros((3, 5), np.float32), activated=activated)
        layer.kernel.assign(tf.zeros_like(layer.kernel))
        outputs = layer(normal(3, 5), training=True).numpy()
        bias = np.broadcast_to(layer.bias.numpy(), outputs.shape)
        np.testing.assert_allclose(outputs, bias, atol=0.02)


def test_a_batch_without_rows_moves_nothing():
    layer = make_dense(normal(8, 5))
    before = [array.copy() for array in layer.get_weights()]
    layer(np.zeros((0, 5), np.float32), training=True)
    for one, other in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_inputs_beyond_the_range_have_no_gradient():
    layer = make_dense(normal(8, 5))
    inputs = tf.Variable([[0.5, 100.0, -0.5, -100.0, 0.1]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(inputs))
    gradient = tape.gradient(loss, inputs).numpy()[0]
    assert not gradient[[1, 3]].any()


def test_each_output_channel_has_its_own_scale():
    layer = make_dense(normal(40, 5))
    layer.kernel.assign(layer.kernel * [1.0, 1.0, 1.0, 1000.0])
    for _ in range(2000):
        layer(normal(40, 5), training=True)
    narrow = np.unique(layer(normal(40, 5)).numpy()[:, 0])
    assert len(narrow) > 25
    activated = make_dense(normal(40, 5), activated=True)
    assert activated.output_range.shape == (2,)
    assert not hasattr(activated, "output_limits")


def test_ranges_are_not_trained():
    layer = make_dense(normal(8, 5))
    assert [v.name for v in layer.trainable_variables] == ["kernel:0", "bias:0"]


# === The model ===


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_a_model_in_8_bits_is_near_the_whole_one(granularity):
    config = dataclasses.replace(
        CONFIG, quantization=Quantization(weights=granularity, embeddings=True)
    )
    weights = observed_weights(config)
    inputs = tiny_bert.random_inputs(config, 6, 9, seed=1)
    rounded = logits_of(config, weights, inputs)
    plain = dataclasses.replace(config, quantization=None)
    whole = logits_of(
        plain, {n: a for n, a in weights.items() if not is_range(n)}, inputs
    )
    assert (rounded != whole).any()
    np.testing.assert_allclose(rounded, whole, atol=0.1)


def test_a_model_that_has_observed_nothing_says_so():
    inputs = tiny_bert.random_inputs(CONFIG, 2, 4)
    weights = bert.get_weights(bert.build_model(CONFIG, 2))
    assert np.isnan(logits_of(CONFIG, weights, inputs)).all()


def test_a_config_keeps_what_computes_in_8_bits():
    config = dataclasses.replace(
        CONFIG, quantization=Quantization("per_tensor", ("layer_0_*",), True)
    )
    values = json.loads(json.dumps(config.to_dict()))
    assert BertConfig.from_dict(values) == config
    values["quantization"]["bits"] = 4
    with pytest.raises(UserError, match="bits"):
        BertConfig.from_dict(values)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": "per_row"},
        *({"layers": wrong} for wrong in ((), (3,), "pooler")),
    ],
)
def test_an_unknown_quantisation_is_refused(wrong):
    with pytest.raises(UserError, match="Received"):
        Quantization(**wrong)


def test_saving_and_loading_changes_nothing(tmp_path):
    weights = observed_weights(CONFIG)
    words = tiny_bert.vocabulary()
    save_huggingface(str(tmp_path), CONFIG, weights, words, True)
    loaded = load_checkpoint(str(tmp_path))
    assert loaded.config == CONFIG
    inputs = tiny_bert.random_inputs(CONFIG, 4, 7)
    np.testing.assert_array_equal(
        logits_of(CONFIG, weights, inputs),
        logits_of(loaded.config, loaded.weights, inputs),
    )


def test_a_head_is_cut_out_with_its_ranges():
    weights = observed_weights(CONFIG)
    # Without the second head of the first layer.
    for name in ("query", "key", "value"):
        weights[f"layer_0_{name}/kernel"][:, 4:] = 0.0
        weights[f"layer_0_{name}/bias"][4:] = 0.0
    weights["layer_0_attention_output/kernel"][4:] = 0.0
    structure = Structure(
        *((2, 2), (12, 12), ((0,), (0, 1)), (range(12), range(12)))
    )
    config, smaller = surgery.shrink(CONFIG, weights, structure)
    assert smaller["layer_0_value/output_limits"].shape == (4,)
    inputs = tiny_bert.random_inputs(CONFIG, 4, 7)
    np.testing.assert_allclose(
        logits_of(config, smaller, inputs),
        logits_of(CONFIG, weights, inputs),
        atol=1e-6,
    )


def test_layers_keep_their_arithmetic_when_others_are_dropped():
    config = dataclasses.replace(
        CONFIG, quantization=Quantization(layers=("layer_1_*",))
    )
    weights = observed_weights(config)
    structure = Structure(*((2, 2), (12, 12), ((), (0, 1)), ((), range(12))))
    smaller, arrays = surgery.shrink(config, weights, structure)
    assert smaller.quantization.covers("layer_0_query")
    assert not smaller.quantization.covers("pooler")
    inputs = tiny_bert.random_inputs(CONFIG, 4, 7)
    assert np.isfinite(logits_of(smaller, arrays, inputs)).all()
    structure = Structure(*((2, 2), (12, 12), ((0, 1), ()), (range(12), ())))
    smaller, arrays = surgery.shrink(config, weights, structure)
    assert smaller.quantization is None
    assert not any(map(is_range, arrays))
    structure = dataclasses.replace(
        structure, heads=((0, 1), (0, 1)), neurons=(range(5), range(12))
    )
    smaller, _ = surgery.shrink(CONFIG, observed_weights(CONFIG), structure)
    assert smaller.quantization == INT8


def test_a_new_projection_of_the_embeddings_is_whole():
    config = dataclasses.replace(
        CONFIG, quantization=Quantization(layers=("*",))
    )
    weights = observed_weights(config)
    for _ in range(2):
        config, weights = surgery.factorize_embeddings(config, weights, 3)
        assert not config.quantization.covers("embedding_projection")
        assert config.quantization.covers("pooler")
        inputs = tiny_bert.random_inputs(CONFIG, 4, 7)
        assert np.isfinite(logits_of(config, weights, inputs)).all()


def test_only_what_is_a_table_in_8_bits_may_follow_a_layer():
    with pytest.raises(UserError, match="hidden_act .* 'tanh'"):
        tiny_bert.tiny_config(hidden_act="tanh", quantization=INT8)


def test_a_checkpoint_whose_ranges_are_lost_is_whole(tmp_path):
    weights = observed_weights(CONFIG)
    words = tiny_bert.vocabulary()
    save_huggingface(str(tmp_path), CONFIG, weights, words, True)
    path = tmp_path / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    kept = {n: a for n, a in arrays.items() if "output_" not in n}
    safetensors.numpy.save_file(kept, path)
    with pytest.raises(UserError, match="output_limits"):
        load_checkpoint(str(tmp_path))
    kept = {n: a for n, a in kept.items() if "_range" not in n}
    safetensors.numpy.save_file(kept, path)
    loaded = load_checkpoint(str(tmp_path))
    assert loaded.config.quantization is None
    assert "ranges" in loaded.notes[0]


# === The command line ===


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Returns a folder with data, a sparse run and one in 8 bits."""
    folder = tmp_path_factory.mktemp("place")
    tiny_runs.write_sst2(folder / "data")
    tiny_runs.write_checkpoint(folder / "dense")
    train(
        *(folder, "sparse", "--pruning=magnitude", "--sparsity=0.75"),
        "--pruning_end=0.5",
        init="dense",
    )
    train(folder, "int8", "--pruning=lock", "--quantize=int8", init="sparse")
    return folder


def train(place, name, *flags, init="sparse", status=0):
    found, _, err = tiny_runs.run_command(
        *("train", "--task_name=SST-2", f"--data_dir={place}/data"),
        f"--init_checkpoint={place}/{init}",
        *(f"--output_dir={place}/{name}", *tiny_runs.QUICK, *flags),
    )
    assert found == status, err
    return err


def export(place, name, *flags, output_dir, status=0):
    found, out, err = tiny_runs.run_command(
        *("export", f"--init_checkpoint={place}/{name}"),
        *(f"--output_dir={output_dir}", "--max_seq_length=16", *flags),
    )
    assert found == status, err
    return out if status == 0 else err


def test_a_sparse_model_stays_sparse_in_8_bits(place):
    before = load_checkpoint(f"{place}/sparse")
    after = load_checkpoint(f"{place}/int8")
    assert after.config.quantization == INT8
    model, _ = restoring.restore_model(after)
    for name in bert.encoder_kernels(after.config):
        zeros = before.weights[name] == 0
        assert zeros.mean() == pytest.approx(0.75, abs=0.01)
        np.testing.assert_array_equal(zeros, after.weights[name] == 0, name)
        kernel = bert.named_variables(model)[name]
        rounded = round_weights(kernel, "per_channel").numpy()
        assert not rounded[zeros].any()


def test_a_run_in_8_bits_is_evaluated_in_8_bits(place):
    status, out, err = tiny_runs.run_command(
        *("evaluate", f"--init_checkpoint={place}/int8"),
        *(f"--data_dir={place}/data", "--max_seq_length=16"),
    )
    assert status == 0, err
    results = (place / "int8" / "eval_results.txt").read_text().splitlines()
    loss = next(line for line in results if line.startswith("eval_loss"))
    printed = next(
        line for line in out.splitlines() if line.startswith("eval_loss")
    )
    assert float(printed.split()[-1]) == pytest.approx(
        float(loss.split()[-1]), rel=1e-5
    )


def test_training_goes_on_with_the_ranges(place):
    first = load_checkpoint(f"{place}/int8").weights
    quiet = ("--quantize=int8", "--learning_rate=1e-9")
    train(place, "more", *quiet, init="int8")
    name = "layer_0_query/input_range"
    moved = load_checkpoint(f"{place}/more").weights[name]
    assert (moved != first[name]).any()
    np.testing.assert_allclose(moved, first[name], rtol=0.1)


def test_without_the_flag_training_is_in_float32_again(place):
    err = train(place, "whole", init="int8")
    assert "without --quantize=int8" in err
    after = load_checkpoint(f"{place}/whole")
    assert after.config.quantization is None
    assert not any(map(is_range, after.weights))


def test_a_killed_run_resumes_to_the_same_ranges(place, tmp_path, untraced):
    flags = ["--quantize=int8", "--pruning=lock", "--max_steps=6"]
    train(place, "through", *flags)
    data = ("--task_name=SST-2", f"--data_dir={place}/data")
    process = tiny_runs.start_command(
        tmp_path / "log",
        *("train", *data, f"--init_checkpoint={place}/sparse"),
        f"--output_dir={place}/killed",
        *(*tiny_runs.QUICK, *flags, "--save_steps=1"),
        eagerly=True,
    )
    metrics = place / "killed" / "metrics.jsonl"
    while process.is_alive() and not metrics.exists():
        process.join(0.01)
    process.kill()
    process.join()
    if not (place / "killed" / "DONE").exists():
        train(place, "killed", *flags, "--save_steps=1")
    through = load_checkpoint(f"{place}/through").weights
    for name, array in load_checkpoint(f"{place}/killed").weights.items():
        np.testing.assert_array_equal(array, through[name], name)


@pytest.mark.parametrize(
    "flags",
    [
        ["--jit_compile"],
        ["--pruning=width"],
        ["--gradient_accumulation_steps=2", "--quantize_layers=*"],
    ],
)
def test_it_trains_with(place, flags, tmp_path):
    if "--pruning=width" in flags:
        flags = [*flags, "--keep_heads=1", "--pruning_end=0.5"]
    train(place, tmp_path.name, "--quantize=int8", *flags, init="dense")
    after = load_checkpoint(f"{place}/{tmp_path.name}")
    restoring.check_trained(after)


def test_a_teacher_in_8_bits_may_teach_in_half_precision(place):
    train(
        *(place, "taught", "--mixed_precision=bfloat16", "--distill=logits"),
        f"--teacher_checkpoint={place}/int8",
        init="dense",
    )
    assert (place / "taught" / "DONE").exists()


def test_a_sweep_is_not_one_in_8_bits(place, tmp_path):
    status, _, err = tiny_runs.run_command(
        *("run_all", f"--data_dir={place}/data", "--tasks=SST-2"),
        *(f"--init_checkpoint={place}/dense", "--quantize=int8"),
        f"--output_dir={tmp_path}/sweep",
    )
    assert status == 2
    assert "--quantize" in err


@pytest.fixture(scope="module")
def both(place):
    """Returns a run of two tasks in 8 bits."""
    folder = place / "data" / "STS-B"
    folder.mkdir()
    header = [f"c{i}" for i in range(7)] + ["sentence1", "sentence2", "score"]
    rows = [[*"0123456", "a film", "a plot", "2.5"]] * 8
    for split in ("train", "dev"):
        tiny_runs.write_table(folder / f"{split}.tsv", header, rows)
    train(
        *(place, "both", "--task_name=SST-2,STS-B", "--quantize=int8"),
        init="dense",
    )
    return place / "both"


def test_tasks_are_learnt_together_in_8_bits(both):
    restoring.check_trained(load_checkpoint(str(both)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quantize=int8", "--quantize_layers=layr_*"], "called layr_*"),
        (["--quantize_weights=per_tensor"], "needs --quantize=int8"),
        (["--quantize_embeddings"], "needs --quantize=int8"),
        (["--quantize=int4"], "quantize"),
        (["--quantize=int8", "--quantize_layers=mlm_*"], "called mlm_*"),
        (["--quantize=int8", "--quantize_layers=classifier"], "stay float32"),
        (
            ["--quantize=int8", "--strategy=mirrored", "--jit_compile"],
            "leave out --jit_compile",
        ),
        (["--quantize=int8", "--mixed_precision=bfloat16"], "float32"),
    ],
)
def test_wrong_flags_are_answered_before_training(place, flags, message):
    assert message in train(place, "wrong", *flags, status=2)
    assert not (place / "wrong" / "flags.cfg").exists()


@pytest.mark.parametrize(
    ("task", "head"), [("pretraining", "next_sentence"), ("SQuAD", "span")]
)
def test_heads_are_not_offered_for_8_bits(place, task, head):
    flags = (f"--task_name={task}", "--quantize=int8")
    error = train(
        *(place, "wrong", *flags, f"--quantize_layers={head}"), status=2
    )
    assert f"is called {head}; classifiers and the like stay float32" in error
    assert head not in error.split("The model has")[1]


def test_a_report_counts_8_bits(place):
    status, out, _ = tiny_runs.run_command(
        "report", "--format=json", f"--init_checkpoint={place}/int8"
    )
    assert status == 0
    (found,) = json.loads(out)
    assert found["bits"] == 8
    assert found["compression"]["kernels"] == pytest.approx(16.0, rel=0.02)
    config = load_checkpoint(f"{place}/int8").config
    plain = dataclasses.replace(config, quantization=None)
    weights = tiny_bert.random_weights(plain, num_outputs=2)
    size = sum(array.size for array in weights.values())
    assert found["whole_model"]["size"] == size
    status, out, _ = tiny_runs.run_command(
        "report", f"--init_checkpoint={place}/int8"
    )
    assert "weights of 8 bits: x16.0 its kernels" in out


def test_a_report_counts_what_is_stored_in_8_bits(place):
    checkpoint = load_checkpoint(f"{place}/int8")
    config = dataclasses.replace(
        checkpoint.config, quantization=Quantization(embeddings=True)
    )
    found = report.measure(dataclasses.replace(checkpoint, config=config))
    expected = raw = 0
    for name, array in checkpoint.weights.items():
        if is_range(name):
            continue
        raw += 4 * array.size
        if name in bert.encoder_kernels(config):
            expected += np.count_nonzero(array) + -(-array.size // 8)
        elif name in ("pooler/kernel", "word_embeddings/embeddings"):
            expected += array.size
        else:
            expected += 4 * array.size
    assert found.packed_bytes == expected
    assert found.raw_bytes == raw
    plain = dataclasses.replace(config, quantization=None)
    single = report.measure(dataclasses.replace(checkpoint, config=plain))
    assert found.compressed_bytes < 0.6 * single.compressed_bytes


# === The file ===


@pytest.mark.parametrize(
    "quantization",
    [
        None,
        INT8,
        Quantization("per_tensor", embeddings=True),
        Quantization(layers=("*",)),
    ],
)
def test_a_file_computes_what_the_model_does(quantization):
    config = dataclasses.replace(
        tiny_bert.uneven_config(), quantization=quantization
    )
    weights = observed_weights(config)
    model = bert.build_model(config, 2)
    bert.set_weights(model, weights)
    content = tflite.convert(
        model, "logits", "int8" if quantization else "none"
    )
    interpreter = tflite.Interpreter(content)
    assert interpreter.output == "logits"
    largest = []
    for batch_size, length in ((1, 4), (24, 9)):
        inputs = tiny_bert.random_inputs(config, batch_size, length)
        batch = [inputs[name] for name in INPUT_NAMES]
        differences = interpreter(batch) - model(batch)["logits"].numpy()
        largest += [*np.abs(differences).max(axis=1)]
    # Another order of sums rounds a value that lies between two levels to the
    # other one, now and then: in few rows, by a level.
    assert np.mean(np.array(largest) > 1e-5) <= (0.1 if quantization else 0)
    assert max(largest) < 0.02


def test_what_is_8_bits_in_the_model_is_so_in_the_file(place):
    checkpoint = load_checkpoint(f"{place}/int8")
    model, output = restoring.restore_model(checkpoint)
    content = tflite.convert(model, output, "int8")
    interpreter = tf.lite.Interpreter(
        model_content=content,
        experimental_op_resolver_type=(
            tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
    )
    types = {
        detail["index"]: detail["dtype"]
        for detail in interpreter.get_tensor_details()
    }
    products = [
        [types[index] for index in op["inputs"][:2]]
        for op in interpreter._get_ops_details()
        if op["op_name"] in ("CONV_2D", "FULLY_CONNECTED")
    ]
    # The pooler and six of the layer; the classifier is whole.
    assert products == [[np.int8, np.int8]] * 7 + [[np.float32] * 2]


def test_export_checks_the_file_and_says_how_good_it_is(place, tmp_path):
    out = export(
        *(place, "int8", f"--data_dir={place}/data"),
        output_dir=tmp_path / "out",
    )
    found = json.loads((tmp_path / "out" / "export.json").read_text())
    assert found["quantization"] == "int8" and found["labels"] == ["0", "1"]
    assert found["max_difference"] < 1e-4
    assert found["eval_loss_file"] == pytest.approx(
        found["eval_loss_keras"], abs=1e-4
    )
    assert (tmp_path / "out" / "model.tflite").stat().st_size == found["bytes"]
    assert (tmp_path / "out" / "vocab.txt").exists()
    assert "eval_accuracy_file" in out
    error = export(place, "int8", output_dir=tmp_path / "out", status=2)
    assert "--overwrite" in error
    flags = ("--quantization=int8", "--calibration_steps=5")
    error = export(place, "int8", *flags, output_dir=tmp_path / "o", status=2)
    assert "it has its ranges. Leave out --calibration_steps" in error


@pytest.mark.parametrize(
    ("name", "flags"),
    [("int8", ()), ("sparse", ("--quantization=int8", "--data_dir={}/data"))],
)
def test_sparse_weights_of_8_bits_are_exported_without_zeros(
    place, name, flags, tmp_path
):
    flags = [flag.format(place) for flag in flags]
    export(
        *(place, name, "--format=compressed_tensors", *flags),
        output_dir=tmp_path / "out",
    )
    found = json.loads((tmp_path / "out" / "export.json").read_text())
    assert found["quantization"] == "int8" and found["max_difference"] == 0.0
    arrays = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    kept = arrays["bert.encoder.layer.0.intermediate.dense.compressed"]
    before = load_checkpoint(f"{place}/{name}")
    weights = before.weights["layer_0_intermediate/kernel"]
    assert kept.dtype == np.int8 and kept.size == np.count_nonzero(weights)
    loaded = load_checkpoint(str(tmp_path / "out"))
    assert loaded.config.quantization is not None
    # What is rounded to zero is not taken for pruned.
    for kernel in (*bert.encoder_kernels(loaded.config), "pooler/kernel"):
        zeros = loaded.weights[kernel] == 0
        np.testing.assert_array_equal(zeros, before.weights[kernel] == 0)


def test_a_dense_model_of_8_bits_stays_one_when_exported(place):
    train(place, "dense8", "--quantize=int8", init="dense")
    export(
        *(place, "dense8", "--format=compressed_tensors"),
        output_dir=place / "exported8",
    )
    error = train(
        *(place, "refused", "--pruning=lock", "--quantize=int8"),
        init="exported8",
        status=2,
    )
    assert "one is dense" in error
    assert load_checkpoint(f"{place}/exported8").config.quantization == INT8


@pytest.mark.parametrize("heads", [(), ("pooler", "span")])
def test_any_model_can_be_exported(heads, tmp_path):
    config = tiny_runs.tiny_config()
    weights = tiny_bert.random_weights(config, heads=heads)
    if not heads:
        weights |= tiny_bert.random_weights(config, heads=("pooler",))
    save_huggingface(
        str(tmp_path / "model"), config, weights, tiny_runs.VOCABULARY, True
    )
    export(tmp_path, "model", output_dir=tmp_path / "out")
    found = json.loads((tmp_path / "out" / "export.json").read_text())
    assert found["output"] == ("logits" if heads else "pooled_output")
    assert found["max_difference"] < 1e-5


def test_a_model_that_never_computed_in_8_bits_is_not_exported_so(tmp_path):
    config = tiny_runs.tiny_config(quantization=INT8)
    weights = bert.get_weights(bert.build_model(config, 2))
    words = tiny_runs.VOCABULARY
    save_huggingface(str(tmp_path / "new"), config, weights, words, True)
    error = export(tmp_path, "new", output_dir=tmp_path / "out", status=2)
    assert "was never observed" in error
    assert not (tmp_path / "out" / "model.tflite").exists()


def test_an_export_of_a_span_model_takes_no_data(tmp_path):
    for flags, message in (
        (["--task_name=SQuAD", "--data_dir=squad"], "Leave out --data_dir"),
        (["--split=train"], "--split needs --data_dir"),
    ):
        error = export(
            tmp_path, "model", *flags, output_dir=tmp_path / "out", status=2
        )
        assert message in error


@pytest.mark.usefixtures("both")
def test_one_task_of_several_is_exported(place, tmp_path):
    error = export(place, "both", output_dir=tmp_path / "none", status=2)
    assert "--task_name" in error
    for name in ("both", "int8"):
        wrong = (place, name, "--task_name=MRPC")
        export(*wrong, output_dir=tmp_path / "none", status=2)
    both = f"--data_dir={place}/data"
    error = export(place, "both", both, output_dir=tmp_path, status=2)
    assert "one task's model" in error
    export(*(place, "both", "--task_name=STS-B"), output_dir=tmp_path / "one")
    assert (tmp_path / "one" / "model.tflite").exists()
