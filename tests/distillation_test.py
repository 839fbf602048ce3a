"""The losses equal their formulas; layer maps fit, or are refused."""

import numpy as np
import pytest
import scipy.special
import tensorflow as tf
import tiny_bert

from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.training import distillation
from bert_pruning.training.distillation import Match
from bert_pruning.training.distillation import build_matches
from bert_pruning.training.distillation import default_layer_map
from bert_pruning.training.distillation import explicit_layer_map

CONFIG = tiny_bert.tiny_config()


def random_arrays(count, shape, seed):
    random = np.random.default_rng(seed)
    return [
        3 * random.standard_normal(shape).astype(np.float32)
        for _ in range(count)
    ]


# === Losses ===


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_logits_loss_is_the_cross_entropy_over_the_classes(temperature):
    student, teacher = random_arrays(2, (5, 3), seed=0)
    targets = scipy.special.softmax(teacher / temperature, axis=-1)
    logs = scipy.special.log_softmax(student / temperature, axis=-1)
    loss = distillation.soft_cross_entropy(student, teacher, temperature)
    assert float(loss) == pytest.approx(-(targets * logs).mean(), rel=1e-5)


def test_a_new_student_starts_at_the_papers_loss():
    """ln 2 / 2 with two classes."""
    teacher = random_arrays(1, (50, 2), seed=0)[0]
    loss = distillation.soft_cross_entropy(np.zeros_like(teacher), teacher)
    assert float(loss) == pytest.approx(0.347, abs=5e-4)


def test_the_hidden_loss_is_a_sum_of_means_padding_included():
    student = random_arrays(3, (2, 5, 4), seed=0)
    teacher = random_arrays(7, (2, 5, 4), seed=1)
    layer_map = ((0, 0), (1, 3), (2, 6))
    expected = sum(
        np.mean((student[j] - teacher[i]) ** 2) for j, i in layer_map
    )
    loss = distillation.hidden_loss(student, teacher, layer_map)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_attention_loss_zeroes_the_columns_of_padded_keys():
    student = random_arrays(2, (2, 3, 5, 5), seed=0)
    teacher = random_arrays(4, (2, 3, 5, 5), seed=1)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    penalty = -10000.0 * (1 - mask)[:, None, None, :]
    student = [(scores + penalty).astype(np.float32) for scores in student]
    teacher = [(scores + penalty).astype(np.float32) for scores in teacher]
    expected = 0.0
    for j, i in ((0, 1), (1, 3)):
        # The paper's own words: what is below -100 is set to zero.
        ours = np.where(student[j] <= -100, 0, student[j])
        theirs = np.where(teacher[i] <= -100, 0, teacher[i])
        expected += np.mean((ours - theirs) ** 2)
    loss = distillation.attention_loss(student, teacher, mask, ((0, 1), (1, 3)))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_what_padded_keys_score_does_not_matter():
    student, teacher = random_arrays(2, (2, 3, 5, 5), seed=0)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], np.int32)
    keys = mask[:, None, None, :]
    noise = random_arrays(1, student.shape, seed=2)[0]
    losses = [
        distillation.attention_loss([scores], [teacher], mask, ((0, 0),))
        for scores in (student, student * keys + noise * (1 - keys))
    ]
    assert float(losses[0]) == float(losses[1])


def test_longer_padding_only_divides_the_attention_loss():
    student, teacher = random_arrays(2, (2, 3, 4, 4), seed=0)
    mask = np.ones((2, 4), np.int32)

    def sum_of_squares(width):
        extra = width - 4
        pad = ((0, 0), (0, 0), (0, 0), (0, extra))
        loss = distillation.attention_loss(
            [np.pad(student, pad, constant_values=-1e4)],
            [np.pad(teacher, pad, constant_values=-1.1e4)],
            np.pad(mask, ((0, 0), (0, extra))),
            ((0, 0),),
        )
        return float(loss) * width

    assert sum_of_squares(9) == pytest.approx(sum_of_squares(4), rel=1e-5)


def test_half_precision_is_compared_in_single():
    student, teacher = random_arrays(2, (2, 3, 4), seed=0)
    pair = [tf.cast(a, tf.bfloat16) for a in (student, teacher)]
    expected = np.mean((pair[0].numpy() - pair[1].numpy()).astype(float) ** 2)
    loss = distillation.mean_squared_error(*pair)
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("num_outputs", [3, 1])
def test_an_identical_teacher_leaves_only_the_entropy(num_outputs):
    model = bert.build_model(CONFIG, num_outputs)
    weights = tiny_bert.random_weights(CONFIG, 0, num_outputs)
    bert.set_weights(model, weights)
    inputs = tiny_bert.random_inputs(CONFIG, batch_size=4, length=6)
    outputs = model(inputs)
    features = ("logits", "hidden", "attention")
    losses = {
        match.feature: float(
            distillation.match_loss(
                match, outputs, outputs, inputs["input_mask"]
            )
        )
        for match in build_matches(features, CONFIG, CONFIG)
    }
    entropy = 0.0
    if num_outputs > 1:
        p = scipy.special.softmax(outputs["logits"].numpy(), axis=-1)
        entropy = scipy.stats.entropy(p, axis=-1).mean() / num_outputs
    assert losses["hidden"] == losses["attention"] == 0.0
    assert losses["logits"] == pytest.approx(entropy, rel=1e-5)


def test_a_regression_learns_from_the_teachers_score():
    student = {"logits": tf.constant([[1.0], [2.0]])}
    teacher = {"logits": tf.constant([[4.0], [2.5]])}
    match = Match("logits", temperature=7.0)
    loss = distillation.match_loss(match, student, teacher, None)
    assert float(loss) == pytest.approx((9 + 0.25) / 2)


def test_the_temperature_of_a_match_is_used():
    student, teacher = random_arrays(2, (5, 3), seed=0)
    loss = distillation.match_loss(
        Match("logits", temperature=4.0),
        {"logits": tf.constant(student)},
        {"logits": tf.constant(teacher)},
        None,
    )
    expected = distillation.soft_cross_entropy(student, teacher, 4.0)
    assert float(loss) == float(expected)


# === Layer maps ===


def test_twelve_layers_map_onto_six_as_in_the_paper():
    assert default_layer_map("hidden", 6, 12) == (
        *((0, 0), (1, 2), (2, 4), (3, 6)),
        *((4, 8), (5, 10), (6, 12)),
    )
    assert default_layer_map("attention", 6, 12) == (
        *((0, 1), (1, 3), (2, 5)),
        *((3, 7), (4, 9), (5, 11)),
    )


def test_equal_depths_map_layer_to_layer():
    hidden = default_layer_map("hidden", 12, 12)
    attention = default_layer_map("attention", 12, 12)
    assert hidden == tuple((j, j) for j in range(13))
    assert attention == tuple((j, j) for j in range(12))


def test_unequal_depths_leave_out_states_as_rosita_does():
    hidden = [teacher for _, teacher in default_layer_map("hidden", 8, 12)]
    assert hidden == [0, 1, 3, 4, 6, 7, 9, 10, 12]
    attention = [teacher for _, teacher in default_layer_map("attention", 4, 6)]
    assert attention == [0, 2, 3, 5]


@pytest.mark.parametrize("depths", [(7, 12), (5, 12), (13, 12), (4, 3)])
def test_depths_without_a_default_map_are_refused(depths):
    with pytest.raises(UserError, match="no default map.*--layer_map"):
        default_layer_map("hidden", *depths)


def test_an_explicit_map_names_the_layer_that_makes_each_state():
    hidden = (0, 1, 5, 6)
    assert explicit_layer_map("hidden", hidden, 3, 6) == (
        *((0, 0), (1, 1), (2, 5), (3, 6)),
    )
    assert explicit_layer_map("attention", hidden, 3, 6) == (
        *((0, 0), (1, 4), (2, 5)),
    )


def test_an_explicit_map_may_be_the_uniform_one():
    for feature in ("hidden", "attention"):
        explicit = explicit_layer_map(feature, (0, 2, 4, 6), 3, 6)
        assert explicit == default_layer_map(feature, 3, 6)


@pytest.mark.parametrize(
    ("hidden_map", "message"),
    [
        ((0, 1, 2), "needs 4 entries.*Received: 3"),
        ((0, 2, 2, 6), "must rise.*0,2,2,6"),
        ((0, 2, 4, 7), "must rise.*to 6.*0,2,4,7"),
        ((-1, 2, 4, 6), "must rise.*-1,2,4,6"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(hidden_map, message):
    with pytest.raises(UserError, match=message):
        explicit_layer_map("hidden", hidden_map, 3, 6)


# === Matches ===


def test_matches_carry_weights_temperature_and_maps():
    student = tiny_bert.tiny_config(num_layers=2)
    teacher = tiny_bert.tiny_config(num_layers=4)
    matches = build_matches(
        ("logits", "attention"), student, teacher, {"attention": 0.5}, 2.0
    )
    assert matches == (
        Match("logits", 1.0, (), 2.0),
        Match("attention", 0.5, ((0, 1), (1, 3)), 2.0),
    )
    (match,) = build_matches(["hidden"], student, teacher, hidden_map=(0, 1, 4))
    assert match.layer_map == ((0, 0), (1, 1), (2, 4))


def test_no_feature_is_no_match():
    assert build_matches((), CONFIG, CONFIG) == ()


@pytest.mark.parametrize(
    ("features", "changes", "options", "message"),
    [
        (["logit"], {}, {}, "logits, hidden, attention.*'logit'"),
        (["logits"] * 2, {}, {}, "twice.*logits,logits"),
        (["logits"], {}, {"temperature": 0.0}, "temperature.*0.0"),
        (["hidden"], {"num_layers": 5}, {}, "2 layers.*5.*--layer_map"),
        (["hidden"], {"num_layers": 1}, {}, "2 layers.*1"),
        (["hidden"], {"hidden_size": 16}, {}, "student 8, teacher 16"),
        (["attention"], {"num_heads": 4}, {}, "layer 0 with 2.*0 with 4"),
    ],
)
def test_a_pair_that_does_not_match_is_refused(
    features, changes, options, message
):
    teacher = tiny_bert.tiny_config(**changes)
    with pytest.raises(UserError, match=f"(?s){message}"):
        build_matches(features, CONFIG, teacher, **options)


def test_logits_match_any_two_shapes():
    teacher = tiny_bert.tiny_config(num_layers=3, hidden_size=16, num_heads=4)
    assert build_matches(["logits"], CONFIG, teacher) == (Match("logits"),)
