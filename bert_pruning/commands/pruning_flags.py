"""How a model is made smaller while it trains, by flags.

sparsity = build_sparsity(checkpoint, num_steps)
shrinkage = build_shrinkage(checkpoint.config, num_steps)
"""

import math
import os

from absl import flags

from bert_pruning.commands import distillation_flags
from bert_pruning.commands import flags as shared
from bert_pruning.compression import importance
from bert_pruning.compression import shrinkage
from bert_pruning.compression import sparsity
from bert_pruning.errors import UserError
from bert_pruning.modeling import names

FLAGS = flags.FLAGS

# The flags that each method reads, those it cannot do without first.
_USES = {
    "magnitude": (
        "sparsity",
        "initial_sparsity",
        "pruning_begin",
        "pruning_end",
        "pruning_frequency",
        "prune_targets",
        "sparsity_m_by_n",
        "block_size",
        "block_pooling_type",
        "pruning_distribution",
        "pruning_regrowth",
        "pruning_update_end",
    ),
    "lock": ("sparsity",),
    "width": (
        "keep_heads",
        "pruning_end",
        "ffn_hidden_dim",
        "emb_hidden_dim",
        "carry_optimizer",
    ),
    "depth": ("num_layers", "pruning_end", "carry_optimizer"),
}
_EXAMPLES = {"sparsity": "0.8", "keep_heads": "2", "num_layers": "8"}

# What `--pruning` reads.
NAMES = tuple(sorted({name for used in _USES.values() for name in used}))

# The parts of a model beside the encoder.
_TASK_HEADS = ("pooler", "classifier")

# Stands for the steps of a run before its data are read.
_SYMBOLIC_STEPS = 10_000


def define():
    """Defines the flags of pruning."""
    text, number, real = (
        flags.DEFINE_string,
        flags.DEFINE_integer,
        flags.DEFINE_float,
    )
    flags.DEFINE_enum(
        "pruning",
        "none",
        ["none", *_USES],
        "magnitude: zeroes weights of the encoder's kernels gradually, to "
        "--sparsity. lock: keeps the zeros of a sparse checkpoint. width: cuts "
        "heads out, one a time, with neurons and the rank of the embeddings "
        "beside them. depth: drops the topmost layer, one a time.",
    )
    real(
        "sparsity",
        None,
        "Share of zeros in each kernel at the end; of --pruning=lock, what "
        "the checkpoint must have at least.",
    )
    real("initial_sparsity", 0.0, "At the start; = --sparsity: one-shot.")
    real("pruning_begin", 0.0, "Where the ramp begins, as a share of steps.")
    real(
        "pruning_end",
        1.0,
        "Where the ramp, or the last cut, ends, as a share of steps.",
    )
    number("pruning_frequency", 0, "Steps between updates; 0: ramp / 100.", 0)
    flags.DEFINE_list(
        "prune_targets",
        None,
        "Shell patterns of Dense layer names; default: the six per layer.",
    )
    text("sparsity_m_by_n", None, "M zeros in N weights, such as 2x4.")
    text("block_size", "1x1", "Blocks that are pruned as one, such as 4x1.")
    flags.DEFINE_enum(
        "block_pooling_type", "AVG", ["AVG", "MAX"], "A block's magnitude."
    )
    flags.DEFINE_enum(
        "pruning_distribution",
        sparsity.DISTRIBUTIONS[0],
        sparsity.DISTRIBUTIONS,
        "uniform: each kernel is as sparse. global: one threshold for all. "
        "erdos_renyi: small kernels keep more.",
    )
    flags.DEFINE_enum(
        "pruning_regrowth",
        sparsity.REGROWTHS[0],
        sparsity.REGROWTHS,
        "none: a pruned weight is zero for good. shadow: its value is kept and "
        "may come back. straight_through: its gradient moves that value on.",
    )
    real(
        "pruning_update_end",
        None,
        "With --pruning_regrowth, where the masks change last, as a share of "
        "steps; default: --pruning_end.",
    )
    define_shape()
    text(
        "structure",
        None,
        "A structure.json or a ticket: what else the model has is cut out "
        "before it trains.",
    )
    flags.DEFINE_bool(
        "carry_optimizer",
        False,
        "Keep the optimizer's state of what a cut leaves; default: anew.",
    )


def define_shape():
    """Defines the flags of a smaller model's shape."""
    number = flags.DEFINE_integer
    number("keep_heads", None, "Attention heads of each layer.", 1)
    number("num_layers", None, "Layers, counted from the embeddings.", 1)
    number("ffn_hidden_dim", None, "Feed-forward neurons of each layer.", 1)
    number("emb_hidden_dim", None, "Rank of the word embeddings.", 1)


def define_scores():
    """Defines where the scores are."""
    flags.DEFINE_string(
        "scores", None, "What `score` wrote: the folder, or its scores.npz."
    )


def load_scores(checkpoint):
    """Reads the scores that the flags name.

    Raises:
        UserError: if they are not those of the checkpoint.
    """
    path = FLAGS.scores
    if os.path.isdir(path):
        path = os.path.join(path, "scores.npz")
    scores = importance.Scores.load(path)
    try:
        scores.check_fits(checkpoint.config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if scores.about.get("fingerprint") != importance.fingerprint(
        checkpoint.weights
    ):
        raise UserError(
            f"{path} holds the scores of another model, "
            f"{scores.about.get('checkpoint', 'which it does not name')}. "
            f"Score {checkpoint.path} first."
        )
    return scores


def check():
    """Finds what contradicts itself before anything is loaded.

    Raises:
        UserError: saying what.
    """
    used = _USES.get(FLAGS.pruning, ())
    for name in NAMES:
        if name not in used and shared.is_changed(name):
            methods = [m for m, used in _USES.items() if name in used]
            raise UserError(f"--{name} needs --pruning={' or '.join(methods)}.")
    if FLAGS.pruning in ("none", "lock"):
        return
    if shared.is_changed("block_pooling_type") and FLAGS.block_size == "1x1":
        raise UserError(
            "--block_pooling_type is of blocks, and needs --block_size, such "
            "as 4x1."
        )
    needed = used[0]
    if FLAGS[needed].value is None:
        raise UserError(
            f"--pruning={FLAGS.pruning} needs --{needed}, such as "
            f"{_EXAMPLES[needed]}."
        )
    update_end = FLAGS.pruning_update_end
    if update_end is not None and not 0.0 < update_end <= 1.0:
        raise UserError(
            "--pruning_update_end is a share of the training. Received: "
            f"{update_end}."
        )
    if not 0.0 <= FLAGS.pruning_begin <= FLAGS.pruning_end <= 1.0:
        raise UserError(
            "--pruning_begin and --pruning_end are shares of the training, "
            "from 0 to 1, and the ramp may not end before it begins. Received: "
            f"{FLAGS.pruning_begin} and {FLAGS.pruning_end}."
        )
    if FLAGS.pruning != "magnitude" and not 0.0 < FLAGS.pruning_end < 1.0:
        raise UserError(
            f"--pruning={FLAGS.pruning} needs --pruning_end, such as 0.5: the "
            "share of the training in which the model is cut. It trains on "
            f"at its final size. Received: {FLAGS.pruning_end}."
        )
    if FLAGS.pruning == "magnitude":
        _gradual_sparsity(FLAGS.max_steps)


def build_sparsity(checkpoint, num_steps=None, heads=_TASK_HEADS):
    """Returns what the flags say of zeros in kernels.

    Args:
        checkpoint: Checkpoint. To begin with.
        heads: tuple of str. Of the model, as `names.Weight.group` has them.
        num_steps: int or None. Optimizer steps of the run; None: not known
            yet, so that how often the masks change cannot be checked.

    Returns:
        A `Sparsity`, or None without this kind of pruning.

    Raises:
        UserError: if the flags contradict each other or the checkpoint.
    """
    if FLAGS.pruning == "magnitude":
        return _gradual_sparsity(num_steps)
    if FLAGS.pruning == "lock":
        kernels = _kernels(checkpoint, heads)
        return sparsity.find_pattern(kernels, FLAGS.sparsity)
    return None


def _kernels(checkpoint, heads):
    """Of the encoder, and of the pooler where the task has one."""
    kernels = {
        name.removesuffix("/kernel"): array
        for name, array in checkpoint.weights.items()
        if name.endswith("/kernel") and name.startswith("layer_")
    }
    if "pooler" in heads and "pooler/kernel" in checkpoint.weights:
        kernels["pooler"] = checkpoint.weights["pooler/kernel"]
    return kernels


def _gradual_sparsity(num_steps):
    frequency = FLAGS.pruning_frequency
    if num_steps is None:
        num_steps, frequency = _SYMBOLIC_STEPS, 0
    options = {}
    if FLAGS.prune_targets is not None:
        options["targets"] = tuple(FLAGS.prune_targets)
    if FLAGS.sparsity_m_by_n:
        options["m_by_n"] = shared.pair("sparsity_m_by_n")
    if FLAGS.pruning_update_end is not None:
        options["update_end_step"] = math.ceil(
            num_steps * FLAGS.pruning_update_end
        )
    return sparsity.Sparsity(
        final=FLAGS.sparsity,
        initial=FLAGS.initial_sparsity,
        begin_step=math.floor(num_steps * FLAGS.pruning_begin),
        end_step=math.ceil(num_steps * FLAGS.pruning_end),
        frequency=frequency,
        block_size=shared.pair("block_size"),
        block_pooling_type=FLAGS.block_pooling_type,
        distribution=FLAGS.pruning_distribution,
        regrowth=FLAGS.pruning_regrowth,
        **options,
    )


def build_shrinkage(config, num_steps=None):
    """Returns what the flags say of cutting the model smaller.

    Args:
        config: BertConfig. The shape to begin with.
        num_steps: int or None. Optimizer steps of the run; None: not known
            yet, so that how many cuts there is time for cannot be checked.

    Returns:
        A `Shrinkage`, or None without this kind of pruning.

    Raises:
        UserError: if the flags contradict each other or the model.
    """
    num_steps = math.floor((num_steps or _SYMBOLIC_STEPS) * FLAGS.pruning_end)
    if FLAGS.pruning == "width":
        return shrinkage.width_shrinkage(
            config,
            num_steps,
            FLAGS.keep_heads,
            FLAGS.ffn_hidden_dim,
            FLAGS.emb_hidden_dim,
        )
    if FLAGS.pruning == "depth":
        return shrinkage.depth_shrinkage(config, num_steps, FLAGS.num_layers)
    return None


def shapes_of(config, num_steps=None):
    """Returns the shapes that a model has on its way, the first included."""
    found = build_shrinkage(config, num_steps or FLAGS.max_steps)
    return (config,) if found is None else found.shapes


def check_teacher(config, teacher):
    """Checks that a model can learn from a teacher in each of its shapes.

    Args:
        config: BertConfig. The model's first shape.
        teacher: BertConfig.

    Raises:
        UserError: if it cannot.
    """
    for shape in shapes_of(config):
        distillation_flags.build_matches(shape, teacher)


def check_model(
    checkpoint, heads=_TASK_HEADS, num_outputs=None, num_steps=None
):
    """Checks the flags of pruning against a model that is not built yet.

    A sparse one that is about to become dense is warned of.

    Args:
        checkpoint: Checkpoint. To begin with.
        heads: tuple of str. Of the model, as `names.Weight.group` has them.
        num_outputs: int or None. Of the classifier; None: not known yet.
        num_steps: int or None. Optimizer steps of the run; None: those of
            --max_steps, if it says.

    Raises:
        UserError: if they contradict each other or the model.
    """
    num_steps = num_steps or FLAGS.max_steps
    shapes_of(checkpoint.config, num_steps)
    pruning = build_sparsity(checkpoint, num_steps, heads)
    if pruning is None:
        sparse = sparsity.find_sparse(_kernels(checkpoint, heads))
        if sparse:
            shared.LOG.warning(
                "%s has zeros in %d kernels. They will not stay: to keep them "
                "give --pruning=lock.",
                *(checkpoint.path, len(sparse)),
            )
        return
    if FLAGS.pruning == "lock":
        dense = _kernels(checkpoint, heads).keys() - set(pruning.targets)
        shared.LOG.info(
            "Locked: %d kernels, of which %.4f are zeros%s",
            *(len(pruning.targets), pruning.final),
            f"; dense: {', '.join(sorted(dense))}" if dense else "",
        )
    kernels = {
        row.name.removesuffix("/kernel"): row.shape
        for row in names.weight_table(checkpoint.config, "huggingface")
        if row.name.endswith("/kernel") and row.group in (None, *heads)
    }
    if "classifier" in kernels:
        kernels["classifier"] = kernels["classifier"][0], num_outputs
    targets = sparsity.find_targets(kernels, pruning)
    if FLAGS.pruning == "lock":
        return
    dead = _dead_share(_kernels(checkpoint, heads), targets)
    if dead > pruning.final:
        shared.LOG.warning(
            "Of the kernels that are pruned %.4f lie in rows or columns of "
            "nothing but zeros. Where heads or neurons were cut out and filled "
            "up again these stay zero, and there will be more zeros than "
            "--sparsity=%g: take the smaller model.",
            *(dead, pruning.final),
        )


def _dead_share(kernels, targets):
    """Returns how much of some kernels has a row or column of zeros."""
    sizes = alive = 0
    for name in targets & kernels.keys():
        kept = kernels[name] != 0.0
        sizes += kept.size
        alive += kept.any(1).sum() * kept.any(0).sum()
    return 1.0 - alive / sizes if sizes else 0.0
