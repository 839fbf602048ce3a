"""Structured lottery tickets: which heads and feed-forward blocks to train.

A ticket is a `Structure` that leaves some heads and whole feed-forward blocks
of a model out, and at least one head in every layer. Trained alone from the
pre-trained weights, a winning ticket may beat the whole model.
"""

import dataclasses
import re

import numpy as np

from bert_pruning.compression.importance import Scores
from bert_pruning.compression.structure import Structure
from bert_pruning.errors import UserError
from bert_pruning.modeling.config import BertConfig

KINDS = ("winning", "losing", "random")

_LEVEL = re.compile(r"(?P<heads>\d+)[/_](?P<blocks>\d+)|(?P<percent>[\d.]+)")


@dataclasses.dataclass(frozen=True)
class Level:
    """How much a ticket leaves out.

    Args:
        heads: int. Heads, in all layers together.
        blocks: int. Feed-forward blocks.

    Example:

    ```python
    Level.parse("14/1", bert_base)  # 14 heads and 1 block; also "14_1"
    Level.parse("20", bert_base)  # 20 percent of the heads: 28, and 2 blocks
    ```
    """

    heads: int
    blocks: int

    def __str__(self):
        return f"{self.heads}/{self.blocks}"

    @staticmethod
    def check(text: str):
        """Checks that a text is a level, of whatever model.

        Raises:
            UserError: if it is not.
        """
        match = _match_level(text)
        if match["percent"] and float(match["percent"]) >= 100:
            raise UserError(
                f"A head stays in each layer: the level {text} % is too much."
            )

    @classmethod
    def parse(cls, text: str, config: BertConfig) -> "Level":
        """Reads a level, as two numbers or as a percentage.

        With p percent of the heads go p / 1.2 percent of the blocks, the pairs
        of the published experiments: 14/1, 28/2, ..., 115/8 of BERT-base at
        10, 20, ..., 80.

        Raises:
            UserError: if it is neither, or leaves less than a head a layer.
        """
        heads, blocks = sum(config.num_heads), _num_blocks(config)
        match = _match_level(text)
        if match["percent"]:
            share = float(match["percent"])
            # Of hundredths: 0.29 * 100 is less than 29.
            level = cls(
                int(round(heads * share, 6) / 100),
                int(round(blocks * share, 6) / 120),
            )
        else:
            level = cls(int(match["heads"]), int(match["blocks"]))
        most = heads - config.num_layers
        if level.heads > most or level.blocks > blocks:
            raise UserError(
                f"The level {text} leaves {level.heads} heads and "
                f"{level.blocks} blocks out. This model can lose {most} of its "
                f"{heads} heads, one stays in each layer, and {blocks} blocks."
            )
        return level


def draw_ticket(
    config: BertConfig,
    level: Level,
    kind: str,
    scores: Scores | None = None,
    seed: int = 0,
) -> Structure:
    """Draws the ticket of a level.

    Heads of all layers are compared by their scores, each layer's scaled to
    the norm 1, blocks by theirs; the two never with each other. A winning
    ticket leaves the lowest out, a losing one the highest, a random one any,
    each one once. In each layer the last head in that order stays. Without
    chance, the tickets of two levels contain each other.

    Args:
        config: BertConfig. The whole model.
        level: Level.
        kind: str. "winning", "losing" or "random".
        scores: Scores or None. Needed but for "random".
        seed: int. For "random".

    Raises:
        UserError: if the scores are missing or those of another shape.

    Example:

    ```python
    ticket = draw_ticket(config, Level(14, 1), "winning", scores)
    ```

    Reference: [Super Tickets](https://arxiv.org/abs/2105.12002).
    """
    if kind not in KINDS:
        raise UserError(
            f"A ticket is {', '.join(KINDS[:-1])} or {KINDS[-1]}. Received: "
            f"{kind!r}."
        )
    if kind == "random":
        # Of its own: levels do not share their luck.
        generator = np.random.default_rng([seed, level.heads, level.blocks])
        heads = [generator.random(size) for size in config.num_heads]
        blocks = generator.random(config.num_layers)
    else:
        if scores is None:
            raise UserError(f"A {kind} ticket needs scores.")
        scores.check_fits(config)
        sign = -1.0 if kind == "losing" else 1.0
        heads = [sign * _normalized(row) for row in scores.heads]
        blocks = sign * scores.blocks
    gone = _last_heads(heads, level.heads)
    order = np.argsort(blocks, kind="stable")
    without = [i for i in order if config.intermediate_sizes[i]][: level.blocks]
    return Structure(
        config.num_heads,
        config.intermediate_sizes,
        tuple(
            tuple(h for h in range(size) if (layer, h) not in gone)
            for layer, size in enumerate(config.num_heads)
        ),
        tuple(
            () if layer in without else tuple(range(size))
            for layer, size in enumerate(config.intermediate_sizes)
        ),
        {"kind": kind, "level": str(level)},
    )


def union(first: Structure, second: Structure) -> Structure:
    """Keeps what either of two structures of one model keeps.

    Raises:
        UserError: if they are not of one model.
    """
    whole = (first.num_heads, first.intermediate_sizes)
    if whole != (second.num_heads, second.intermediate_sizes):
        raise UserError(
            "Only structures of one model can be united. Received: heads "
            f"{list(first.num_heads)} and {list(second.num_heads)}."
        )
    rows = {
        unit: tuple(
            tuple(sorted({*ours, *theirs}))
            for ours, theirs in zip(
                getattr(first, unit), getattr(second, unit), strict=True
            )
        )
        for unit in ("heads", "neurons")
    }
    return Structure(*whole, **rows)


def complement(structure: Structure) -> Structure:
    """Keeps what a structure leaves out.

    Raises:
        UserError: if a layer would have neurons but no head, or nothing stays.
    """
    whole = (structure.num_heads, structure.intermediate_sizes)
    rows = [
        tuple(
            tuple(sorted(set(range(size)) - set(kept)))
            for size, kept in zip(sizes, rows, strict=True)
        )
        for sizes, rows in zip(
            whole, (structure.heads, structure.neurons), strict=True
        )
    ]
    return Structure(*whole, *rows)


def _match_level(text):
    match = _LEVEL.fullmatch(text.strip())
    if match is None or text.count(".") > 1 or text.strip() == ".":
        raise UserError(
            "A level is a percentage, such as 20, or the numbers of heads "
            f"and blocks left out, such as 28/2. Received: {text!r}."
        )
    return match


def _num_blocks(config):
    return sum(size > 0 for size in config.intermediate_sizes)


def _normalized(row):
    return row / (np.linalg.norm(row) + 1e-20)


def _last_heads(scores, number):
    """The lowest heads, without the highest of each layer."""
    candidates = sorted(
        (score, layer, head)
        for layer, row in enumerate(scores)
        for head, score in enumerate(row)
        if head != _highest(row)
    )
    return {(layer, head) for _, layer, head in candidates[:number]}


def _highest(row):
    # Of equal ones the last in the ascending order.
    return int(np.argsort(row, kind="stable")[-1])
