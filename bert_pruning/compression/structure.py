"""Which heads and neurons of a BERT are kept, layer by layer.

A `Structure` is made from scores and a budget, and read from or written to a
file. `surgery.shrink` cuts a model down to it.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping

import numpy as np

from bert_pruning.compression import costs
from bert_pruning.compression.importance import Scores
from bert_pruning.compression.importance import check_units
from bert_pruning.errors import UserError
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.files import read_json

# In files, every unit of a layer.
_ALL = "all"


@dataclasses.dataclass(frozen=True)
class Structure:
    """The units of a model that are kept.

    A layer without a unit is dropped, its residual connections with it. One
    with heads but no neurons loses its feed-forward block and keeps the norm
    behind it.

    Args:
        num_heads: tuple of ints. Heads in each layer of the whole model.
        intermediate_sizes: tuple of ints. Neurons in each layer of it.
        heads: tuple of tuples of ints. Kept heads of each layer, rising.
        neurons: tuple of tuples of ints. Kept neurons of each layer, rising.
        about: dict. What a file says of it beside; it changes nothing.

    Raises:
        UserError: if a unit does not exist or occurs twice, or a layer keeps
            neurons but no heads, or nothing is kept.

    Example:

    ```python
    structure = keep_top(config, scores, num_heads=2, num_neurons=512)
    structure.heads[0]  # (3, 7)
    ```
    """

    num_heads: tuple[int, ...]
    intermediate_sizes: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]
    about: Mapping = dataclasses.field(default_factory=dict, compare=False)

    def __post_init__(self):
        if len(self.num_heads) != len(self.intermediate_sizes):
            raise UserError(
                "A structure names heads and neurons of the same layers. "
                f"Received: {len(self.num_heads)} layers with heads, "
                f"{len(self.intermediate_sizes)} with neurons."
            )
        whole = {"heads": self.num_heads, "neurons": self.intermediate_sizes}
        for unit, sizes in whole.items():
            kept = tuple(tuple(map(int, row)) for row in getattr(self, unit))
            object.__setattr__(self, unit, kept)
            if len(kept) != len(self.num_heads):
                raise UserError(
                    f"A structure of {len(self.num_heads)} layers needs a list "
                    f"of {unit} for each. Received: {len(kept)}."
                )
            for layer, (row, size) in enumerate(zip(kept, sizes, strict=True)):
                rising = all(a < b for a, b in zip(row, row[1:], strict=False))
                if not rising or (row and not 0 <= row[0] <= row[-1] < size):
                    raise UserError(
                        f"Layer {layer} has {size} {unit}; those kept must be "
                        f"given once each, in rising order. Received: {row}."
                    )
        for layer in range(len(self.num_heads)):
            if self.neurons[layer] and not self.heads[layer]:
                raise UserError(
                    f"Layer {layer} must keep one head at least, or no neuron "
                    "either, and is dropped then. Received: no heads and "
                    f"{len(self.neurons[layer])} neurons."
                )
        if not self.layers:
            raise UserError("The structure keeps no layer at all.")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are kept, rising."""
        return tuple(i for i, row in enumerate(self.heads) if row)

    @property
    def units(self) -> tuple:
        """What is kept, and of which model; all but `about`."""
        return (
            *(self.num_heads, self.intermediate_sizes),
            *(self.heads, self.neurons),
        )

    def then(self, second: "Structure") -> "Structure":
        """Returns the structure of two cuts, one after the other.

        Args:
            second: Structure. Of the model that this one leaves.

        Raises:
            UserError: if it is of another model.

        Example:

        ```python
        whole = ticket.then(keep_top(ticket.shrink(config), num_layers=8))
        ```
        """
        rows = {}
        for unit, sizes in (
            ("heads", second.num_heads),
            ("neurons", second.intermediate_sizes),
        ):
            ours = [getattr(self, unit)[layer] for layer in self.layers]
            if tuple(map(len, ours)) != sizes:
                raise UserError(
                    f"The second cut is of a model with {list(sizes)} {unit}; "
                    f"the first leaves {list(map(len, ours))}."
                )
            left = [()] * len(self.num_heads)
            for layer, kept, again in zip(
                self.layers, ours, getattr(second, unit), strict=True
            ):
                left[layer] = tuple(kept[i] for i in again)
            rows[unit] = tuple(left)
        return Structure(self.num_heads, self.intermediate_sizes, **rows)

    def check_fits(self, config: BertConfig):
        """Checks that the structure is one of a model of this shape.

        Raises:
            UserError: if it is not.
        """
        check_units(
            "The structure is", self.num_heads, self.intermediate_sizes, config
        )

    def shrink(self, config: BertConfig) -> BertConfig:
        """Returns the shape of a model with the kept units alone."""
        self.check_fits(config)
        return dataclasses.replace(
            config,
            num_heads=tuple(len(self.heads[i]) for i in self.layers),
            intermediate_sizes=tuple(len(self.neurons[i]) for i in self.layers),
        )

    def to_dict(self) -> dict:
        """Plain values that JSON can hold; `from_dict` reads them."""
        values = {
            "num_heads": list(self.num_heads),
            "intermediate_sizes": list(self.intermediate_sizes),
        }
        sizes = (self.num_heads, self.intermediate_sizes)
        for unit, whole in zip(("heads", "neurons"), sizes, strict=True):
            values[unit] = [
                _ALL if row and len(row) == size else list(row)
                for row, size in zip(getattr(self, unit), whole, strict=True)
            ]
        if self.about:
            values["about"] = dict(self.about)
        return values

    @classmethod
    def from_dict(cls, values: Mapping, path: str) -> "Structure":
        """Makes the structure that `to_dict` described.

        Args:
            values: dict.
            path: str. Where it is from, for messages.

        Raises:
            UserError: if it describes none.
        """
        names = [field.name for field in dataclasses.fields(cls)][:4]
        about = values.get("about", {})
        if {*values} - {"about"} != {*names} or not isinstance(about, Mapping):
            raise UserError(
                f"{path} is no structure: it needs the keys {', '.join(names)}."
            )
        try:
            sizes = [_integers(values[name]) for name in names[:2]]
            units = [
                tuple(
                    tuple(range(size)) if row == _ALL else _integers(row)
                    for row, size in zip(
                        values[name],
                        itertools.chain(whole, itertools.repeat(0)),
                        strict=False,
                    )
                )
                for name, whole in zip(names[2:], sizes, strict=True)
            ]
        except TypeError as error:
            raise UserError(
                f"{path} is no structure: it needs lists of whole numbers "
                f"({error})."
            ) from error
        try:
            return cls(*sizes, *units, about)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def save(self, path):
        """Writes the structure as JSON."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(self.to_dict()) + "\n")

    @classmethod
    def load(cls, path):
        """Reads a structure that `save` wrote.

        Raises:
            UserError: if the file is missing or holds no structure.
        """
        return cls.from_dict(read_json(path), path)


def keep_top(
    config: BertConfig,
    scores: Scores | None = None,
    num_layers: int | None = None,
    num_heads: int | None = None,
    num_neurons: int | None = None,
) -> Structure:
    """Keeps the same number of heads and neurons in every layer: the best.

    Layers are dropped from the top. Units are compared within their layer,
    and of equal ones the first stays.

    Args:
        config: BertConfig. The whole model.
        scores: Scores or None. Needed where heads or neurons are cut.
        num_layers: int or None. Layers kept; None keeps all, here as below.
        num_heads: int or None. Heads kept in each layer.
        num_neurons: int or None. Neurons kept in each layer.

    Raises:
        UserError: if there are fewer units than shall be kept, or scores are
            missing or those of another shape.

    Example:

    ```python
    keep_top(config, scores, num_layers=8, num_heads=2, num_neurons=512)
    ```

    Reference: [ROSITA](https://arxiv.org/abs/2103.11367).
    """
    depth = config.num_layers
    num_layers = _check_budget("--num_layers", num_layers, depth)
    layers = range(num_layers)
    if scores is not None:
        scores.check_fits(config)

    def top(flag, unit, sizes, wanted):
        kept = [()] * depth
        for i in layers:
            number = _check_budget(flag, wanted, sizes[i], f"layer {i}")
            if number == sizes[i]:
                kept[i] = tuple(range(number))
            elif scores is None:
                raise UserError(
                    f"{flag}={wanted} needs --scores: which of the {sizes[i]} "
                    f"{unit} of layer {i} matter?"
                )
            else:
                kept[i] = _best(getattr(scores, unit)[i], number)
        return tuple(kept)

    return Structure(
        config.num_heads,
        config.intermediate_sizes,
        top("--keep_heads", "heads", config.num_heads, num_heads),
        top(
            "--ffn_hidden_dim",
            "neurons",
            config.intermediate_sizes,
            num_neurons,
        ),
    )


def within_budget(
    config: BertConfig,
    scores: Scores,
    cost: str,
    ratio: float,
    num_layers: int | None = None,
    length: int = 128,
) -> Structure:
    """Keeps the units worth most for their cost, in all layers together.

    Heads and neurons are ranked by importance per multiply-accumulate
    operation (or parameter) and dropped from the bottom until the encoder
    costs no more than its share. Each layer keeps one head and one neuron.

    Args:
        config: BertConfig. The whole model.
        scores: Scores. Heads and neurons in one unit, as of `taylor_scores`.
        cost: str. "macs" or "parameters", of the encoder's layers.
        ratio: float in (0, 1]. Share of the cost that may stay.
        num_layers: int or None. Layers kept at most; the others go first.
        length: int. Tokens, for the multiply-accumulate operations.

    Raises:
        UserError: if the ratio is out of range, or cannot be reached.

    Example:

    ```python
    within_budget(config, scores, "macs", 0.5)
    ```
    """
    flag = {"macs": "--mac_ratio", "parameters": "--param_ratio"}[cost]
    if not 0.0 < ratio <= 1.0:
        raise UserError(
            f"{flag} is a share of the encoder and must lie in (0, 1]. "
            f"Received: {ratio}."
        )
    scores.check_fits(config)
    depth = _check_budget("--num_layers", num_layers, config.num_layers)
    per_head, per_neuron, fixed = costs.unit_costs(config, cost, length)
    sizes = {"heads": config.num_heads, "neurons": config.intermediate_sizes}
    prices = {"heads": per_head, "neurons": per_neuron}
    whole = fixed + sum(
        price * sum(sizes[unit]) for unit, price in prices.items()
    )
    kept = {
        unit: [set(range(size)) for size in row[:depth]]
        + [set()] * (config.num_layers - depth)
        for unit, row in sizes.items()
    }
    total = fixed * depth / config.num_layers + sum(
        price * sum(map(len, kept[unit])) for unit, price in prices.items()
    )
    # A score of a quarter of a head's weights is compared with the price of
    # that quarter.
    worth = {**prices, "heads": scores.head_share * per_head}
    units = [
        (score / worth[unit], unit, layer, index)
        for unit in prices
        for layer, row in enumerate(getattr(scores, unit)[:depth])
        for index, score in enumerate(row)
    ]
    for _, unit, layer, index in sorted(units, key=lambda entry: entry[0]):
        if total <= ratio * whole:
            break
        if len(kept[unit][layer]) > 1:
            kept[unit][layer].remove(index)
            total -= prices[unit]
    if total > ratio * whole:
        raise UserError(
            f"{flag}={ratio:g} cannot be reached: one head and one neuron in "
            f"each of {depth} layers are {total / whole:.3g} of the encoder. "
            "Give a lower --num_layers."
        )
    rows = {
        unit: tuple(tuple(sorted(row)) for row in layers)
        for unit, layers in kept.items()
    }
    return Structure(config.num_heads, config.intermediate_sizes, **rows)


def _check_budget(flag, wanted, size, where="the model"):
    if wanted is None:
        return size
    if not 0 < wanted <= size:
        raise UserError(
            f"{flag} must lie in 1 to {size}, what {where} has. Received: "
            f"{wanted}."
        )
    return wanted


def _best(scores, number):
    order = np.argsort(-np.asarray(scores), kind="stable")
    return tuple(sorted(order[:number].tolist()))


def _integers(values):
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"not {value!r}")
    return tuple(values)
