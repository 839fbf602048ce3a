r"""Draws lottery tickets: heads and feed-forward blocks to train alone.

    python -m bert_pruning tickets --init_checkpoint=runs/mrpc \
        --scores=scores/mrpc --levels=10,20,30 --kinds=winning,random \
        --output_dir=tickets/mrpc

Then `train --structure=tickets/mrpc/winning_20.json`, from the pre-trained
weights. A level is a percentage, or the numbers of heads and blocks that are
left out, such as 28/2, whose file is winning_28_2.json. `tickets.json` lists
what was written.

    python -m bert_pruning tickets --init_checkpoint=BERT \
        --union=tickets/mrpc/winning_20.json,tickets/rte/winning_30.json \
        --output_dir=tickets/both

writes union.json, what either keeps: the part of the model that tasks share.
--complement=FILE writes complement.json, what a ticket leaves out.
"""

import dataclasses
import functools
import json

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import pruning_flags
from bert_pruning.compression.tickets import KINDS
from bert_pruning.compression.tickets import Level
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS

# What takes tickets that are there.
_SETS = ("union", "complement")


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
        "the numbers of both, such as 28/2, in recipes 28_2.",
    )
    flags.DEFINE_list(
        "kinds",
        list(KINDS),
        "winning: without the least important. losing: without the most "
        "important. random: without any.",
    )
    flags.DEFINE_list("seeds", ["1"], "Draws of the random tickets.")
    flags.DEFINE_list(
        "union", [], "Tickets, or other structures, to unite instead."
    )
    flags.DEFINE_string(
        "complement", None, "A ticket whose opposite is wanted instead."
    )


def main():
    """Draws or combines by the flags; returns the exit status."""
    check_flags()

    from bert_pruning.compression import costs
    from bert_pruning.modeling import checkpoints
    from bert_pruning.training.run import Run

    run = Run(FLAGS.output_dir, shared.flags_as_text(), FLAGS.overwrite)
    checkpoint = checkpoints.load_checkpoint(FLAGS.init_checkpoint)
    made = _combine() if _combines() else _draw(checkpoint)
    index = []
    for name, ticket in made.items():
        left = costs.percent_left(
            ticket.shrink(checkpoint.config), checkpoint.config
        )
        index.append(
            {
                "file": f"{name}.json",
                "kind": ticket.about["kind"],
                "heads_out": sum(ticket.num_heads)
                - sum(map(len, ticket.heads)),
                "blocks_out": sum(map(bool, ticket.intermediate_sizes))
                - sum(map(bool, ticket.neurons)),
                "seed": ticket.about.get("seed"),
                "percent_left": round(left, 3),
            }
        )
    run.begin()
    for entry, ticket in zip(index, made.values(), strict=True):
        about = {**ticket.about, "checkpoint": checkpoint.path}
        with run.writing():
            dataclasses.replace(ticket, about=about).save(
                run.path(entry["file"])
            )
        print(
            f"{entry['file']}: {entry['heads_out']} of "
            f"{sum(ticket.num_heads)} heads and {entry['blocks_out']} block"
            f"{'s' * (entry['blocks_out'] != 1)} left out, "
            f"{entry['percent_left']:.2f} % of the parameters left"
        )
    run.write_text(
        "tickets.json", json.dumps({"tickets": index}, indent=2) + "\n"
    )
    run.complete()
    print(f"Tickets: {run.directory}")
    return 0


def _draw(checkpoint):
    """Returns the tickets of all kinds and levels by the names of files."""
    from bert_pruning.compression import tickets

    levels = {}
    for text in FLAGS.levels:
        level = Level.parse(text, checkpoint.config)
        if level in levels.values():
            raise UserError(
                f"--levels={','.join(FLAGS.levels)}: of this model, {text} "
                "leaves out what one before does. Leave one of them away."
            )
        levels[text] = level
    scores = pruning_flags.load_scores(checkpoint) if FLAGS.scores else None
    drawn = {}
    for name, (kind, text, seed) in _names(
        FLAGS.kinds, FLAGS.levels, FLAGS.seeds
    ).items():
        ticket = tickets.draw_ticket(
            checkpoint.config, levels[text], kind, scores, seed or 0
        )
        about = {**ticket.about, "seed": seed, "scores": FLAGS.scores}
        drawn[name] = dataclasses.replace(ticket, about=about)
    return drawn


def _names(kinds, levels, seeds):
    """Returns the kind, level and seed of each ticket, by its file's name."""
    found = {}
    for kind in kinds:
        for level in levels:
            for seed in seeds if kind == "random" else [None]:
                name = f"{kind}_{level.strip().replace('/', '_')}"
                if seed is not None:
                    seed = _parse_seed(seed)
                    name += f"_seed{seed}" if len(seeds) > 1 else ""
                found[name] = kind, level, seed
    return found


def _combine():
    """Returns what set algebra makes of given tickets, by names of files."""
    from bert_pruning.compression import tickets
    from bert_pruning.compression.structure import Structure

    made = {}
    if FLAGS.union:
        parts = map(Structure.load, FLAGS.union)
        made["union"] = functools.reduce(tickets.union, parts)
    if FLAGS.complement:
        ticket = Structure.load(FLAGS.complement)
        try:
            made["complement"] = tickets.complement(ticket)
        except UserError as error:
            raise UserError(
                f"{FLAGS.complement} has no complement: {error}"
            ) from error
    return {
        kind: dataclasses.replace(
            structure, about={"kind": kind, "of": FLAGS[kind].value}
        )
        for kind, structure in made.items()
    }


def _combines():
    return any(FLAGS[name].value for name in _SETS)


def check_flags():
    """Finds what contradicts itself before anything is loaded."""
    shared.require("init_checkpoint", "output_dir")
    if not _combines():
        shared.require("levels", "kinds", "seeds")
    shared.check_separate(FLAGS.output_dir, "init_checkpoint", "scores", *_SETS)
    if _combines():
        shared.refuse_flags(
            ("scores", "levels", "kinds", "seeds"), "--union or --complement"
        )
        if len(FLAGS.union) == 1:
            raise UserError(
                "--union takes two tickets or more, with commas between. "
                f"Received: {FLAGS.union[0]}."
            )
        return
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
    if len(set(FLAGS.kinds)) < len(FLAGS.kinds):
        raise UserError(
            f"--kinds gives one twice. Received: {','.join(FLAGS.kinds)}."
        )
    if set(FLAGS.kinds) != {"random"} and not FLAGS.scores:
        raise UserError(
            "Winning and losing tickets need --scores, which `score "
            "--method=sensitivity` writes."
        )


def files_of(call):
    """Returns the names of the files that a call writes.

    Args:
        call: dict of str. Its flags.
    """
    names = [name for name in _SETS if call[name]]
    if not names:
        names = _names(
            *(call[name].split(",") for name in ("kinds", "levels", "seeds"))
        )
    return [f"{name}.json" for name in ("tickets", *names)]


def check_calls(calls, config):
    """Checks the levels of several calls before the first of them.

    Args:
        calls: list of dicts of str. The flags of each.
        config: BertConfig. Of the model, or of a larger one that it is cut of.

    Raises:
        UserError: if a level leaves too much out, or two are one.
    """
    before = {}
    for call in calls:
        for text in filter(None, call["levels"].split(",")):
            level = Level.parse(text, config)
            drawn = call["init_checkpoint"], call["scores"], call["kinds"]
            other = before.setdefault((*drawn, level), text)
            if other != text:
                raise UserError(
                    f"The levels {other} and {text} are one, {level} of this "
                    "model. Leave one of them away."
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
