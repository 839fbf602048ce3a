r"""Cuts a model down to its most important heads, neurons and layers.

    python -m bert_pruning shrink --init_checkpoint=runs/mrpc \
        --scores=scores/mrpc --keep_heads=2 --num_layers=8 \
        --ffn_hidden_dim=512 --emb_hidden_dim=128 --output_dir=shrunk/mrpc

The smaller model is written to a folder of --output_dir named by its shape:
a2_l8_f512_e128 has 2 heads, 8 layers, 512 neurons and word embeddings of rank
128 (-1: not factorised).
"""

import os

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import parts
from bert_pruning.commands import pruning_flags
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS

_UNIFORM = ("keep_heads", "ffn_hidden_dim")
_RATIOS = {"mac_ratio": "macs", "param_ratio": "parameters"}


def define_flags():
    """Defines the flags of `shrink`."""
    flags.DEFINE_string("init_checkpoint", None, "The model.")
    flags.DEFINE_string("output_dir", None, "The folder above the new run's.")
    flags.DEFINE_bool("overwrite", False, "Replace the run of this shape.")
    flags.DEFINE_string(
        "task_name",
        None,
        "Of a run of several tasks: cuts this one's part out.",
    )
    pruning_flags.define_scores()
    pruning_flags.define_shape()
    for name, cost in _RATIOS.items():
        flags.DEFINE_float(
            name,
            None,
            f"Share of the encoder's {cost} to keep, in all layers together, "
            "instead of a shape.",
            0.0,
            1.0,
        )
    flags.DEFINE_string(
        "keep_structure", None, "A structure.json, instead of a shape."
    )
    flags.DEFINE_integer(
        "max_seq_length", 128, "Tokens for which --mac_ratio counts.", 1
    )


def main():
    """Shrinks by the flags; returns the exit status."""
    check_flags()

    from bert_pruning.compression import costs
    from bert_pruning.compression import surgery
    from bert_pruning.modeling import checkpoints
    from bert_pruning.training.run import TEXTS_FILE
    from bert_pruning.training.run import Run

    checkpoint = checkpoints.load_checkpoint(FLAGS.init_checkpoint)
    whole = checkpoint.config
    ticket = None
    if checkpoint.tasks:
        checkpoint, ticket = _part_of_task(checkpoint)
    elif FLAGS.task_name:
        raise UserError(
            f"{checkpoint.path} is no run of several tasks; leave out "
            f"--task_name={FLAGS.task_name}."
        )
    structure = _find_structure(checkpoint)
    config, weights = surgery.shrink(
        checkpoint.config, checkpoint.weights, structure
    )
    if FLAGS.emb_hidden_dim is not None:
        config, weights = surgery.factorize_embeddings(
            config, weights, FLAGS.emb_hidden_dim
        )
    if ticket is not None:
        # Of the whole model, as what is written of any other run.
        composed = ticket.then(structure)
        is_ticket = composed.units == ticket.units
        structure = ticket if is_ticket else composed
    folder = config.short_name
    if FLAGS.task_name:
        # Two tasks may use equally much.
        folder = f"{checkpoint.task['name']}_{folder}"
    directory = os.path.join(FLAGS.output_dir, folder)
    shared.check_separate(directory, "init_checkpoint", "scores")
    run = Run(directory, shared.flags_as_text(), FLAGS.overwrite)
    run.begin()
    with run.writing():
        checkpoints.save_huggingface(
            str(run.directory),
            config,
            weights,
            checkpoint.vocabulary,
            checkpoints.resolve_do_lower_case(checkpoint, None),
            checkpoint.task,
        )
        structure.save(run.path("structure.json"))
    # What reads the smaller run cuts texts as before.
    run.write_text(TEXTS_FILE, shared.texts_as_flags(FLAGS.init_checkpoint))
    run.complete()
    for title, count in (
        ("parameters", costs.parameters),
        (
            f"encoder operations at {FLAGS.max_seq_length} tokens",
            lambda shape: costs.encoder_macs(shape, FLAGS.max_seq_length),
        ),
    ):
        before, after = count(whole), count(config)
        ratio = f"{before / after:.2f} times fewer"
        print(f"{title}: {before:,} -> {after:,}, {ratio}")
    print(f"Run: {run.directory}")
    return 0


def check_flags():
    """Finds what contradicts itself before anything is loaded."""
    shared.require("init_checkpoint", "output_dir")
    shared.check_finite()
    shape = [
        name
        for name in (*_UNIFORM, *_RATIOS, "keep_structure")
        if FLAGS[name].value is not None
    ]
    ways = [name for name in shape if name not in _UNIFORM] + [
        name for name in shape if name in _UNIFORM
    ][:1]
    if len(ways) > 1:
        raise UserError(
            f"--{ways[0]} and --{ways[1]} are two ways to say what is kept; "
            "give one."
        )
    if FLAGS.keep_structure and (FLAGS.num_layers or FLAGS.scores):
        extra = "num_layers" if FLAGS.num_layers else "scores"
        raise UserError(f"--keep_structure says what is kept, not --{extra}.")
    cuts = (FLAGS.num_layers, FLAGS.emb_hidden_dim, FLAGS.task_name)
    if not (shape or any(cuts)):
        raise UserError(
            "What shall be cut? Give --keep_heads, --num_layers, "
            "--ffn_hidden_dim, --emb_hidden_dim, --mac_ratio, --param_ratio "
            "or --keep_structure; or --task_name, of a run of several tasks."
        )
    if set(ways) & set(_RATIOS) and not FLAGS.scores:
        raise UserError(f"--{ways[0]} needs --scores, which `score` writes.")
    if FLAGS.scores and not ways:
        raise UserError(
            "--scores say which heads and neurons are kept; layers are counted "
            "from the embeddings. Give --keep_heads, --ffn_hidden_dim, "
            "--mac_ratio or --param_ratio, or leave out --scores."
        )


def _part_of_task(checkpoint):
    name = FLAGS.task_name and parts.find_part(checkpoint, FLAGS.task_name)
    if not name:
        raise UserError(
            f"{checkpoint.path} was trained on {', '.join(checkpoint.tasks)}. "
            "Say which by --task_name. Received: "
            f"{FLAGS.task_name or 'none'}."
        )
    return parts.task_part(checkpoint, name), parts.ticket_of(checkpoint, name)


def _find_structure(checkpoint):
    from bert_pruning.compression import structure

    config = checkpoint.config
    if FLAGS.keep_structure:
        return structure.Structure.load(FLAGS.keep_structure)
    scores = None
    if FLAGS.scores:
        scores = pruning_flags.load_scores(checkpoint)
    for flag, cost in _RATIOS.items():
        if FLAGS[flag].value is not None:
            return structure.within_budget(
                config,
                scores,
                cost,
                FLAGS[flag].value,
                FLAGS.num_layers,
                FLAGS.max_seq_length,
            )
    return structure.keep_top(
        config,
        scores,
        FLAGS.num_layers,
        FLAGS.keep_heads,
        FLAGS.ffn_hidden_dim,
    )
