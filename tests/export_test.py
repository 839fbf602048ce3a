"""What is exported computes what the model does, whatever the model is."""

import dataclasses
import json
import os

import numpy as np
import pytest
import tensorflow as tf
import tiny_bert
import tiny_runs

from bert_pruning.commands import export as export_command
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.delivery import formats
from bert_pruning.delivery import model_card
from bert_pruning.delivery import quantizations
from bert_pruning.delivery import restoring
from bert_pruning.delivery import saved_model
from bert_pruning.delivery import tflite
from bert_pruning.modeling import bert
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.modeling.checkpoints import save_huggingface

SHAPES = {
    "whole": tiny_runs.tiny_config(),
    "uneven": tiny_runs.tiny_config(
        num_layers=2, hidden_act="gelu_new"
    ).to_dict()
    | {
        "num_heads": [2, 1],
        "intermediate_sizes": [0, 12],
        "embedding_rank": 3,
    },
}
SHAPES["uneven"] = type(SHAPES["whole"]).from_dict(SHAPES["uneven"])


def write_model(directory, config, num_outputs=2, heads=("pooler",), **task):
    """Writes a model with random weights, of 95 % zeros where it may be."""
    weights = tiny_bert.random_weights(config, 0, num_outputs, heads)
    random = np.random.default_rng(0)
    for name in bert.encoder_kernels(config):
        weights[name] *= random.random(weights[name].shape) > 0.5
    save_huggingface(
        *(str(directory), config, weights, tiny_runs.VOCABULARY, True),
        task=task or None,
    )
    return weights


def export(model, output_dir, *flags, status=0):
    found, out, err = tiny_runs.run_command(
        *("export", f"--init_checkpoint={model}"),
        *(f"--output_dir={output_dir}", "--max_seq_length=16", *flags),
    )
    assert found == status, err
    return out if status == 0 else err


def read_export(output_dir):
    return json.loads((output_dir / "export.json").read_text())


def logits_of(directory, batch, output="logits"):
    checkpoint = load_checkpoint(str(directory))
    if "span/kernel" in checkpoint.weights:
        model = bert.build_span_model(checkpoint.config)
    else:
        outputs = checkpoint.weights["classifier/kernel"].shape[1]
        model = bert.build_model(checkpoint.config, outputs)
    bert.set_weights(model, checkpoint.weights, checkpoint.new_layers)
    return model(batch)[output].numpy()


def some_ids(rows=3, length=9):
    config = tiny_runs.tiny_config()
    return list(tiny_bert.random_inputs(config, rows, length).values())


# === Every format of every shape ===


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_format_computes_what_the_model_does(name, shape, tmp_path):
    config = SHAPES[shape]
    if name == "official":  # It has not the erf gelu.
        config = dataclasses.replace(config, hidden_act="gelu_new")
    write_model(tmp_path / "model", config)
    export(tmp_path / "model", tmp_path / "out", f"--format={name}")
    forward = formats.FORMATS[name].open(str(tmp_path / "out"))
    for rows, length in ((1, 3), (4, 16)):
        batch = some_ids(rows, length)
        np.testing.assert_allclose(
            forward(batch), logits_of(tmp_path / "model", batch), atol=1e-5
        )
    found = read_export(tmp_path / "out")
    assert found["max_difference"] < 1e-5
    files = formats.FORMATS[name].files
    assert {*files, "README.md", "export.json", "DONE", "flags.cfg"} == {
        *os.listdir(tmp_path / "out")
    }
    assert formats.stored_bytes(tmp_path / "out", files) == found["bytes"]


def test_an_uneven_model_has_equal_logits_in_transformers(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import record_goldens

    write_model(tmp_path / "model", SHAPES["uneven"])
    export(tmp_path / "model", tmp_path / "out", "--format=huggingface")
    inputs = dict(
        zip(
            ("input_word_ids", "input_mask", "input_type_ids"),
            some_ids(),
            strict=True,
        )
    )
    values = record_goldens.run_values(str(tmp_path / "out"), inputs)
    assert values["not_loaded"] == values["not_used"] == []
    expected = logits_of(tmp_path / "model", some_ids())
    np.testing.assert_allclose(values["logits"], expected, atol=1e-5)


def test_what_is_cut_out_is_filled_with_zeros(tmp_path):
    write_model(tmp_path / "model", SHAPES["uneven"])
    export(tmp_path / "model", tmp_path / "out", "--format=huggingface")
    whole = load_checkpoint(str(tmp_path / "out"))
    assert whole.config.is_uniform
    assert whole.config.num_heads == (2, 2)
    assert whole.config.intermediate_sizes == (12, 12)
    width = whole.config.head_size
    assert not whole.weights["layer_1_query/kernel"][:, width:].any()
    assert not whole.weights["layer_1_attention_output/kernel"][width:].any()
    assert not whole.weights["layer_0_output/bias"].any()


def test_the_official_code_gets_its_order_of_labels(tmp_path):
    task = {"name": "RTE", "labels": ["not_entailment", "entailment"]}
    task["tf1_labels"] = task["labels"][::-1]
    config = tiny_runs.tiny_config(hidden_act="gelu_new")
    write_model(tmp_path / "model", config, **task)
    export(tmp_path / "model", tmp_path / "out", "--format=official")
    batch = some_ids()
    ours, theirs = (
        logits_of(tmp_path / name, batch) for name in ("model", "out")
    )
    np.testing.assert_allclose(theirs, ours[:, ::-1], atol=1e-6)
    found = read_export(tmp_path / "out")
    assert found["max_difference"] < 1e-6
    assert found["labels"] == ["entailment", "not_entailment"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| labels | entailment, not_entailment |" in card


@pytest.mark.parametrize("name", ["huggingface", "tflite"])
def test_half_precision_takes_half_the_bytes(name, tmp_path):
    config = tiny_runs.tiny_config(hidden_size=64, intermediate_size=1024)
    write_model(tmp_path / "model", config)
    flags = (f"--format={name}", "--quantization=float16")
    export(tmp_path / "model", tmp_path / "out", *flags)
    size = os.path.getsize(tmp_path / "model" / "model.safetensors")
    assert 0.45 < read_export(tmp_path / "out")["bytes"] / size < 0.6


def test_weights_in_8_bits_take_a_quarter_of_the_bytes(tmp_path):
    config = tiny_runs.tiny_config(hidden_size=64, intermediate_size=1024)
    write_model(tmp_path / "model", config)
    flags = ("--quantization=dynamic_int8",)
    export(tmp_path / "model", tmp_path / "out", *flags)
    size = os.path.getsize(tmp_path / "model" / "model.safetensors")
    found = read_export(tmp_path / "out")
    assert found["bytes"] < 0.4 * size
    assert 0 < found["max_difference"] < 0.05


def test_a_model_in_8_bits_is_exported_as_it_is_underneath(tmp_path):
    tiny_runs.write_sst2(tmp_path / "data")
    tiny_runs.write_checkpoint(tmp_path / "bert")
    found, _, err = tiny_runs.run_command(
        *("train", "--task_name=SST-2", f"--data_dir={tmp_path}/data"),
        *(f"--init_checkpoint={tmp_path}/bert", "--quantize=int8"),
        *(f"--output_dir={tmp_path}/int8", *tiny_runs.QUICK),
    )
    assert found == 0, err
    export(tmp_path / "int8", tmp_path / "out", "--format=huggingface")
    assert load_checkpoint(str(tmp_path / "out")).config.quantization is None
    export(tmp_path / "int8", tmp_path / "served", "--format=saved_model")
    served = formats.FORMATS["saved_model"].open(str(tmp_path / "served"))
    np.testing.assert_allclose(
        served(some_ids()), logits_of(tmp_path / "int8", some_ids()), atol=1e-5
    )
    error = export(
        *(tmp_path / "int8", tmp_path / "none", "--quantization=float16"),
        status=2,
    )
    assert "8 bits" in error


def test_ranges_are_found_on_the_training_set(tmp_path):
    tiny_runs.write_sst2(tmp_path / "data")
    write_model(tmp_path / "model", tiny_runs.tiny_config())
    flags = ("--quantization=int8", "--task_name=SST-2")
    error = export(tmp_path / "model", tmp_path / "out", *flags, status=2)
    assert "--data_dir" in error and "--quantize=int8" in error
    data = f"--data_dir={tmp_path}/data"
    export(tmp_path / "model", tmp_path / "out", *flags, data)
    found = read_export(tmp_path / "out")
    assert found["max_difference"] < 1e-4
    assert found["max_difference"] < found["rounding_difference"] < 0.1
    # The model that is compared with is the one that was given.
    assert found["eval_loss_keras"] != found["eval_loss_file"]
    assert found["eval_loss_keras"] == pytest.approx(
        found["eval_loss_file"], abs=0.1
    )


def test_a_file_of_one_shape_takes_any_batch(tmp_path):
    tiny_runs.write_sst2(tmp_path / "data")
    write_model(tmp_path / "model", tiny_runs.tiny_config())
    export(
        *(tmp_path / "model", tmp_path / "out", "--batch_size=2"),
        *("--fixed_length", "--task_name=SST-2", f"--data_dir={tmp_path}/data"),
    )
    content = (tmp_path / "out" / "model.tflite").read_bytes()
    interpreter = tflite.Interpreter(content)
    assert (interpreter.batch_size, interpreter.length) == (2, 16)
    batch = some_ids(5, 9)
    expected = logits_of(tmp_path / "model", batch)
    np.testing.assert_allclose(interpreter(batch), expected, atol=1e-5)
    found = read_export(tmp_path / "out")
    assert found["eval_loss_keras"] == pytest.approx(found["eval_loss_file"])


# === Text in ===


def serve(directory, *names, labels=(), span=False, length=16):
    config = tiny_runs.tiny_config(max_position_embeddings=64)
    weights = tiny_bert.random_weights(
        config, 0, None if span else max(1, len(labels)), ("pooler", "span")
    )
    model = (
        bert.build_span_model(config)
        if span
        else bert.build_model(config, max(1, len(labels)))
    )
    bert.set_weights(model, weights)
    tokenizer = BertTokenizer(tiny_runs.VOCABULARY, True)
    saved_model.save(
        str(directory),
        saved_model.Served(model, "logits", tokenizer, length, labels, names),
    )
    return saved_model.SavedModel(str(directory)), model, tokenizer


def test_text_gives_what_its_ids_give(tmp_path):
    served, _, tokenizer = serve(
        *(tmp_path, *saved_model.TWO_TEXTS), labels=("no", "yes")
    )
    texts = ["a good film", "b\u00e4d plot \u2014 bad", ""], ["fine", "", "it"]
    packed = tokenizer.pack(*tokenizer.encode(*texts))
    logits = served([packed[name] for name in packed])
    found = served.read(*texts)
    expected = tf.nn.softmax(logits).numpy()
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    np.testing.assert_allclose(found["score"], expected.max(-1), atol=1e-6)
    labels = [("no", "yes")[i].encode() for i in expected.argmax(-1)]
    assert found["label"].tolist() == labels


def test_a_batch_has_any_size(tmp_path):
    served, *_ = serve(tmp_path, *saved_model.ONE_TEXT)
    texts = ["a good film", "it was very bad", "end"]
    together = served.read(texts)["value"]
    assert together.shape == (3,)
    apart = [served.read([text])["value"][0] for text in texts]
    np.testing.assert_allclose(together, apart, atol=1e-5)


def test_texts_that_are_long_empty_or_no_utf8_are_read(tmp_path):
    served, *_ = serve(tmp_path, *saved_model.ONE_TEXT)

    def value(text):
        return served.read([text])["value"][0]

    assert value("good " * 1000) == pytest.approx(value("good " * 14))
    assert value("good " * 1000) != pytest.approx(value("good " * 13))
    assert value("") == pytest.approx(value(" \t\n"))
    assert value(b"a g\xffood \xfe film") == pytest.approx(value("a good film"))


def test_an_answer_is_the_likeliest_part_of_its_context(tmp_path):
    served, model, tokenizer = serve(
        *(tmp_path, *saved_model.QUESTION), span=True, length=32
    )
    questions = ["it was", "", "a film"]
    contexts = [
        "The film (very good) was b\u00e4d, it ends. Good plot!",
        "",
        "film\u00a0and\u2003plot and the very end",
    ]
    found = served.read(questions, contexts)
    for row, (question, context) in enumerate(
        zip(questions, contexts, strict=True)
    ):
        ids, begins, ends = (
            each.to_list()[0]
            for each in tokenizer.tokenize_with_offsets([context])
        )
        assert ids == tokenizer.tokenize([context]).to_list()[0]
        packed = tokenizer.pack(*tokenizer.encode([question], [context]))
        logits = model([packed[name] for name in packed])["logits"][0].numpy()
        first = 2 + len(tokenizer.tokenize([question]).to_list()[0])
        sums = {
            (i, j): logits[first + i, 0] + logits[first + j, 1]
            for i in range(len(ids))
            for j in range(i, min(i + 30, len(ids)))
        }
        if not sums:
            assert found["answer"][row] == b"" and found["score"][row] == 0
            continue
        i, j = max(sums, key=sums.get)
        answer = context.encode()[begins[i] : ends[j]]
        assert found["answer"][row] == answer
        assert found["score"][row] == pytest.approx(
            sums[i, j] - logits[0].sum(), abs=1e-4
        )


def test_offsets_say_where_tokens_come_from():
    tokenizer = BertTokenizer(tiny_runs.VOCABULARY, True)
    text = " A GOOD,film \u2014 b\u00c4d(films)\u2003it"
    _, begins, ends = tokenizer.tokenize_with_offsets([text])
    pieces = [
        text.encode()[begin:end].decode()
        for begin, end in zip(
            begins.to_list()[0], ends.to_list()[0], strict=True
        )
    ]
    # What is not ASCII is not cut.
    assert pieces[:5] == ["A", "GOOD", ",", "film", "\u2014"]
    assert set(pieces[5:-1]) == {"b\u00c4d(films)"} and pieces[-1] == "it"
    ids = tokenizer.tokenize_with_offsets([text, "", "film"])[0]
    assert ids.to_list() == tokenizer.tokenize([text, "", "film"]).to_list()
    # A NUL is dropped, and what is behind it read.
    texts = ["a\0 film", "g\0ood\0", "b\u00e4d\0 it", "\0"]
    ids, begins, ends = tokenizer.tokenize_with_offsets(texts)
    assert ids.to_list() == tokenizer.tokenize(texts).to_list()
    # A word with a NUL is not all ASCII.
    assert (begins.to_list()[0], ends.to_list()[0]) == ([0, 3], [2, 7])


def test_there_is_room_for_a_context_beside_a_long_question():
    model = bert.build_span_model(tiny_runs.tiny_config())
    tokenizer = BertTokenizer(tiny_runs.VOCABULARY, True)
    served = saved_model.Served(
        *(model, "logits", tokenizer, 16), text_names=saved_model.QUESTION
    )
    found = saved_model.read(served, ["it " * 50], ["good film"])
    assert found["answer"][0].decode() in ("good", "film", "good film")


@pytest.mark.parametrize("name", ["saved_model", "huggingface"])
def test_a_model_of_answers_is_exported(name, tmp_path):
    config = SHAPES["uneven"]
    write_model(tmp_path / "model", config, None, ("pooler", "span"))
    export(tmp_path / "model", tmp_path / "out", f"--format={name}")
    forward = formats.FORMATS[name].open(str(tmp_path / "out"))
    np.testing.assert_allclose(
        forward(some_ids()),
        logits_of(tmp_path / "model", some_ids()),
        atol=1e-5,
    )
    if name == "saved_model":
        assert forward.text_names == saved_model.QUESTION
        assert set(forward.read(["it"], ["a film"])) == {"answer", "score"}


def test_a_task_of_one_text_is_served_with_one(tmp_path):
    tiny_runs.write_sst2(tmp_path / "data")
    write_model(tmp_path / "model", tiny_runs.tiny_config())
    flags = ("--format=saved_model", "--task_name=SST-2")
    export(tmp_path / "model", tmp_path / "out", *flags)
    served = formats.FORMATS["saved_model"].open(str(tmp_path / "out"))
    assert served.text_names == ("text",)
    assert served.read(["good"])["label"][0] in (b"0", b"1")
    card = (tmp_path / "out" / "README.md").read_text()
    assert '{"text": "It rains."}' in card and "BERT for SST-2" in card


# === The card ===


def test_a_card_tells_how_a_model_was_made(tmp_path):
    tiny_runs.write_sst2(tmp_path / "data")
    tiny_runs.write_checkpoint(tmp_path / "bert")
    found, _, err = tiny_runs.run_command(
        *("train", "--task_name=SST-2", f"--data_dir={tmp_path}/data"),
        *(f"--init_checkpoint={tmp_path}/bert", "--pruning=magnitude"),
        *("--sparsity=0.5", f"--output_dir={tmp_path}/run", *tiny_runs.QUICK),
    )
    assert found == 0, err
    flags = ("--format=huggingface", f"--data_dir={tmp_path}/data")
    export(tmp_path / "run", tmp_path / "out", *flags)
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        *("# BERT for SST-2", "| pruning | magnitude |", "| sparsity | 0.5 |"),
        *("50.0% of the encoder's kernels", "| labels | 0, 1 |"),
        *("accuracy of this file", "--learning_rate=0.01", "transformers"),
    ):
        assert text in card, text
    checkpoint = load_checkpoint(str(tmp_path / "run"))
    for name, text in (
        ("tflite", "ai_edge_litert"),
        ("saved_model", '{"question": "It rains.", "context": "It is wet."}'),
        ("official", "TF1"),
        ("compressed_tensors", "sparse-bitmask"),
    ):
        exported = {**read_export(tmp_path / "out"), "format": name}
        card = model_card.write_card(checkpoint, exported, saved_model.QUESTION)
        assert text in card, name


# === Bad input ===


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format=official"], "tanh"),
        (["--format=onnx"], "onnx"),
        (["--format=saved_model", "--quantization=float16"], "none"),
        (["--format=huggingface", "--quantization=int8"], "float16"),
        (["--format=saved_model", "--batch_size=2"], "tflite"),
        (["--format=huggingface", "--fixed_length"], "tflite"),
        (["--max_seq_length=9999"], "9999"),
        (["--calibration_steps=9"], "--quantization=int8"),
        (["--cache_dir=x"], "--cache_dir needs --data_dir"),
    ],
)
def test_what_a_format_has_not_is_refused(flags, message, tmp_path):
    write_model(tmp_path / "model", tiny_runs.tiny_config())
    error = export(tmp_path / "model", tmp_path / "out", *flags, status=2)
    assert message in error
    assert not (tmp_path / "out" / "export.json").exists()


def test_the_command_offers_what_formats_have():
    assert quantizations.OF_FORMAT.keys() == formats.FORMATS.keys()


@pytest.mark.parametrize(
    ("before", "after", "is_said"),
    [(0.9, 0.89, False), (0.9, 0.87, True), (-0.05, -0.05, False)],
)
def test_a_file_that_loses_much_is_warned_of(
    tmp_path, caplog, before, after, is_said
):
    tiny_runs.write_checkpoint(tmp_path / "model")
    found = {"primary_metric": "eval_mcc"}
    found.update(eval_mcc_keras=before, eval_mcc_file=after)
    with caplog.at_level("WARNING"):
        export_command._warn_of_loss(
            found, load_checkpoint(str(tmp_path / "model"))
        )
    assert ("Train it with --quantize=int8" in caplog.text) == is_said


def test_a_dense_model_has_no_sparse_file(tmp_path):
    tiny_runs.write_checkpoint(tmp_path / "model")
    flags = ("--format=compressed_tensors",)
    error = export(tmp_path / "model", tmp_path / "out", *flags, status=2)
    assert "so many zeros" in error and "huggingface" in error


def test_an_encoder_whose_outputs_are_chance_is_not_exported(tmp_path):
    write_model(tmp_path / "model", tiny_runs.tiny_config(), None, ())
    error = export(tmp_path / "model", tmp_path / "out", status=2)
    assert "has no pooler" in error


@pytest.mark.parametrize(
    ("name", "flags"),
    [("README.md", ()), ("model.tflite", ("--overwrite",))],
)
def test_files_that_no_export_wrote_stay(name, flags, tmp_path):
    write_model(tmp_path / "model", tiny_runs.tiny_config())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    error = export(tmp_path / "model", tmp_path / "out", *flags, status=2)
    assert f"holds {name} of no run" in error
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_a_tf1_checkpoint_is_not_written_over_itself(tmp_path):
    config = tiny_runs.tiny_config(hidden_act="gelu_new")
    write_model(tmp_path / "model", config)
    export(tmp_path / "model", tmp_path / "bert", "--format=official")
    error = export(
        *(tmp_path / "bert" / "bert_model.ckpt", tmp_path / "bert"),
        *("--format=official", "--overwrite"),
        status=2,
    )
    assert "would be written over" in error


def test_what_a_killed_export_left_is_cleared(tmp_path):
    write_model(tmp_path / "model", tiny_runs.tiny_config())
    (tmp_path / "out" / ".partial-x").mkdir(parents=True)
    export(tmp_path / "model", tmp_path / "out", "--batch_size=2")
    assert not (tmp_path / "out" / ".partial-x").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| shape of its inputs | [2, any number] |" in card


def test_an_unfinished_run_is_not_exported(tmp_path):
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "flags.cfg").write_text("--seed=1\n")
    error = export(tmp_path / "run", tmp_path / "out", status=2)
    assert "did not end" in error and "flags.cfg" in error


def test_an_export_that_fails_replaces_nothing(tmp_path):
    write_model(tmp_path / "model", tiny_runs.tiny_config())
    export(tmp_path / "model", tmp_path / "out")
    before = sorted(os.listdir(tmp_path / "out"))
    export(
        *(tmp_path / "model", tmp_path / "out", "--format=official"),
        *("--overwrite",),
        status=2,
    )
    assert sorted(os.listdir(tmp_path / "out")) == before
    # Another format in its place leaves nothing of the old one.
    flags = ("--format=huggingface", "--overwrite")
    export(tmp_path / "model", tmp_path / "out", *flags)
    assert not (tmp_path / "out" / "model.tflite").exists()
    assert (tmp_path / "out" / "model.safetensors").exists()


# === A text alone ===


def predict(model, *flags, status=0):
    found, out, err = tiny_runs.run_command(
        *("predict", f"--init_checkpoint={model}", "--max_seq_length=16"),
        *flags,
    )
    assert found == status, err
    return out if status == 0 else err


def test_a_text_is_predicted_as_it_is_served(tmp_path):
    tiny_runs.write_sst2(tmp_path / "data")
    write_model(tmp_path / "model", tiny_runs.tiny_config())
    out = predict(tmp_path / "model", "--task_name=SST-2", "--text=a good film")
    checkpoint = load_checkpoint(str(tmp_path / "model"))
    model, output = restoring.restore_model(checkpoint)
    tokenizer = BertTokenizer(tiny_runs.VOCABULARY, True)
    said = saved_model.read(
        saved_model.Served(model, output, tokenizer, 16, ("0", "1")),
        ["a good film"],
    )
    assert f"label = {said['label'][0].decode()}\n" in out
    assert f"probability of 1 = {said['probabilities'][0, 1]:.4f}" in out


def test_a_question_and_its_context_are_answered(tmp_path):
    config = tiny_runs.tiny_config()
    write_model(tmp_path / "model", config, None, ("pooler", "span"))
    out = predict(tmp_path / "model", "--text=it", "--text_b=a film, Good")
    answer = out.splitlines()[0].removeprefix("answer = ")
    assert answer and answer in "a film, Good"


def test_bytes_that_are_no_utf8_are_skipped(tmp_path):
    write_model(tmp_path / "model", tiny_runs.tiny_config())
    # As Python hands on what was typed.
    typed = os.fsdecode(b"--text=a g\xffood film")
    found = predict(tmp_path / "model", typed)
    assert found == predict(tmp_path / "model", "--text=a good film")
    config = tiny_runs.tiny_config()
    write_model(tmp_path / "answers", config, None, ("pooler", "span"))
    typed = os.fsdecode(b"--text_b=\xff")
    assert "answer = " in predict(tmp_path / "answers", "--text=it", typed)


def test_a_diagnostic_is_served_by_its_task_s_model(tmp_path):
    labels = ["contradiction", "entailment", "neutral"]
    write_model(
        *(tmp_path / "model", tiny_runs.tiny_config(), 3), labels=labels
    )
    flags = ("--task_name=AX", "--text=it was", "--text_b=a film")
    assert "probability of neutral = " in predict(tmp_path / "model", *flags)
    export(
        *(tmp_path / "model", tmp_path / "out", "--format=saved_model"),
        flags[0],
    )
    served = formats.FORMATS["saved_model"].open(str(tmp_path / "out"))
    assert served.text_names == saved_model.TWO_TEXTS


def test_a_text_alone_needs_what_the_model_reads(tmp_path):
    write_model(tmp_path / "model", tiny_runs.tiny_config())
    assert "value" not in predict(tmp_path / "model", "--text=it")
    for flags, message in (
        (["--text_b=it"], "--text"),
        (["--text=it", "--task_name=MRPC"], "--text_b"),
        (["--text=it", "--text_b=it", "--task_name=SST-2"], "one text"),
        (["--text=it", "--output_dir=out"], "--output_dir"),
        (["--text=it", "--cache_dir=x"], "without --cache_dir"),
        (["--text=it", "--task_name=SQuAD", "--doc_stride=9"], "--doc_stride"),
    ):
        assert message in predict(tmp_path / "model", *flags, status=2)
