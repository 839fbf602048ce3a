"""SQuAD, trained, scored and answered as typed."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tiny_bert
import tiny_runs
from folders import contents

from bert_pruning.modeling import bert
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.modeling.checkpoints import save_huggingface
from bert_pruning.training import distillation
from bert_pruning.training import span
from bert_pruning.training.run import read_results
from bert_pruning.training.step import INPUT_NAMES

pytestmark = pytest.mark.usefixtures("eagerly")

LENGTHS = ("--max_seq_length=16", "--max_query_length=4", "--doc_stride=4")


def write_squad(path, version, count, seed):
    """Questions about the only good or bad word of a text."""
    texts, labels = tiny_runs.sentences(count, seed)
    paragraphs = []
    for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
        kind = tiny_runs.GOOD if label else tiny_runs.BAD
        answer = next(word for word in text.split() if word in kind)
        question = {
            "id": f"{seed}-{number}",
            "question": "was it very",
            "answers": [{"text": answer, "answer_start": text.index(answer)}],
        }
        if version == "2.0":
            question["is_impossible"] = number % 3 == 0
            if question["is_impossible"]:
                question["answers"] = []
        paragraphs.append({"context": text, "qas": [question]})
    data = [{"title": "t", "paragraphs": paragraphs}]
    path.write_text(json.dumps({"version": version, "data": data}))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with both versions, a checkpoint, and a run on v1.1."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "squad").mkdir()
    for version in ("1.1", "2.0"):
        for seed, split in enumerate(("train", "dev")):
            path = folder / "squad" / f"{split}-v{version}.json"
            write_squad(path, version, (24, 9)[seed], seed)
    tiny_runs.write_checkpoint(folder / "init")
    status, out, err = train(folder, folder / "run", "--max_steps=60")
    assert status == 0, err
    assert "eval_exact_match = " in out
    return folder


def train(folder, output_dir, *flags):
    return tiny_runs.run_command(
        *("train", "--task_name=SQuAD", f"--data_dir={folder}/squad"),
        *(f"--init_checkpoint={folder}/init", f"--output_dir={output_dir}"),
        *(*tiny_runs.QUICK, *LENGTHS, *flags),
    )


def command(name, folder, *flags):
    return tiny_runs.run_command(
        *(name, "--task_name=SQuAD", f"--data_dir={folder}/squad"),
        *(f"--init_checkpoint={folder}/run", *LENGTHS, *flags),
    )


# === The model ===


def make_model(seed=0, **options):
    config = tiny_bert.tiny_config()
    student = bert.build_span_model(config)
    weights = tiny_bert.random_weights(config, seed, heads=("span",))
    bert.set_weights(student, weights, initialized=())
    return span.SpanModel(student, **options)


def make_batch(width=6):
    batch = tiny_bert.random_inputs(tiny_bert.tiny_config(), 3, length=6)
    lengths = batch["input_mask"].sum(1)
    batch["label"] = np.stack([lengths // 2, lengths - 1], 1).astype(np.int32)
    for name in INPUT_NAMES:
        batch[name] = np.pad(batch[name], [(0, 0), (0, width - 6)])
    return {name: tf.constant(array) for name, array in batch.items()}


def losses_of(model, batch):
    outputs = model.student(model.inputs_of(batch))
    return model.losses_from(outputs, batch), outputs["logits"].numpy()


def test_the_loss_is_the_mean_of_both_positions_over_real_tokens():
    batch = make_batch()
    losses, logits = losses_of(make_model(), batch)
    expected = []
    for row, mask in enumerate(batch["input_mask"].numpy().astype(bool)):
        for place in range(2):
            values = logits[row, :, place].astype(np.float64)
            total = np.log(np.exp(values[mask]).sum())
            expected.append(total - values[batch["label"][row, place]])
    assert float(losses["loss"]) == pytest.approx(np.mean(expected), rel=1e-5)


def test_padding_changes_neither_loss_nor_match():
    teacher = make_model(seed=1).student
    matches = distillation.build_matches(
        *(("logits",), tiny_bert.tiny_config(), tiny_bert.tiny_config()),
        logits_loss="kl",
    )
    model = make_model(teacher=teacher, matches=matches)
    (one, _), (other, _) = (losses_of(model, make_batch(w)) for w in (6, 11))
    assert float(one["logits_loss"]) > 0
    for name in ("label_loss", "logits_loss"):
        assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-4)


# === Commands ===


def test_the_answer_is_learnt(place):
    results = read_results(place / "run" / "eval_results.txt")
    assert results["eval_exact_match"] > 0.5
    assert results["eval_f1"] >= results["eval_exact_match"]
    run = load_checkpoint(str(place / "run"))
    assert run.weights["span/kernel"].shape == (16, 2)
    assert "pooler/kernel" not in run.weights


def test_a_run_is_scored_as_while_it_trained(place):
    results = read_results(place / "run" / "eval_results.txt")
    status, out, err = command("evaluate", place)
    assert status == 0, err
    assert f"eval_f1 = {results['eval_f1']}" in out


def test_a_run_knows_its_task_and_how_it_cut_texts(place):
    results = read_results(place / "run" / "eval_results.txt")
    flags = (f"--init_checkpoint={place}/run", f"--data_dir={place}/squad")
    status, out, err = tiny_runs.run_command("evaluate", *flags)
    assert status == 0, err
    assert f"eval_f1 = {results['eval_f1']}" in out
    assert "--task_name=SQuAD, as" in err and "pooler" not in err


def test_what_a_run_is_exported_to_cuts_texts_as_it_did(place, tmp_path):
    status, out, err = tiny_runs.run_command(
        *("export", f"--init_checkpoint={place}/run", "--format=huggingface"),
        f"--output_dir={tmp_path}/out",
    )
    assert status == 0, err
    results = read_results(place / "run" / "eval_results.txt")
    status, out, err = tiny_runs.run_command(
        *("evaluate", f"--init_checkpoint={tmp_path}/out"),
        f"--data_dir={place}/squad",
    )
    assert status == 0, err
    # Windows of other lengths would be refused: questions have no room.
    assert f"eval_f1 = {results['eval_f1']}" in out


def test_answers_are_written_as_the_official_code_does(place, tmp_path):
    status, out, err = command("predict", place, f"--output_dir={tmp_path}")
    assert status == 0, err
    assert f"{tmp_path}/predictions.json" in out
    answers = json.loads((tmp_path / "predictions.json").read_text())
    dev = json.loads((place / "squad" / "dev-v1.1.json").read_text())
    right = 0
    for paragraph in dev["data"][0]["paragraphs"]:
        [question] = paragraph["qas"]
        right += answers[question["id"]] == question["answers"][0]["text"]
    results = read_results(place / "run" / "eval_results.txt")
    assert right / len(answers) == pytest.approx(results["eval_exact_match"])
    best = json.loads((tmp_path / "nbest_predictions.json").read_text())
    for name, candidates in best.items():
        assert candidates[0]["text"] == answers[name]
    assert not (tmp_path / "null_odds.json").exists()


def test_of_the_second_version_some_questions_have_no_answer(place, tmp_path):
    status, out, err = train(place, tmp_path / "run", "--task_name=SQuAD2")
    assert status == 0, err
    results = read_results(tmp_path / "run" / "eval_results.txt")
    assert results["eval_NoAns_total"] == 3
    assert results["eval_HasAns_total"] == 6
    assert "eval_best_f1_thresh" in results
    status, _, err = tiny_runs.run_command(
        *("predict", "--task_name=SQuAD2", f"--data_dir={place}/squad"),
        *(f"--init_checkpoint={tmp_path}/run", f"--output_dir={tmp_path}/out"),
        *(*LENGTHS, "--null_score_diff_threshold=-1e9"),
    )
    assert status == 0, err
    answers = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert set(answers.values()) == {""}
    assert (tmp_path / "out" / "null_odds.json").exists()


def test_a_question_that_cannot_be_scored_is_told_before_training(
    place, tmp_path
):
    data = tmp_path / "squad"
    shutil.copytree(place / "squad", data)
    dev = json.loads((data / "dev-v1.1.json").read_text())
    dev["data"][0]["paragraphs"][0]["qas"][0]["answers"] = []
    (data / "dev-v1.1.json").write_text(json.dumps(dev))
    for status, _, err in (
        train(place, tmp_path / "run", f"--data_dir={data}"),
        command("evaluate", place, f"--data_dir={data}"),
    ):
        assert status == 2
        assert "'1-0' has no answers to compare with" in err
    assert not (tmp_path / "run" / "flags.cfg").exists()


def test_a_student_learns_from_a_teacher_while_it_is_pruned(place, tmp_path):
    status, _, err = train(
        *(place, tmp_path / "run", "--sparsity=0.5", "--pruning=magnitude"),
        *("--distill=logits", f"--teacher_checkpoint={place}/run"),
        *("--logits_loss=kl", "--pruning_end=0.5", "--train_fraction=0.5"),
    )
    assert status == 0, err
    results = read_results(tmp_path / "run" / "eval_results.txt")
    assert results["sparsity"] == pytest.approx(0.5)


def test_answers_are_found_in_8_bits(place, tmp_path):
    status, _, err = train(
        *(place, tmp_path / "run", "--quantize=int8", "--quantize_embeddings"),
        f"--init_checkpoint={place}/run",
    )
    assert status == 0, err
    found = load_checkpoint(str(tmp_path / "run"))
    assert found.config.is_quantized("layer_0_query")
    # The positions are logits, which stay as they are.
    assert not found.config.is_quantized("span")
    trained = read_results(tmp_path / "run" / "eval_results.txt")
    status, out, err = command(
        "evaluate", place, f"--init_checkpoint={tmp_path}/run"
    )
    assert status == 0, err
    assert f"eval_f1 = {trained['eval_f1']}" in out
    status, out, err = tiny_runs.run_command(
        *("export", f"--init_checkpoint={tmp_path}/run"),
        f"--output_dir={tmp_path}/out",
    )
    assert status == 0, err
    assert "quantization = int8" in out


def test_a_sparse_encoder_is_locked_with_or_without_a_pooler(place, tmp_path):
    init = load_checkpoint(str(place / "init"))
    weights = dict(init.weights)
    random = np.random.default_rng(0)
    for name in (*bert.encoder_kernels(init.config), "pooler/kernel"):
        shape = (16, 16) if name == "pooler/kernel" else weights[name].shape
        kernel = random.standard_normal(shape) * (random.random(shape) < 0.2)
        weights[name] = kernel.astype(np.float32)
    weights["pooler/bias"] = np.zeros(16, np.float32)
    save_huggingface(
        tmp_path / "sparse", init.config, weights, init.vocabulary, True
    )
    status, _, err = train(
        *(place, tmp_path / "run", "--pruning=lock"),
        f"--init_checkpoint={tmp_path}/sparse",
    )
    assert status == 0, err
    run = load_checkpoint(str(tmp_path / "run"))
    for name in bert.encoder_kernels(init.config):
        np.testing.assert_array_equal(
            run.weights[name] == 0, weights[name] == 0, name
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data_dir=P/init"], "expected dev-v1.1.json in"),
        (["--max_query_length=13"], "--max_query_length + 3"),
        (["--doc_stride=4", "--task_name=RTE"], "needs --task_name=SQuAD"),
        (["--pruning=depth", "--num_layers=1", "--pruning_end=0.5"], "not for"),
        (["--aug_train=x"], "--aug_train is not for"),
        (
            ["--teacher_checkpoint=P/run", "--distill=logits"],
            "needs --logits_loss=kl",
        ),
        (["--cache_dir=x"], "--cache_dir is not for"),
        (["--null_score_diff_threshold=1"], "needs --task_name=SQuAD2"),
        (
            [
                *("--teacher_checkpoint=P/init", "--distill=logits"),
                "--logits_loss=kl",
            ],
            "was not trained to answer questions",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(place, tmp_path, flags, message):
    flags = [flag.replace("=P/", f"={place}/") for flag in flags]
    before = contents(place)
    status, _, err = train(place, tmp_path / "new", *flags)
    assert status == 2
    assert message in err
    assert contents(place) == before
    assert not (tmp_path / "new" / "flags.cfg").exists()


def test_a_model_of_another_kind_cannot_answer(place):
    status, _, err = command(
        "evaluate", place, f"--init_checkpoint={place}/init"
    )
    assert status == 2
    assert "was not trained to answer questions" in err
