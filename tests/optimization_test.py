"""Both optimizers equal their formulas; the schedules equal theirs."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import tiny_bert

from bert_pruning.compression.pruning import wrap
from bert_pruning.compression.sparsity import Sparsity
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.training.optimization import OPTIMIZERS
from bert_pruning.training.optimization import AdamaxW
from bert_pruning.training.optimization import AdamW
from bert_pruning.training.optimization import WarmupSchedule
from bert_pruning.training.optimization import build_optimizer
from bert_pruning.training.optimization import split_decay


def clip(gradients, limit):
    """Scales all gradients so that their common norm is at most `limit`."""
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradients))
    return [g * min(1.0, limit / norm) for g in gradients]


def bert_adam_oracle(weights, gradients, rates, decays, limit):
    """The official BERT optimizer, written from its definition."""
    weights = [w.astype(np.float64) for w in weights]
    m = [np.zeros_like(w) for w in weights]
    v = [np.zeros_like(w) for w in weights]
    for rate, step in zip(rates, gradients, strict=True):
        for i, g in enumerate(clip(step, limit)):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            update = m[i] / (np.sqrt(v[i]) + 1e-6) + decays[i] * weights[i]
            weights[i] = weights[i] - rate * update
    return weights


def adamw_oracle(weights, gradients, rates, decays, limit):
    """torch.optim.AdamW after clip_grad_norm_, from its documentation."""
    weights = [w.astype(np.float64) for w in weights]
    m = [np.zeros_like(w) for w in weights]
    v = [np.zeros_like(w) for w in weights]
    for t, (rate, step) in enumerate(zip(rates, gradients, strict=True), 1):
        for i, g in enumerate(clip(step, limit)):
            weights[i] = weights[i] * (1 - rate * decays[i])
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            mean, square = m[i] / (1 - 0.9**t), v[i] / (1 - 0.999**t)
            weights[i] = weights[i] - rate * mean / (np.sqrt(square) + 1e-8)
    return weights


def adamax_oracle(weights, gradients, rates, decays, limit):
    """MT-DNN's Adamax, written from its definition."""
    weights = [w.astype(np.float64) for w in weights]
    m = [np.zeros_like(w) for w in weights]
    u = [np.zeros_like(w) for w in weights]
    for rate, step in zip(rates, gradients, strict=True):
        for i, g in enumerate(clip(step, limit)):
            m[i] = 0.9 * m[i] + 0.1 * g
            u[i] = np.maximum(0.999 * u[i], np.abs(g) + 1e-6)
            update = m[i] / (u[i] + 1e-6) + decays[i] * weights[i]
            weights[i] = weights[i] - rate * update
    return weights


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("bert_adam", bert_adam_oracle),
        ("adamw", adamw_oracle),
        ("adamax", adamax_oracle),
    ],
)
def test_steps_equal_the_formula(name, oracle):
    random = np.random.default_rng(0)
    config = tiny_bert.tiny_config(num_layers=1)
    model = bert.build_model(config, num_outputs=2)
    schedule = WarmupSchedule(1e-2, num_steps=10, warmup_steps=3)
    optimizer = build_optimizer(
        model, name, schedule, weight_decay=0.3, global_clipnorm=1.0
    )
    variables = model.trainable_variables
    for variable in variables:
        variable.assign(random.standard_normal(variable.shape))
    # Tiny ones as well, for which epsilon matters; the first not clipped.
    scales = [1e-3, 1e-6, 1e-8, 10.0, 0.1]
    gradients = [
        [
            (scale * random.standard_normal(v.shape)).astype(np.float32)
            for v in variables
        ]
        for scale in scales
    ]
    decays = [
        0.3 if v.name.split("/")[-1][:-2] in ("kernel", "embeddings") else 0.0
        for v in variables
    ]
    rates = [0.0, 1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2 * 6 / 7]
    expected = oracle(
        [v.numpy() for v in variables], gradients, rates, decays, 1.0
    )
    for step in gradients:
        optimizer.apply_gradients(
            zip(map(tf.constant, step), variables, strict=True)
        )
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(
            variable.numpy(), value, rtol=1e-6, atol=2e-6, err_msg=variable.name
        )


def test_adamw_is_exactly_torchs_where_epsilon_rules():
    variable = tf.Variable([1.0])
    optimizer = AdamW(1.0, weight_decay=None, **OPTIMIZERS["adamw"][1])
    optimizer.apply_gradients([(tf.constant([1e-8]), variable)])
    # The corrected means are the gradient itself: 1e-8 / (1e-8 + 1e-8).
    assert variable.numpy()[0] == pytest.approx(0.5, rel=1e-5)


def test_the_official_unit_test_converges():
    w = tf.Variable([0.1, -0.2, -0.1])
    target = tf.constant([0.4, 0.2, -0.5])
    optimizer = AdamW(0.2, weight_decay=None, **OPTIMIZERS["bert_adam"][1])
    for _ in range(100):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(target - w))
        optimizer.apply_gradients([(tape.gradient(loss, w), w)])
    np.testing.assert_allclose(w, target, rtol=1e-2, atol=1e-2)


def test_without_bias_correction_early_updates_are_large():
    variable = tf.Variable(0.0)
    optimizer = AdamW(1.0, weight_decay=None, **OPTIMIZERS["bert_adam"][1])
    updates, before = {}, 0.0
    for step in range(1, 1001):
        optimizer.apply_gradients([(tf.constant(1.0), variable)])
        updates[step] = before - float(variable)
        before = float(variable)
    assert updates[1] == pytest.approx(3.16, abs=5e-3)
    assert max(updates.values()) == pytest.approx(6.57, abs=5e-3)
    assert updates[10] == pytest.approx(6.5, abs=0.1)
    assert updates[100] == pytest.approx(3.24, abs=5e-3)
    assert updates[1000] == pytest.approx(1.26, abs=5e-3)


def test_every_variable_is_in_exactly_one_decay_group():
    config = tiny_bert.tiny_config()
    model = bert.build_model(config, num_outputs=2)
    for candidate in (model, wrap(model, Sparsity(final=0.5))):
        decayed, excluded = split_decay(candidate)
        names = [*decayed, *excluded]
        assert len(names) == len(set(names))
        both = [*decayed.values(), *excluded.values()]
        assert {id(v) for v in both} == {
            id(v) for v in candidate.trainable_variables
        }
        assert {name.split("/")[1] for name in decayed} == {
            *("kernel", "embeddings")
        }
        assert {name.split("/")[1] for name in excluded} == {
            *("bias", "gamma", "beta")
        }
        assert "word_embeddings/embeddings" in decayed
        assert "layer_0_query/kernel" in decayed
        assert "layer_1_output_norm/gamma" in excluded


def test_without_gradients_only_the_decayed_shrink():
    config = tiny_bert.tiny_config(num_layers=1)
    model = wrap(bert.build_model(config, num_outputs=2), Sparsity(final=0.5))
    optimizer = build_optimizer(model, "adamw", 0.5, weight_decay=0.1)
    for variable in model.trainable_variables:
        variable.assign(tf.ones_like(variable))
    optimizer.apply_gradients(
        (tf.zeros_like(v), v) for v in model.trainable_variables
    )
    decayed, excluded = split_decay(model)
    for group, expected in ((decayed, 0.95), (excluded, 1.0)):
        for name, variable in group.items():
            np.testing.assert_allclose(
                variable, expected, rtol=1e-6, err_msg=name
            )


def test_clipping_and_decay_can_be_switched_off():
    variable_of = {}
    for limit in (0.0, 1.0):
        model = bert.build_model(tiny_bert.tiny_config(num_layers=1), 2)
        variable = bert.named_variables(model)["classifier/kernel"]
        variable.assign(tf.ones_like(variable))
        optimizer = build_optimizer(
            model, "bert_adam", 1e-3, weight_decay=0.0, global_clipnorm=limit
        )
        # Small enough for epsilon to show the difference.
        optimizer.epsilon = 1.0
        optimizer.apply_gradients(
            (tf.fill(v.shape, 100.0), v) for v in model.trainable_variables
        )
        variable_of[limit] = variable.numpy()
    # m / (sqrt(v) + 1) = 10 / (3.162 + 1)
    np.testing.assert_allclose(variable_of[0.0], 1 - 1e-3 * 2.4025, rtol=1e-5)
    assert (variable_of[1.0] > 1 - 1e-5).all()


# === Schedules ===


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("constant", {0: 0, 5: 0.5, 9: 0.9, 10: 1, 55: 1, 100: 1}),
        ("linear", {0: 0, 5: 0.5, 9: 0.9, 10: 1, 55: 0.5, 99: 1 / 90, 100: 0}),
        ("official", {0: 0, 5: 0.5, 9: 0.9, 10: 0.9, 55: 0.45, 99: 0.01}),
    ],
)
def test_schedules_at_their_boundaries(decay, expected):
    schedule = WarmupSchedule(5e-5, 100, warmup_steps=10, decay=decay)
    for step, share in expected.items():
        assert float(schedule(step)) == pytest.approx(5e-5 * share, rel=1e-5)
    assert float(schedule(1000)) == (np.float32(5e-5) * (decay == "constant"))


def test_without_a_warm_up_the_first_rate_is_the_peak():
    for decay in ("constant", "linear", "official"):
        schedule = WarmupSchedule(5e-5, 100, decay=decay)
        assert float(schedule(0)) == pytest.approx(5e-5)


def test_the_rate_is_rewound_while_the_sparsity_rises():
    schedule = WarmupSchedule(
        *(1.0, 100_000, 1_000, "rewind"), ramp=(0, 50_000, 1_000)
    )
    published = {
        **{999: 0.999, 1_000: 1.0204, 1_999: 1.00002, 2_000: 1.0204},
        **{50_000: 1.0204, 60_000: 0.8163, 75_000: 0.5102, 80_000: 0.4082},
        100_000: 0.0,
    }
    # Those above the peak are its own here.
    for step, rate in published.items():
        found = float(schedule(step))
        assert found == pytest.approx(min(rate, 1.0), abs=6e-5)
    rates = schedule(tf.range(100_001)).numpy()
    assert rates.max() == 1.0
    later = WarmupSchedule(1.0, 100, 0, "rewind", ramp=(20, 60, 10))
    # A line of 60 steps, from which the ramp's 40 are left out.
    rates = [float(later(step)) for step in (0, 10, 20, 29, 30, 59, 60, 100)]
    expected = [60, 50, 40, 31, 40, 31, 40, 0]
    assert rates == pytest.approx([value / 60 for value in expected])
    again = WarmupSchedule.from_config(later.get_config())
    assert float(again(35)) == float(later(35))
    with pytest.raises(ValueError, match="needs one"):
        WarmupSchedule(1.0, 100, decay="rewind")


def test_a_run_of_warm_up_alone_is_no_division_by_zero():
    schedule = WarmupSchedule(1.0, num_steps=4, warmup_steps=4)
    values = [float(schedule(step)) for step in range(6)]
    assert values == [0.0, 0.25, 0.5, 0.75, 0.0, 0.0]


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="Received: 'cosine'"):
        WarmupSchedule(1.0, 10, decay="cosine")
    with pytest.raises(UserError, match="11 of 10"):
        WarmupSchedule(1.0, 10, warmup_steps=11)
    model = bert.build_model(tiny_bert.tiny_config(num_layers=1))
    with pytest.raises(UserError, match="adamw, bert_adam.*'sgd'"):
        build_optimizer(model, "sgd", 1.0)


def test_optimizer_and_schedule_are_serialisable():
    schedule = WarmupSchedule(5e-5, 100, 10, "official")
    for optimizer in (
        AdamW(schedule, bias_correction=False, global_clipnorm=1.0),
        AdamaxW(schedule, beta_2=0.5),
    ):
        copy = keras.optimizers.deserialize(
            keras.optimizers.serialize(optimizer)
        )
        assert type(copy) is type(optimizer)
        assert copy.get_config() == optimizer.get_config()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_task_moves_its_part_as_if_there_were_no_other(name):
    """Against an optimizer for each part that sees its task's steps alone."""
    optimizer_class, options = OPTIMIZERS[name]
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape) for shape in ((2, 3), (2,), (2,))]
    wide, whole, shared = (tf.Variable(a, dtype=tf.float32) for a in start)
    optimizer = optimizer_class(0.1, weight_decay=0.1, **options)
    optimizer.build([wide, whole, shared])
    task = tf.Variable(0, dtype=tf.int64)
    columns = np.array([[True, False, True], [False, False, True]])
    optimizer.divide_among_tasks(
        task, [(wide, columns), (whole, np.array([False, True]))]
    )

    @tf.function
    def step(gradients):
        variables = (wide, whole, shared)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    # Each column and variable, with an optimizer of its own.
    parts = {
        "0": tf.Variable(start[0][:, 0], dtype=tf.float32),
        "2": tf.Variable(start[0][:, 2], dtype=tf.float32),
        "whole": tf.Variable(start[1], dtype=tf.float32),
        "shared": tf.Variable(start[2], dtype=tf.float32),
    }
    users = {"0": [0], "2": [0, 1], "whole": [1], "shared": [0, 1]}
    alone = {}
    for part, variable in parts.items():
        alone[part] = optimizer_class(0.1, weight_decay=0.1, **options)
        alone[part].build([variable])
    for number in (0, 1, 1, 0, 1, 1, 1, 0, 1):
        task.assign(number)
        gradients = [
            tf.constant(rng.standard_normal(a.shape), tf.float32) for a in start
        ]
        step(gradients)
        of_parts = {
            "0": gradients[0][:, 0],
            "2": gradients[0][:, 2],
            "whole": gradients[1],
            "shared": gradients[2],
        }
        for part, variable in parts.items():
            if number in users[part]:
                alone[part].apply_gradients([(of_parts[part], variable)])
    np.testing.assert_array_equal(wide[:, 1], start[0][:, 1].astype("f"))
    for found, part in (
        (wide[:, 0], "0"),
        (wide[:, 2], "2"),
        (whole, "whole"),
        (shared, "shared"),
    ):
        np.testing.assert_allclose(found, parts[part], rtol=2e-5, atol=1e-6)


def test_a_step_decays_in_no_pass_of_kerass_own():
    model = bert.build_model(tiny_bert.tiny_config(), num_outputs=2)
    optimizer = build_optimizer(model, "adamw", 1e-3)
    variables = model.trainable_variables

    @tf.function
    def step():
        optimizer.apply_gradients(
            [(tf.ones_like(variable), variable) for variable in variables]
        )

    # It would subtract weight times rate times 0 from every weight.
    graph = step.get_concrete_function().graph.as_graph_def()
    kinds = [node.op for node in graph.node]
    for function in graph.library.function:
        kinds += [node.op for node in function.node_def]
    assert kinds.count("ResourceApplyAdam") == len(variables)
    assert "AssignSubVariableOp" not in kinds
