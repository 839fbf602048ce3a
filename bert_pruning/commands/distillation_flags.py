"""What a student learns from its teacher, by flags.

matches = build_matches(student.config, teacher.config)
"""

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS

# What a student can match with its teacher.
FEATURES = ("logits", "hidden", "attention")

# What `--distill` reads.
NAMES = (
    "hard_label_weight",
    "layer_map",
    "logits_loss",
    "temperature",
    *(f"{feature}_weight" for feature in FEATURES),
)


def define():
    """Defines the flags of the teacher and of the objective."""
    flags.DEFINE_string(
        "teacher_checkpoint", None, "A fine-tuned model of the same task."
    )
    flags.DEFINE_list(
        "distill",
        [],
        f"What to match with the teacher: {', '.join(FEATURES)}.",
    )
    flags.DEFINE_float("temperature", 1.0, "Softens the logits of both models.")
    flags.DEFINE_enum(
        "logits_loss",
        "cross_entropy",
        ["cross_entropy", "kl"],
        "cross_entropy: SparseBERT's, its mean over the classes. kl: Prune "
        "Once for All's divergence, times the temperature's square.",
    )
    flags.DEFINE_float(
        "hard_label_weight",
        None,
        "Weight of the loss on the true labels; default 1 without a teacher, "
        "0 with one.",
        0.0,
    )
    for feature in FEATURES:
        flags.DEFINE_float(
            f"{feature}_weight", 1.0, f"Weight of the {feature} loss.", 0.0
        )
    flags.DEFINE_list(
        "layer_map",
        None,
        "For a shallower student: the teacher's index of each hidden state, "
        "0 being the embedding output. Default: evenly spaced.",
    )


def check():
    """Finds what contradicts itself before anything is loaded.

    Raises:
        UserError: saying what.
    """
    for feature in FLAGS.distill:
        if feature not in FEATURES:
            raise UserError(
                f"--distill takes {', '.join(FEATURES)}. Received: {feature!r}."
            )
    if FLAGS.distill and not FLAGS.teacher_checkpoint:
        raise UserError("--distill needs --teacher_checkpoint.")
    if FLAGS.teacher_checkpoint and not FLAGS.distill:
        raise UserError(
            "--teacher_checkpoint needs --distill, such as "
            "--distill=logits,hidden,attention."
        )
    for feature in FEATURES:
        _check_use(f"{feature}_weight", (feature,))
        if feature in FLAGS.distill and FLAGS[f"{feature}_weight"].value == 0:
            raise UserError(
                f"--{feature}_weight=0 leaves nothing of {feature} to match. "
                f"Take it out of --distill={','.join(FLAGS.distill)}."
            )
    _check_use("temperature", ("logits",))
    _check_use("logits_loss", ("logits",))
    _check_use("layer_map", ("hidden", "attention"))
    if FLAGS.temperature <= 0:
        raise UserError(
            f"--temperature must be positive. Received: {FLAGS.temperature}."
        )
    if not all(entry.strip().isdigit() for entry in FLAGS.layer_map or ()):
        raise UserError(
            "--layer_map needs numbers, such as 0,2,4. Received: "
            f"{','.join(FLAGS.layer_map)}."
        )
    if label_weight() > 0 or "logits" in FLAGS.distill:
        return
    if not FLAGS.distill:
        raise UserError(
            "--hard_label_weight=0 without a teacher leaves nothing to learn."
        )
    raise UserError(
        "The classifier would learn from neither the teacher nor the labels. "
        "Add logits to --distill, or give --hard_label_weight=1. Received: "
        f"--distill={','.join(FLAGS.distill)}."
    )


def _check_use(name, features):
    """A flag of distillation that nothing reads is a mistake."""
    if shared.is_changed(name) and not set(features) & set(FLAGS.distill):
        raise UserError(
            f"--{name} needs {' or '.join(features)} in --distill. Received: "
            f"--distill={','.join(FLAGS.distill)}."
        )


def note_regression(title):
    """Says which flags have no part in matching scores."""
    unused = [
        f"--{name}"
        for name in ("temperature", "logits_loss")
        if shared.is_changed(name)
    ]
    if unused:
        shared.LOG.info(
            "%s is a regression, whose scores are matched by their squared "
            "difference, without %s.",
            *(title, " and ".join(unused)),
        )


def label_weight():
    """Returns the weight of the loss on the true labels."""
    if FLAGS.hard_label_weight is not None:
        return FLAGS.hard_label_weight
    return 0.0 if FLAGS.distill else 1.0


def build_matches(student, teacher):
    """Returns what the flags match between two shapes.

    Raises:
        UserError: if the shapes or the flags do not fit each other.
    """
    from bert_pruning.training import distillation  # Imports TensorFlow.

    hidden_map = None
    if FLAGS.layer_map is not None:
        hidden_map = tuple(int(entry) for entry in FLAGS.layer_map)
    return distillation.build_matches(
        FLAGS.distill,
        student,
        teacher,
        {feature: FLAGS[f"{feature}_weight"].value for feature in FEATURES},
        FLAGS.temperature,
        hidden_map,
        FLAGS.logits_loss,
    )
