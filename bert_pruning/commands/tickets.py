r"""Draws lottery tickets: heads and feed-forward blocks to train alone.

    python -m bert_pruning tickets --init_checkpoint=runs/mrpc \
        --scores=scores/mrpc --levels=10,20,30 --kinds=winning,random \
        --output_dir=tickets/mrpc

Then `train --structure=tickets/mrpc/winning_20.json`, from the pre-trained
weights. A level is a percentage, or the numbers of heads and blocks that are
left out, such as 28/2, whose file is winning_28_2.json. `tickets.json` lists
what was written.
"""

import dataclasses
import json

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import pruning_flags
from bert_pruning.compression.tickets import KINDS
from bert_pruning.compression.tickets import Level
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS


def define_flags():
    """Defines the flags of `tickets`."""
    flags.DEFINE_string("init_checkpoint", None, "The model that was scored.")
    flags.DEFINE_string("output_dir", None, "Receives the tickets.")
    flags.DEFINE_bool("overwrite", False, "Replace what is in --output_dir.")
    pruning_flags.define_scores()
    flags.DEFINE_list(
        "levels",
        ["10", "20", "30", "40", "50", "60", "70", "80"],
        "Percent of the heads to leave out, with 5/6 of it of the blocks; or "
        "the numbers of both, such as 28/2.",
    )
    flags.DEFINE_list(
        "kinds",
        list(KINDS),
        "winning: without the least important. losing: without the most "
        "important. random: without any.",
    )
    flags.DEFINE_list("seeds", ["1"], "Draws of the random tickets.")


def main():
    """Draws by the flags; returns the exit status."""
    check_flags()

    from bert_pruning.compression import costs
    from bert_pruning.compression import tickets
    from bert_pruning.modeling import checkpoints
    from bert_pruning.training.run import Run

    seeds = [_parse_seed(text) for text in FLAGS.seeds]
    run = Run(FLAGS.output_dir, shared.flags_as_text(), FLAGS.overwrite)
    checkpoint = checkpoints.load_checkpoint(FLAGS.init_checkpoint)
    config = checkpoint.config
    levels = {
        text.strip().replace("/", "_"): Level.parse(text, config)
        for text in FLAGS.levels
    }
    scores = pruning_flags.load_scores(checkpoint) if FLAGS.scores else None
    drawn = []
    for kind in FLAGS.kinds:
        for title, level in levels.items():
            for seed in seeds if kind == "random" else [None]:
                ticket = tickets.draw_ticket(
                    config, level, kind, scores, seed or 0
                )
                name = f"{kind}_{title}"
                if seed is not None and len(seeds) > 1:
                    name += f"_seed{seed}"
                drawn.append((f"{name}.json", kind, level, seed, ticket))
    run.begin()
    index = []
    whole = costs.parameters(config)
    for name, kind, level, seed, ticket in drawn:
        about = {
            **ticket.about,
            "seed": seed,
            "checkpoint": checkpoint.path,
            "scores": FLAGS.scores,
        }
        with run.writing():
            dataclasses.replace(ticket, about=about).save(run.path(name))
        left = costs.parameters(ticket.shrink(config)) / whole
        entry = {
            "file": name,
            "kind": kind,
            "heads_out": level.heads,
            "blocks_out": level.blocks,
            "seed": seed,
            "percent_left": round(100 * left, 3),
        }
        index.append(entry)
        print(
            f"{name}: {level.heads} of {sum(config.num_heads)} heads and "
            f"{level.blocks} block{'s' * (level.blocks != 1)} left out, "
            f"{100 * left:.2f} % of the "
            "parameters left"
        )
    run.write_text(
        "tickets.json", json.dumps({"tickets": index}, indent=2) + "\n"
    )
    run.complete()
    print(f"Tickets: {run.directory}")
    return 0


def check_flags():
    """Finds what contradicts itself before anything is loaded."""
    shared.require("init_checkpoint", "output_dir", "levels", "kinds", "seeds")
    shared.check_separate(FLAGS.output_dir, "init_checkpoint", "scores")
    for level in FLAGS.levels:
        Level.check(level)
    seeds = [_parse_seed(text) for text in FLAGS.seeds]
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"--seeds gives one twice. Received: {','.join(FLAGS.seeds)}."
        )
    for kind in FLAGS.kinds:
        if kind not in KINDS:
            raise UserError(
                f"--kinds takes {', '.join(KINDS)}. Received: {kind!r}."
            )
    if set(FLAGS.kinds) != {"random"} and not FLAGS.scores:
        raise UserError(
            "Winning and losing tickets need --scores, which `score "
            "--method=sensitivity` writes."
        )


def _parse_seed(text):
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**31:
        raise UserError(
            f"--seeds takes whole numbers from 0. Received: {text!r}."
        )
    return seed
