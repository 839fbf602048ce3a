"""What a student learns from: its task's labels and a teacher's features.

An objective is data: a list of `Match`, each one feature, weight and layer
map. The losses are pure functions of tensors.
"""

import dataclasses
import itertools

import tensorflow as tf

from bert_pruning.errors import UserError
from bert_pruning.modeling.config import BertConfig


@dataclasses.dataclass(frozen=True)
class Match:
    """One feature in which the student is to match its teacher.

    Args:
        feature: "logits", "hidden" (embedding output and every layer's) or
            "attention" (pre-softmax scores).
        weight: float. Factor of this loss in the sum.
        layer_map: tuple of pairs (student index, teacher index), for "hidden"
            and "attention". Hidden state 0 is the embedding output; attention
            index 0 is the first layer.
        temperature: float. Softens both distributions of "logits".
        logits_loss: "cross_entropy", as in SparseBERT, or "kl", as in Prune
            Once for All; see `soft_cross_entropy` and `kl_divergence`.

    Reference: [SparseBERT](https://arxiv.org/abs/2104.08682), after
    [TinyBERT](https://arxiv.org/abs/1909.10351).
    """

    feature: str
    weight: float = 1.0
    layer_map: tuple[tuple[int, int], ...] = ()
    temperature: float = 1.0
    logits_loss: str = "cross_entropy"


def default_layer_map(feature, student_layers, teacher_layers):
    """Maps a student's layers to layers of its teacher, evenly spaced.

    With `r = teacher_layers / student_layers` a whole number, hidden state j is
    matched with the teacher's `j * r`. Otherwise ROSITA's rule: of the
    teacher's hidden states those are left out whose number, counted from 1, is
    a multiple of r; where the others are not as many as the student's, there
    is no default. Layer j's attention is matched with that of the layer whose
    output is matched with layer j's.

    Args:
        feature: "hidden" or "attention".
        student_layers: int.
        teacher_layers: int.

    Returns:
        A tuple of (student index, teacher index).

    Raises:
        UserError: if there is no default map.

    Example:

    ```python
    default_layer_map("attention", 2, 6)  # ((0, 2), (1, 5))
    default_layer_map("hidden", 4, 6)  # to 0, 1, 3, 4 and 6
    ```

    Reference: [ROSITA](https://arxiv.org/abs/2103.11367).
    """
    if teacher_layers % student_layers == 0:
        ratio = teacher_layers // student_layers
        hidden_map = tuple(j * ratio for j in range(student_layers + 1))
    else:
        # (i + 1) is a multiple of teacher / student.
        hidden_map = tuple(
            i
            for i in range(teacher_layers + 1)
            if (i + 1) * student_layers % teacher_layers
        )
    if len(hidden_map) != student_layers + 1:
        raise UserError(
            f"A student of {student_layers} layers has no default map onto a "
            f"teacher of {teacher_layers}. Give --layer_map, the teacher's "
            f"index of each of its {student_layers + 1} hidden states, such "
            "as 0,1,3,4,6."
        )
    return explicit_layer_map(
        feature, hidden_map, student_layers, teacher_layers
    )


def explicit_layer_map(feature, hidden_map, student_layers, teacher_layers):
    """Turns the teacher's index of each hidden state into a layer map.

    Args:
        feature: "hidden" or "attention". Layer j's attention is matched with
            that of the layer whose output is hidden state `hidden_map[j + 1]`.
        hidden_map: tuple of `student_layers + 1` ints, rising, each in
            [0, teacher_layers].
        student_layers: int.
        teacher_layers: int.

    Raises:
        UserError: if the map does not fit the two models.
    """
    if len(hidden_map) != student_layers + 1:
        raise UserError(
            f"--layer_map needs {student_layers + 1} entries, one for the "
            "embedding output and one for each of the student's "
            f"{student_layers} layers. Received: {len(hidden_map)}."
        )
    rising = all(a < b for a, b in itertools.pairwise(hidden_map))
    if not rising or hidden_map[0] < 0 or hidden_map[-1] > teacher_layers:
        raise UserError(
            "--layer_map must rise within 0 (embedding output) to "
            f"{teacher_layers} (the teacher's last layer). Received: "
            f"{','.join(map(str, hidden_map))}."
        )
    if feature == "attention":
        return tuple(
            (j, max(teacher - 1, 0)) for j, teacher in enumerate(hidden_map[1:])
        )
    return tuple(enumerate(hidden_map))


def build_matches(
    features,
    student: BertConfig,
    teacher: BertConfig,
    weights=None,
    temperature=1.0,
    hidden_map=None,
    logits_loss="cross_entropy",
):
    """Builds the matches for a student and a teacher and checks they fit.

    Args:
        features: sequence of "logits", "hidden", "attention".
        student: BertConfig.
        teacher: BertConfig.
        weights: dict from feature to float, or None for 1.0 each.
        temperature: float. For the logits.
        hidden_map: tuple of ints or None. See `explicit_layer_map`; None for
            the default map.
        logits_loss: "cross_entropy" or "kl".

    Returns:
        A tuple of `Match`.

    Raises:
        UserError: if a feature is unknown or the two shapes do not match.

    Example:

    ```python
    matches = build_matches(("logits", "hidden"), config, config)
    ```
    """
    weights = weights or {}
    if len(set(features)) < len(features):
        raise UserError(
            f"--distill names a feature twice. Received: {','.join(features)}."
        )
    matches = []
    for feature in features:
        if feature not in LOSSES:
            raise UserError(
                f"--distill takes {', '.join(LOSSES)}. Received: {feature!r}."
            )
        layer_map = ()
        if feature != "logits":
            depths = (student.num_layers, teacher.num_layers)
            if hidden_map is None:
                layer_map = default_layer_map(feature, *depths)
            else:
                layer_map = explicit_layer_map(feature, hidden_map, *depths)
        if feature == "hidden" and student.hidden_size != teacher.hidden_size:
            raise UserError(
                "Hidden states can be matched only between equal widths. "
                f"Received: student {student.hidden_size}, teacher "
                f"{teacher.hidden_size}. Leave 'hidden' out of --distill."
            )
        if feature == "attention":
            for ours, theirs in layer_map:
                heads = student.num_heads[ours], teacher.num_heads[theirs]
                if heads[0] != heads[1]:
                    raise UserError(
                        "Attention can be matched only between equal numbers "
                        f"of heads. Received: student layer {ours} with "
                        f"{heads[0]}, teacher layer {theirs} with {heads[1]}. "
                        "Leave 'attention' out of --distill."
                    )
        if temperature <= 0:
            raise UserError(
                f"--temperature must be positive. Received: {temperature}."
            )
        matches.append(
            Match(
                feature,
                weights.get(feature, 1.0),
                layer_map,
                temperature,
                logits_loss,
            )
        )
    return tuple(matches)


def soft_cross_entropy(student_logits, teacher_logits, temperature=1.0):
    """Cross-entropy against the teacher's softened distribution.

    The mean is over batch and classes, as in SparseBERT and TinyBERT, so with
    C classes it is the usual value over C.

    Args:
        student_logits: float tensor `(batch, classes)`.
        teacher_logits: float tensor `(batch, classes)`.
        temperature: float. Divides both logits.

    Returns:
        A scalar.
    """
    targets = tf.nn.softmax(teacher_logits / temperature)
    log_probabilities = tf.nn.log_softmax(student_logits / temperature)
    return -tf.reduce_mean(targets * log_probabilities)


def kl_divergence(student_logits, teacher_logits, temperature=1.0, rows=None):
    """Divergence of the softened distribution from the teacher's.

    Times the temperature's square, so that its gradient is as large at any;
    the mean is over rows, as usual.

    Args:
        student_logits: float tensor `(..., classes)`.
        teacher_logits: float tensor `(..., classes)`.
        temperature: float. Divides both logits.
        rows: float tensor `(...)` or None. Weight of each row.

    Returns:
        A scalar.

    Reference: [Distilling the knowledge in a neural
    network](https://arxiv.org/abs/1503.02531).
    """
    targets = tf.nn.log_softmax(teacher_logits / temperature)
    found = tf.nn.log_softmax(student_logits / temperature)
    losses = tf.reduce_sum(tf.exp(targets) * (targets - found), -1)
    return temperature**2 * weighted_mean(losses, rows)


def weighted_mean(values, weights=None):
    """Mean of values by their weights; 0 where there are none.

    Args:
        values: float tensor.
        weights: float tensor of the same shape, or None for equal ones.
    """
    if weights is None:
        return tf.reduce_mean(values)
    # As the official BERT code has it.
    return tf.reduce_sum(values * weights) / (tf.reduce_sum(weights) + 1e-5)


def logits_loss(match, student_logits, teacher_logits, rows=None):
    """Computes the loss of a match of "logits".

    Args:
        match: Match.
        student_logits: float tensor `(..., classes)`. Of one class, a
            regression: the squared difference of the two predictions.
        teacher_logits: float tensor `(..., classes)`.
        rows: float tensor `(...)` or None. Weight of each row, for "kl".

    Returns:
        A scalar.
    """
    if student_logits.shape[-1] == 1:
        return mean_squared_error(student_logits, teacher_logits)
    if match.logits_loss == "kl":
        return kl_divergence(
            student_logits, teacher_logits, match.temperature, rows
        )
    return soft_cross_entropy(student_logits, teacher_logits, match.temperature)


def hidden_loss(student_states, teacher_states, layer_map):
    """Sum over the mapped layers of the mean squared difference.

    Args:
        student_states: list of tensors `(batch, length, hidden_size)`.
        teacher_states: list of tensors `(batch, length, hidden_size)`.
        layer_map: tuple of (student index, teacher index).

    Returns:
        A scalar; padded positions count, as in SparseBERT.
    """
    return tf.add_n(
        [
            mean_squared_error(student_states[ours], teacher_states[theirs])
            for ours, theirs in layer_map
        ]
    )


def attention_loss(student_scores, teacher_scores, mask, layer_map):
    """Sum over the mapped layers of the mean squared score difference.

    The columns of padded keys are zeroed on both sides; they and the rows of
    padded queries stay in the mean, as in SparseBERT.

    Args:
        student_scores: list of tensors `(batch, heads, length, length)`.
        teacher_scores: list of tensors `(batch, heads, length, length)`.
        mask: int tensor `(batch, length)`, 1 for real tokens.
        layer_map: tuple of (student index, teacher index).

    Returns:
        A scalar.
    """
    keys = tf.cast(mask, tf.float32)[:, tf.newaxis, tf.newaxis, :]
    return tf.add_n(
        [
            tf.reduce_mean(
                tf.square(
                    tf.cast(student_scores[ours], tf.float32)
                    - tf.cast(teacher_scores[theirs], tf.float32)
                )
                * keys
            )
            for ours, theirs in layer_map
        ]
    )


def mean_squared_error(a, b):
    """Mean over all elements, computed in float32."""
    return tf.reduce_mean(
        tf.math.squared_difference(
            tf.cast(a, tf.float32), tf.cast(b, tf.float32)
        )
    )


def match_loss(match, student, teacher, mask):
    """Computes one match's unweighted loss.

    Args:
        match: Match.
        student: dict of the student's outputs.
        teacher: dict of the teacher's outputs.
        mask: int tensor `(batch, length)`.

    Returns:
        A scalar. One output unit means regression: the squared difference of
        the two predictions.
    """
    return LOSSES[match.feature](match, student, teacher, mask)


def _logits(match, student, teacher, mask):
    return logits_loss(match, student["logits"], teacher["logits"])


def _hidden(match, student, teacher, mask):
    return hidden_loss(
        student["hidden_states"], teacher["hidden_states"], match.layer_map
    )


def _attention(match, student, teacher, mask):
    return attention_loss(
        student["attention_scores"],
        teacher["attention_scores"],
        mask,
        match.layer_map,
    )


LOSSES = {"logits": _logits, "hidden": _hidden, "attention": _attention}
