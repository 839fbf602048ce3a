"""How the flags of `train` make a model small, as plain values.

matches = build_matches(student.config, teacher.config)
sparsity = build_sparsity(num_steps)

"""

import math

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.compression import sparsity
from bert_pruning.modeling import names

FLAGS = flags.FLAGS

# Stands for the steps of a run before its data are read.
_SYMBOLIC_STEPS = 10_000


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
        {
            feature: FLAGS[f"{feature}_weight"].value
            for feature in shared.FEATURES
        },
        FLAGS.temperature,
        hidden_map,
    )


def build_sparsity(num_steps=None):
    """Returns what the flags say of pruning.

    Args:
        num_steps: int or None. Optimizer steps of the run; None: not known
            yet, so that how often the masks change cannot be checked.

    Returns:
        A `Sparsity`, or None without pruning.

    Raises:
        UserError: if the flags contradict each other.
    """
    if FLAGS.pruning == "none":
        return None
    frequency = FLAGS.pruning_frequency
    if num_steps is None:
        num_steps, frequency = _SYMBOLIC_STEPS, 0
    options = {}
    if FLAGS.prune_targets is not None:
        options["targets"] = tuple(FLAGS.prune_targets)
    if FLAGS.sparsity_m_by_n:
        options["m_by_n"] = shared.pair("sparsity_m_by_n")
    return sparsity.Sparsity(
        final=FLAGS.sparsity,
        initial=FLAGS.initial_sparsity,
        begin_step=math.floor(num_steps * FLAGS.pruning_begin),
        end_step=math.ceil(num_steps * FLAGS.pruning_end),
        frequency=frequency,
        block_size=shared.pair("block_size"),
        block_pooling_type=FLAGS.block_pooling_type,
        **options,
    )


def check_pruning(config):
    """Checks the flags of pruning against a model that is not built yet.

    Args:
        config: BertConfig. Its shape.

    Raises:
        UserError: if they contradict each other or the model.
    """
    pruning = build_sparsity(FLAGS.max_steps)
    if pruning is None:
        return
    # The classifier's columns, the task's classes, are not known yet.
    kernels = {
        row.name.removesuffix("/kernel"): row.shape
        for row in names.weight_table(config, "huggingface")
        if row.name.endswith("/kernel")
        and row.group in (None, "pooler", "classifier")
    }
    sparsity.find_targets(kernels, pruning)
