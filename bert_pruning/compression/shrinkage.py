"""When a BERT is cut smaller while it trains, and to which shape.

Plain values; `training.shrinking` carries it out.
"""

import dataclasses

from bert_pruning.errors import UserError
from bert_pruning.modeling.config import BertConfig


@dataclasses.dataclass(frozen=True)
class Shrinkage:
    """A model's shapes on its way to a smaller one.

    After every `interval` optimizer steps the model is cut to the next shape;
    after the last cut it trains on at its final size.

    Args:
        interval: int. Optimizer steps between two cuts, and before the first.
        shapes: tuple of BertConfig. Before the first cut and after each.

    Example:

    ```python
    shrinkage = width_shrinkage(config, num_steps=1000, num_heads=2,
                                num_neurons=512, rank=128)
    shrinkage.shape_at(250).num_heads
    ```

    Reference: [ROSITA](https://arxiv.org/abs/2103.11367).
    """

    interval: int
    shapes: tuple[BertConfig, ...]

    def cuts_at(self, step):
        """Number of cuts that were made once `step` steps are done."""
        return min(step // self.interval, len(self.shapes) - 1)

    def is_due(self, step):
        """Whether the model is cut right after `step` steps."""
        return self.cuts_at(step) > self.cuts_at(step - 1)

    def is_final(self, step):
        """Whether the model has its last shape once `step` steps are done."""
        return self.cuts_at(step) == len(self.shapes) - 1

    def shape_at(self, step):
        """The model's shape once `step` steps are done."""
        return self.shapes[self.cuts_at(step)]


def width_shrinkage(
    config: BertConfig,
    num_steps: int,
    num_heads: int,
    num_neurons: int | None = None,
    rank: int | None = None,
) -> Shrinkage:
    """Cuts heads, neurons and the embeddings' rank together, a head a time.

    With K heads too many there are K cuts, equally spaced over `num_steps`.
    Neurons and rank fall linearly beside them.

    Args:
        config: BertConfig. The shape to begin with, all layers alike.
        num_steps: int. Optimizer steps in which all cuts are made.
        num_heads: int. Heads of each layer in the end.
        num_neurons: int or None. Neurons of each layer; None keeps them all.
        rank: int or None. Of the word embeddings; None leaves them alone.

    Raises:
        UserError: if the model is not larger, its layers differ, or there are
            more cuts than steps.

    Example:

    ```python
    # 11 heads, then 10, ..., then 2.
    width_shrinkage(bert_base, 1000, num_heads=2, num_neurons=512, rank=128)
    ```
    """
    for name in ("num_heads", "intermediate_sizes"):
        sizes = getattr(config, name)
        if len(set(sizes)) > 1:
            raise UserError(
                "--pruning=width takes a model whose layers are all alike. "
                f"Received: {name} {list(sizes)}."
            )
    whole = config.num_heads[0], config.intermediate_sizes[0]
    num_neurons = num_neurons or whole[1]
    whole_rank = config.embedding_rank or config.hidden_size
    whole_rank = min(whole_rank, config.vocab_size)
    final_rank = rank or whole_rank
    if not 0 < num_heads < whole[0]:
        raise UserError(
            "--pruning=width removes a head at each cut: --keep_heads must "
            f"lie in 1 to {whole[0] - 1}. Received: {num_heads}."
        )
    for flag, wanted, most in (
        ("--ffn_hidden_dim", num_neurons, whole[1]),
        ("--emb_hidden_dim", final_rank, whole_rank),
    ):
        if not 0 < wanted <= most:
            raise UserError(
                f"{flag} must lie in 1 to {most}, what the model has. "
                f"Received: {wanted}."
            )
    if rank is not None and config.is_quantized("embedding_projection"):
        raise UserError(
            "--emb_hidden_dim makes embedding_projection anew at each cut, "
            "without ranges for 8 bits. Leave it out of --quantize_layers."
        )
    cuts = whole[0] - num_heads
    shapes = [config]
    for cut in range(1, cuts + 1):
        neurons = whole[1] - round((whole[1] - num_neurons) * cut / cuts)
        embedding_rank = config.embedding_rank
        if rank is not None:
            embedding_rank = whole_rank - round(
                (whole_rank - final_rank) * cut / cuts
            )
        shapes.append(
            dataclasses.replace(
                config,
                num_heads=(whole[0] - cut,) * config.num_layers,
                intermediate_sizes=(neurons,) * config.num_layers,
                embedding_rank=embedding_rank,
            )
        )
    return Shrinkage(_interval(num_steps, cuts), tuple(shapes))


def depth_shrinkage(
    config: BertConfig, num_steps: int, num_layers: int
) -> Shrinkage:
    """Drops the topmost layer, again and again.

    Args:
        config: BertConfig. The shape to begin with.
        num_steps: int. Optimizer steps in which all cuts are made.
        num_layers: int. Layers in the end.

    Raises:
        UserError: if the model is not deeper, or there are more cuts than
            steps.

    Example:

    ```python
    depth_shrinkage(bert_base, 1000, num_layers=8)  # 11, 10, 9, 8
    ```
    """
    if not 0 < num_layers < config.num_layers:
        raise UserError(
            "--pruning=depth drops a layer at each cut: --num_layers must lie "
            f"in 1 to {config.num_layers - 1}. Received: {num_layers}."
        )
    depths = range(config.num_layers, num_layers - 1, -1)
    shapes = tuple(
        dataclasses.replace(
            config,
            num_heads=config.num_heads[:depth],
            intermediate_sizes=config.intermediate_sizes[:depth],
        )
        for depth in depths
    )
    return Shrinkage(_interval(num_steps, len(depths) - 1), shapes)


def _interval(num_steps, cuts):
    if num_steps < cuts:
        raise UserError(
            f"{cuts} cuts need at least as many optimizer steps. Received: "
            f"{num_steps} until --pruning_end. Train longer, or raise "
            "--pruning_end."
        )
    return num_steps // cuts
