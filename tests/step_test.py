"""A step is the same however it is cut, compiled, spread or rounded."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import tiny_bert
import tiny_runs

from bert_pruning.compression.pruning import Pruner
from bert_pruning.compression.pruning import wrap
from bert_pruning.compression.sparsity import Sparsity
from bert_pruning.modeling import bert
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.modeling.checkpoints import save_huggingface
from bert_pruning.training import step
from bert_pruning.training.distillation import build_matches
from bert_pruning.training.optimization import WarmupSchedule
from bert_pruning.training.optimization import build_optimizer

FEATURES = ("logits", "hidden", "attention")
NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.0,
}


def tiny_config(**changes):
    return tiny_bert.tiny_config(num_layers=1, hidden_size=16, **changes)


def make_bert(config, num_outputs=2, seed=0):
    model = bert.build_model(config, num_outputs)
    weights = tiny_bert.random_weights(config, seed, num_outputs)
    bert.set_weights(model, weights)
    return model


def make_model(
    config, features=FEATURES, num_outputs=2, final=None, rate=1e-2, **options
):
    """A compiled model with a teacher of other weights."""
    student = make_bert(config, num_outputs)
    teacher = matches = None
    if features:
        teacher = make_bert(config, num_outputs, seed=1)
        matches = build_matches(features, config, config)
    pruner = None
    if final is not None:
        sparsity = Sparsity(final=final)
        student = wrap(student, sparsity)
        pruner = Pruner(student, sparsity)
        pruner.update(0)
    model = step.DistillationModel(
        student, teacher, matches or (), pruner=pruner, **options
    )
    model.compile(build_optimizer(student, "bert_adam", rate))
    return model


def make_batch(config, size=6, seed=0, num_outputs=2):
    batch = tiny_bert.random_inputs(config, size, length=8, seed=seed)
    labels = np.random.default_rng(seed).integers(0, 2, size)
    batch["label"] = labels.astype(np.int32 if num_outputs > 1 else np.float32)
    return {name: tf.constant(array) for name, array in batch.items()}


def train(model, config, steps=3):
    """Runs some steps; returns the losses of the last."""
    for seed in range(steps):
        losses = model.train_step(make_batch(config, seed=seed))
    return {name: float(value) for name, value in losses.items()}


def assert_same_weights(one, other, **tolerances):
    for name, array in bert.get_weights(one.student).items():
        np.testing.assert_allclose(
            array,
            bert.get_weights(other.student)[name],
            err_msg=name,
            **(tolerances or {"rtol": 0, "atol": 0}),
        )


# === The objective ===


def test_the_loss_is_the_weighted_sum_of_its_terms():
    config = tiny_config(**NO_DROPOUT)
    student, teacher = make_bert(config), make_bert(config, seed=1)
    weights = {"logits": 2.0, "hidden": 0.25, "attention": 0.0}
    matches = build_matches(FEATURES, config, config, weights)
    model = step.DistillationModel(student, teacher, matches, label_weight=3.0)
    batch = make_batch(config)
    losses = model.losses_of(batch)
    assert losses.keys() == {
        *("loss", "label_loss"),
        *("logits_loss", "hidden_loss", "attention_loss"),
    }
    expected = (
        3 * losses["label_loss"]
        + 2 * losses["logits_loss"]
        + 0.25 * losses["hidden_loss"]
    )
    assert float(losses["loss"]) == pytest.approx(float(expected), rel=1e-6)
    logits = student(batch)["logits"]
    cross_entropy = keras.losses.sparse_categorical_crossentropy(
        batch["label"], logits, from_logits=True
    )
    assert float(losses["label_loss"]) == pytest.approx(
        float(tf.reduce_mean(cross_entropy)), rel=1e-5
    )


def test_without_a_teacher_the_labels_alone_are_learnt():
    config = tiny_config()
    model = make_model(config, features=())
    losses = model.losses_of(make_batch(config))
    assert losses.keys() == {"loss", "label_loss"}
    assert float(losses["loss"]) == float(losses["label_loss"])


def test_with_no_weight_on_labels_they_are_not_looked_at():
    config = tiny_config()
    model = make_model(config, label_weight=0.0)
    batch = make_batch(config)
    batch["label"] = tf.fill([6], -1)
    losses = model.losses_of(batch)
    assert "label_loss" not in losses
    assert np.isfinite(float(losses["loss"]))


def test_a_regression_has_the_squared_error():
    config = tiny_config(**NO_DROPOUT)
    model = make_model(config, features=(), num_outputs=1)
    batch = make_batch(config, num_outputs=1)
    scores = model(batch)["logits"][:, 0]
    expected = np.mean((scores.numpy() - batch["label"].numpy()) ** 2)
    loss = float(model.losses_of(batch)["loss"])
    assert loss == pytest.approx(expected, rel=1e-5)


def test_matches_without_a_teacher_are_a_mistake():
    config = tiny_config()
    matches = build_matches(["logits"], config, config)
    with pytest.raises(ValueError, match="teacher"):
        step.DistillationModel(make_bert(config), None, matches)


def test_the_teacher_never_moves():
    config = tiny_config()
    model = make_model(config)
    before = bert.get_weights(model.teacher)
    train(model, config)
    for name, array in bert.get_weights(model.teacher).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert not model.teacher.trainable_variables
    assert len(model.trainable_variables) == len(
        model.student.trainable_variables
    )


def test_the_teachers_dropout_is_off():
    student = make_bert(tiny_config(**NO_DROPOUT))
    dropping = tiny_config(
        **dict.fromkeys(NO_DROPOUT, 0.5),
    )
    teacher = make_bert(dropping)
    matches = build_matches(FEATURES, dropping, dropping)
    model = step.DistillationModel(student, teacher, matches)
    losses = model.losses_of(make_batch(dropping))
    assert float(losses["hidden_loss"]) == 0.0
    assert float(losses["attention_loss"]) == 0.0


def test_the_students_dropout_is_on():
    config = tiny_config()
    student = make_bert(config)
    matches = build_matches(FEATURES, config, config)
    model = step.DistillationModel(student, make_bert(config), matches)
    losses = model.losses_of(make_batch(config))
    assert float(losses["hidden_loss"]) > 0.0


def test_training_lowers_every_term():
    config = tiny_config(**NO_DROPOUT)
    model = make_model(config)
    batch = make_batch(config)
    first = model.train_step(batch)
    for _ in range(15):
        last = model.train_step(batch)
    for name in first:
        assert float(last[name]) < float(first[name]), name


# === One step, many ways ===


def test_accumulated_micro_batches_equal_the_whole_batch():
    config = tiny_config(**NO_DROPOUT)
    whole = make_model(config, final=0.5)
    parts = make_model(config, final=0.5)
    for seed in range(3):
        batch = make_batch(config, seed=seed)
        expected = whole.train_step(batch)
        losses = []
        # Unequal ones, as of a batch that does not divide.
        for index, (start, end) in enumerate([(0, 1), (1, 3), (3, 6)]):
            piece = {name: value[start:end] for name, value in batch.items()}
            share = tf.constant((end - start) / 6, tf.float32)
            losses.append(parts.accumulate_step(piece, share, index))
        parts.apply_step()
        for name, value in expected.items():
            total = sum(float(loss[name]) for loss in losses)
            assert total == pytest.approx(float(value), rel=1e-5), name
    assert int(parts.steps_done) == int(whole.steps_done) == 3
    assert_same_weights(parts, whole, rtol=1e-4, atol=2e-6)


def test_micro_batches_have_dropout_of_their_own():
    config = tiny_config(**dict.fromkeys(NO_DROPOUT, 0.5))
    model = make_model(config, features=(), seed=3)
    batch = make_batch(config)
    losses = [
        float(model.accumulate_step(batch, 1.0, index)["loss"])
        for index in (0, 1, 0)
    ]
    assert losses[0] == losses[2] != losses[1]


def test_compiled_equals_not_compiled():
    config = tiny_config()
    models = [
        make_model(config, final=0.5, jit_compile=compiled, seed=7)
        for compiled in (False, True)
    ]
    # The same dropout masks as well.
    losses = [train(model, config) for model in models]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert_same_weights(*models, rtol=1e-3, atol=2e-5)


def test_the_same_seed_repeats_bit_by_bit_and_another_differs():
    config = tiny_config()
    models = [make_model(config, seed=seed) for seed in (5, 5, 6)]
    losses = [train(model, config) for model in models]
    assert losses[0] == losses[1]
    assert_same_weights(models[0], models[1])
    assert losses[0] != losses[2]


def test_dropout_changes_from_step_to_step():
    config = tiny_config()
    model = make_model(config, features=(), rate=0.0)
    batch = make_batch(config)
    losses = [float(model.train_step(batch)["loss"]) for _ in range(3)]
    assert len(set(losses)) == 3


def test_steps_long_after_the_start_still_have_dropout_of_their_own():
    config = tiny_config()
    model = make_model(config, features=(), rate=0.0)
    batch = make_batch(config)
    losses = set()
    # Past int32, counted in micro-batches.
    for done in (10**6, 10**6 + 1, 10**9):
        model.steps_done.assign(done)
        losses.add(float(model.train_step(batch)["loss"]))
    assert len(losses) == 3


@pytest.mark.parametrize(
    "pruning",
    [
        (
            *("--pruning=magnitude", "--sparsity=0.5"),
            "--distill=logits,hidden,attention",
        ),
        (
            *("--pruning=width", "--keep_heads=1", "--ffn_hidden_dim=9"),
            *("--pruning_end=0.5", "--distill=logits,hidden"),
        ),
    ],
)
def test_two_devices_train_as_one(tmp_path, pruning):
    task = {"name": "SST-2", "labels": ["0", "1"]}
    init = tiny_runs.write_checkpoint(tmp_path / "init", **NO_DROPOUT)
    teacher = tiny_runs.write_checkpoint(
        tmp_path / "teacher", task, seed=1, **NO_DROPOUT
    )
    common = (
        *("train", "--task_name=SST-2"),
        f"--data_dir={tiny_runs.write_sst2(tmp_path / 'data', train=22)}",
        *(f"--init_checkpoint={init}", f"--teacher_checkpoint={teacher}"),
        *(*pruning, "--hard_label_weight=1"),
        *tiny_runs.QUICK,
    )
    one = tiny_runs.start_command(
        tmp_path / "log1", *common, f"--output_dir={tmp_path}/one"
    )
    # Of three micro-batches of 2, 1 and 1 rows, one replica has none of two.
    two = tiny_runs.start_command(
        tmp_path / "log2",
        *common,
        *(f"--output_dir={tmp_path}/two", "--strategy=mirrored"),
        "--gradient_accumulation_steps=3",
        devices=2,
    )
    for process, log in ((one, "log1"), (two, "log2")):
        process.join()
        assert process.exitcode == 0, (tmp_path / log).read_text()
    assert "over 2 devices" in (tmp_path / "log2").read_text()
    weights = load_checkpoint(tmp_path / "one").weights
    for name, array in load_checkpoint(tmp_path / "two").weights.items():
        if name.endswith("key/bias"):
            # The softmax is blind to it: Adam makes steps of rounding errors.
            continue
        np.testing.assert_allclose(
            array, weights[name], rtol=1e-3, atol=1e-5, err_msg=name
        )
    metrics = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(tmp_path.glob("*/metrics.jsonl"))
    ]
    for one, two in zip(*metrics, strict=True):
        assert one == pytest.approx(two, rel=1e-4)


# === Precision ===


@pytest.fixture
def policy(request):
    keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", "mixed_float16"], indirect=True
)
def test_half_precision_trains_and_keeps_the_masks(policy):
    config = tiny_config()
    model = make_model(config, final=0.75)
    batch = make_batch(config)
    masks = {
        name: wrapper.pruning_vars[0][1].numpy()
        for name, wrapper in model.pruner.wrappers.items()
    }
    losses = [model.train_step(batch) for _ in range(10)]
    assert np.isfinite([float(loss["loss"]) for loss in losses]).all()
    assert float(losses[-1]["loss"]) < float(losses[0]["loss"])
    assert losses[0]["loss"].dtype == tf.float32
    outputs = model(batch)
    assert outputs["logits"].dtype == tf.float32
    half = tf.float16 if policy == "mixed_float16" else tf.bfloat16
    assert outputs["hidden_states"][-1].dtype == half
    for name, array in bert.get_weights(model.student).items():
        assert array.dtype == np.float32, name
        assert np.isfinite(array).all(), name
    for name, wrapper in model.pruner.wrappers.items():
        kernel = wrapper.layer.kernel.numpy()
        np.testing.assert_array_equal(kernel != 0, masks[name] != 0)
        assert masks[name].mean() == 0.25


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_an_overflow_in_float16_skips_the_step_and_halves_the_scale(policy):
    config = tiny_config()
    model = make_model(config, final=0.5)
    before = bert.get_weights(model.student)
    model.optimizer._loss_scale._current_loss_scale.assign(2.0**40)
    losses = model.train_step(make_batch(config))
    assert np.isfinite(float(losses["loss"]))
    assert float(model.optimizer.loss_scale) == 2.0**39
    for name, array in bert.get_weights(model.student).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    train(model, config)
    assert float(model.optimizer.loss_scale) == 2.0**36


@pytest.mark.parametrize("num_outputs", [1, 2])
def test_training_is_pytorch_s_step_by_step(tmp_path, num_outputs):
    """Live: a run in transformers, the losses of 20 steps, warm-up and all."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    task = tiny_bert.TASKS["regression"] if num_outputs == 1 else None
    config = tiny_bert.tiny_config(**NO_DROPOUT)
    weights = tiny_bert.random_weights(config, 0, num_outputs)
    save_huggingface(
        tmp_path, config, weights, tiny_bert.vocabulary(), True, task
    )
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path
    ).train()
    decayed = [
        not name.endswith(("bias", "LayerNorm.weight"))
        for name, _ in theirs.named_parameters()
    ]
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [
                    p
                    for p, d in zip(theirs.parameters(), decayed, strict=True)
                    if d == decays
                ],
                "weight_decay": 0.1 * decays,
            }
            for decays in (True, False)
        ],
        lr=1e-2,
    )
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: t / 5 if t < 5 else (20 - t) / 15
    )
    ours = step.DistillationModel(make_bert(config, num_outputs))
    schedule = WarmupSchedule(1e-2, num_steps=20, warmup_steps=5)
    ours.compile(build_optimizer(ours.student, "adamw", schedule, 0.1))
    for number in range(20):
        inputs = tiny_bert.random_inputs(config, 6, 9, seed=number)
        label = np.arange(6) % 2
        label = label.astype(np.float32 if num_outputs == 1 else np.int32)
        found = ours.train_step(
            {**{k: tf.constant(v) for k, v in inputs.items()}, "label": label}
        )["loss"]
        labels = torch.tensor(label)
        expected = theirs(
            input_ids=torch.tensor(inputs["input_word_ids"]).long(),
            attention_mask=torch.tensor(inputs["input_mask"]).long(),
            token_type_ids=torch.tensor(inputs["input_type_ids"]).long(),
            labels=labels if num_outputs == 1 else labels.long(),
        ).loss
        expected.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        assert float(found) == pytest.approx(expected.item(), rel=2e-4)
