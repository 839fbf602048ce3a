"""Pre-training as typed, and what of it can be reckoned by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tiny_bert
import tiny_runs
from folders import contents
from tiny_training import Crash

from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.data.pretraining import Masking
from bert_pruning.modeling import bert
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.modeling.checkpoints import save_official
from bert_pruning.modeling.quantization import is_range
from bert_pruning.training import distillation
from bert_pruning.training import pretraining
from bert_pruning.training import trainer
from bert_pruning.training.run import read_results

pytestmark = pytest.mark.usefixtures("eagerly")

WORDS = (*tiny_runs.GOOD, *tiny_runs.BAD, *tiny_runs.OTHER[:-1])
VOCABULARY = (*tiny_bert.SPECIAL_TOKENS, *WORDS, ".", "##s")
SHAPE = {"vocabulary": VOCABULARY, "max_position_embeddings": 16}
HEADS = ("pooler", "mlm", "next_sentence")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with examples, a checkpoint, and a run trained on them."""
    folder = tmp_path_factory.mktemp("place")
    tiny_runs.write_checkpoint(folder / "init", **SHAPE)
    (folder / "texts").mkdir()
    for name in range(12):
        texts, _ = tiny_runs.sentences(8, seed=name)
        text = "".join(f"{line} .\n" for line in texts)
        (folder / "texts" / f"{name}.txt").write_text(text)
    status, _, err = tiny_runs.run_command(
        *("prepare", f"--input={folder}/texts", "--max_seq_length=16"),
        *(f"--init_checkpoint={folder}/init", f"--output_dir={folder}/data"),
        *("--dev_share=0.25", "--shard_rows=20"),
    )
    assert status == 0, err
    status, out, err = train(folder, folder / "run")
    assert status == 0, err
    assert "eval_perplexity = " in out
    return folder


def train(folder, output_dir, *flags):
    return tiny_runs.run_command(
        *("train", "--task_name=pretraining", f"--data_dir={folder}/data"),
        *(f"--init_checkpoint={folder}/init", f"--output_dir={output_dir}"),
        *(*tiny_runs.QUICK, *flags),
    )


# === The model ===


def make_model(seed=0, **options):
    config = tiny_bert.tiny_config()
    student = bert.build_pretraining(config)
    weights = tiny_bert.random_weights(config, seed, heads=HEADS)
    bert.set_weights(student, weights, initialized=())
    return pretraining.PretrainingModel(student, **options)


def make_batch(model):
    length = 6
    batch = tiny_bert.random_inputs(
        tiny_bert.tiny_config(), batch_size=3, length=length
    )
    batch["masked_positions"] = np.int32([[1, 3], [2, 0], [4, 1]])
    batch["masked_ids"] = np.int32([[7, 8], [9, 0], [11, 6]])
    batch["masked_weights"] = np.float32([[1, 1], [1, 0], [1, 1]])
    batch["label"] = np.int32([0, 1, 1])
    return {name: tf.constant(array) for name, array in batch.items()}


def test_the_loss_is_that_of_the_hidden_tokens_and_of_the_next_sentence():
    model = make_model()
    batch = make_batch(model)
    outputs = model.student(model.inputs_of(batch))
    losses = model.losses_from(outputs, batch)
    chances = tf.nn.log_softmax(outputs["mlm_logits"]).numpy()
    hidden = [chances[0, 0, 7], chances[0, 1, 8], chances[1, 0, 9]]
    hidden += [chances[2, 0, 11], chances[2, 1, 6]]
    assert float(losses["mlm_loss"]) == pytest.approx(
        -np.mean(hidden), rel=1e-4
    )
    chances = tf.nn.log_softmax(outputs["nsp_logits"]).numpy()
    expected = -np.mean([chances[0, 0], chances[1, 1], chances[2, 1]])
    assert float(losses["nsp_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(
        float(losses["mlm_loss"]) + float(losses["nsp_loss"])
    )


def test_the_teacher_s_logits_of_both_heads_are_matched():
    teacher = make_model(seed=1).student
    [match] = distillation.build_matches(
        *(("logits",), tiny_bert.tiny_config(), tiny_bert.tiny_config()),
        *({"logits": 0.5}, 2.0),
        logits_loss="kl",
    )
    model = make_model(teacher=teacher, matches=(match,), label_weight=0.5)
    batch = make_batch(model)
    outputs = model.student(model.inputs_of(batch))
    targets = teacher(model.inputs_of(batch))
    losses = model.losses_from(outputs, batch)

    def divergence(name):
        p, q = (
            tf.nn.softmax(x[name] / 2).numpy().astype(np.float64)
            for x in (targets, outputs)
        )
        return 4 * (p * np.log(p / q)).sum(-1)

    weights = batch["masked_weights"].numpy()
    expected = (divergence("mlm_logits") * weights).sum() / weights.sum()
    expected += divergence("nsp_logits").mean()
    assert float(losses["logits_loss"]) == pytest.approx(expected, rel=1e-4)
    labels = float(losses["mlm_loss"]) + float(losses["nsp_loss"])
    assert float(losses["loss"]) == pytest.approx(
        0.5 * labels + 0.5 * expected, rel=1e-4
    )


def test_a_divergence_of_equals_is_nothing_and_has_no_gradient():
    logits = tf.Variable([[1.0, 2.0, -1.0], [0.0, 0.0, 3.0]])
    with tf.GradientTape() as tape:
        loss = distillation.kl_divergence(logits, tf.constant(logits), 3.0)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, logits), 0.0, atol=1e-6)


def test_padding_does_not_change_the_logits():
    model = make_model()
    batch = make_batch(model)
    mask = batch["input_mask"].numpy()
    wider = dict(batch)
    for name in ("input_word_ids", "input_mask", "input_type_ids"):
        wider[name] = tf.pad(batch[name], [[0, 0], [0, 4]])
    outputs = [
        model.student(model.inputs_of(each))["mlm_logits"]
        for each in (batch, wider)
    ]
    assert mask.any()
    np.testing.assert_allclose(*outputs, atol=1e-5)


# === Batches and scores ===


def test_a_batch_is_hidden_alike_only_where_it_is_the_same(place):
    found = load_examples(place)
    batches = pretraining.MaskedBatches(
        TrainBatches(found, 4, seed=1), Masking(VOCABULARY), seed=1
    )
    one, again = (
        [batch["input_word_ids"] for batch in batches.epoch(0)]
        for _ in range(2)
    )
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    resumed = next(batches.epoch(0, start=2))
    np.testing.assert_array_equal(resumed["input_word_ids"], one[2])
    other = [batch["masked_positions"] for batch in batches.epoch(1)]
    first = [batch["masked_positions"] for batch in batches.epoch(0)]
    assert any(
        a.shape != b.shape or (a != b).any()
        for a, b in zip(first, other, strict=True)
    )


def load_examples(place, split="train"):
    from bert_pruning.data import examples

    found = examples.find_corpus(str(place / "data"), VOCABULARY, True)
    return found.read(split, 0)


def test_scores_are_over_all_hidden_tokens(place):
    run = load_checkpoint(str(place / "run"))
    model = bert.build_pretraining(run.config)
    bert.set_weights(model, run.weights, initialized=())
    evaluator = pretraining.PretrainingEvaluator(model, Masking(VOCABULARY))
    dataset = load_examples(place, "dev")
    once = evaluator.evaluate([dataset], batch_size=len(dataset))
    results = read_results(place / "run" / "eval_results.txt")
    assert once["eval_perplexity"] == pytest.approx(
        math.exp(once["eval_mlm_loss"])
    )
    for name in ("eval_mlm_loss", "eval_nsp_accuracy", "eval_perplexity"):
        assert once[name] == pytest.approx(results[name], rel=1e-4)
    assert once["eval_loss"] == pytest.approx(
        once["eval_mlm_loss"] + once["eval_nsp_loss"]
    )


# === Commands ===


def test_a_run_holds_both_heads_for_every_format(place, tmp_path):
    run = load_checkpoint(str(place / "run"))
    heads = {name.split("/")[0] for name in run.weights}
    assert heads >= {"mlm_transform", "mlm_norm", "mlm_output", "next_sentence"}
    init = load_checkpoint(str(place / "init"))
    name = "layer_0_query/kernel"
    assert (run.weights[name] != init.weights[name]).any()
    config = tiny_runs.tiny_config(
        vocab_size=len(VOCABULARY),
        max_position_embeddings=16,
        hidden_act="gelu_new",
    )
    save_official(tmp_path, config, run.weights, VOCABULARY)
    back = load_checkpoint(str(tmp_path))
    assert back.weights.keys() == run.weights.keys()
    for name, array in run.weights.items():
        np.testing.assert_array_equal(back.weights[name], array, name)


def test_evaluate_says_what_training_did(place):
    flags = ("--task_name=pretraining", f"--data_dir={place}/data")
    status, out, err = tiny_runs.run_command(
        *("evaluate", *flags, "--max_seq_length=16"),
        f"--init_checkpoint={place}/run",
    )
    assert status == 0, err
    results = read_results(place / "run" / "eval_results.txt")
    [line] = [x for x in out.splitlines() if x.startswith("eval_perplexity")]
    value = float(line.split(" = ")[1])
    assert value == pytest.approx(results["eval_perplexity"], rel=1e-4)
    status, out, err = tiny_runs.run_command(
        *("evaluate", *flags, "--max_seq_length=16"),
        f"--init_checkpoint={place}/init",
    )
    assert status == 0, err
    assert "mlm_transform/kernel" in err
    assert "is chance" in err


def train_student(place, output_dir, *flags):
    status, _, err = train(
        *(place, output_dir, f"--init_checkpoint={place}/run"),
        *(f"--teacher_checkpoint={place}/run", "--distill=logits"),
        *("--logits_loss=kl", "--temperature=2", "--hard_label_weight=0.5"),
        *("--pruning=magnitude", "--sparsity=0.75", "--pruning_end=0.5"),
        *("--pruning_regrowth=shadow", "--pruning_update_end=0.8"),
        *("--lr_schedule=rewind", *flags),
    )
    assert status == 0, err


@pytest.mark.parametrize("stopped_at", [5, 9])
def test_a_stopped_student_resumes_to_the_same_weights(
    place, tmp_path, monkeypatch, stopped_at
):
    flags = ("--max_steps=12", "--eval_steps=12", "--save_steps=2")
    train_student(place, tmp_path / "whole", *flags)
    original, steps = trainer.Trainer._run_step, []

    def crashing(self, batch):
        steps.append(batch)
        if len(steps) == stopped_at:
            raise Crash
        return original(self, batch)

    monkeypatch.setattr(trainer.Trainer, "_run_step", crashing)
    with pytest.raises(Crash):
        train_student(place, tmp_path / "killed", *flags)
    train_student(place, tmp_path / "killed", *flags)
    # The last save was at an even step.
    assert len(steps) == stopped_at + 12 - (stopped_at - 1)
    whole, killed = (
        load_checkpoint(str(tmp_path / name)).weights
        for name in ("whole", "killed")
    )
    for name, array in whole.items():
        np.testing.assert_array_equal(array, killed[name], name)


def test_both_heads_are_trained_in_8_bits(place, tmp_path):
    status, _, err = train(
        *(place, tmp_path / "run", f"--init_checkpoint={place}/run"),
        *("--quantize=int8", "--quantize_layers=layer_*,mlm_transform"),
    )
    assert status == 0, err
    found = load_checkpoint(str(tmp_path / "run"))
    ranges = {n: a for n, a in found.weights.items() if is_range(n)}
    assert any(name.startswith("mlm_transform/") for name in ranges)
    assert not any(name.startswith("pooler/") for name in ranges)
    for name, array in ranges.items():
        assert np.isfinite(array).all(), name
    results = read_results(tmp_path / "run" / "eval_results.txt")
    status, out, err = tiny_runs.run_command(
        *("evaluate", "--task_name=pretraining", f"--data_dir={place}/data"),
        *(f"--init_checkpoint={tmp_path}/run", "--max_seq_length=16"),
    )
    assert status == 0, err
    assert f"eval_perplexity = {results['eval_perplexity']}" in out


def test_a_student_is_pruned_and_keeps_its_zeros_on_a_task(place, tmp_path):
    train_student(place, tmp_path / "sparse")
    sparse = load_checkpoint(str(tmp_path / "sparse"))
    kernels = bert.encoder_kernels(sparse.config)
    for name in kernels:
        assert np.mean(sparse.weights[name] == 0) == pytest.approx(0.75)
    tiny_runs.write_sst2(tmp_path / "glue")
    status, _, err = tiny_runs.run_command(
        *("train", "--task_name=SST-2", f"--data_dir={tmp_path}/glue"),
        *(f"--init_checkpoint={tmp_path}/sparse", "--pruning=lock"),
        *(f"--output_dir={tmp_path}/locked", *tiny_runs.QUICK),
    )
    assert status == 0, err
    locked = load_checkpoint(str(tmp_path / "locked"))
    for name in kernels:
        np.testing.assert_array_equal(
            sparse.weights[name] == 0, locked.weights[name] == 0, name
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--mlm_probability=0.2", "--task_name=RTE"],
            "--mlm_probability needs",
        ),
        (
            ["--pruning=depth", "--num_layers=1", "--pruning_end=0.5"],
            "--pruning=depth is not for",
        ),
        (["--aug_train=x"], "--aug_train is not for"),
        (["--output_dir=P/data", "--overwrite"], "would be written over"),
        (["--mlm_probability=0"], "--mlm_probability must lie"),
        (["--max_seq_length=8"], "prepared with --max_seq_length=16"),
        (["--data_dir=P/texts"], "no finished examples"),
        (
            ["--teacher_checkpoint=P/run", "--distill=logits"],
            "needs --logits_loss=kl",
        ),
        (
            [
                *("--teacher_checkpoint=P/init", "--distill=logits"),
                "--logits_loss=kl",
            ],
            "was not trained to predict hidden tokens",
        ),
    ],
)
def test_what_cannot_be_pre_trained_is_refused(place, tmp_path, flags, message):
    flags = [flag.replace("P/", f"{place}/") for flag in flags]
    before = contents(place)
    status, _, err = train(place, tmp_path / "new", *flags)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert contents(place) == before
    assert not (tmp_path / "new" / "flags.cfg").exists()
