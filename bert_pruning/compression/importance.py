"""How much each head, neuron and layer matters, as plain arrays.

Scores come from a pass over the data (`training.scoring`), from the weights
alone, or from chance. What is done with them is `structure`'s business.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Mapping

import numpy as np

from bert_pruning.errors import UserError
from bert_pruning.modeling.config import BertConfig

# The kernels whose weights speak for a unit: the attention output for a head,
# both of the feed-forward network for a neuron.
SCORED_PARTS = ("attention_output", "intermediate", "output")


@dataclasses.dataclass(frozen=True)
class Scores:
    """The importance of each unit; higher is more important.

    Args:
        heads: tuple of float arrays, `[heads]` of each layer.
        neurons: tuple of float arrays, `[neurons]` of each layer.
        blocks: float array `[layers]` or None. Of whole feed-forward blocks;
            None: the sums of their neurons'.
        about: dict from str to str. What they were computed on: method,
            checkpoint, `fingerprint` of its weights, task, examples.
        head_share: float. Share of a head's weights that its score is of; a
            neuron's is of all. Where the two are compared, it counts.

    Example:

    ```python
    scores = taylor_scores(config, weights, gradients)
    scores.heads[0].argmax()  # the first layer's most important head
    scores.save("scores.npz")
    ```
    """

    heads: tuple[np.ndarray, ...]
    neurons: tuple[np.ndarray, ...]
    blocks: np.ndarray | None = None
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)
    head_share: float = 1.0

    def __post_init__(self):
        for name in ("heads", "neurons"):
            rows = tuple(np.asarray(row) for row in getattr(self, name))
            object.__setattr__(self, name, rows)
            for layer, row in enumerate(rows):
                if not np.isfinite(row).all():
                    raise UserError(
                        f"The scores of the {name} of layer {layer} are not "
                        "all finite. Is the model broken?"
                    )
        blocks = self.blocks
        if blocks is None:
            blocks = [row.sum() for row in self.neurons]
        object.__setattr__(self, "blocks", np.asarray(blocks, np.float64))
        if (
            len(self.blocks) != len(self.heads)
            or not np.isfinite(self.blocks).all()
        ):
            raise UserError(
                "Feed-forward blocks need one finite score each. Received: "
                f"{self.blocks} for {len(self.heads)} layers."
            )

    @property
    def layers(self) -> np.ndarray:
        """The importance of each layer, the sum of its units'."""
        pairs = zip(self.heads, self.neurons, strict=True)
        return np.array(
            [heads.sum() + neurons.sum() for heads, neurons in pairs]
        )

    def check_fits(self, config: BertConfig):
        """Checks that the scores are those of a model of this shape.

        Raises:
            UserError: if they are not.
        """
        heads, neurons = (
            tuple(map(len, rows)) for rows in (self.heads, self.neurons)
        )
        check_units("The scores are", heads, neurons, config)

    def save(self, path):
        """Writes the scores to an `.npz` file.

        It holds `about` (JSON), `layers`, `blocks`, and `heads_{i}` and
        `neurons_{i}` of each layer.
        """
        arrays = {
            "about": json.dumps(dict(self.about)),
            "layers": self.layers,
            "blocks": self.blocks,
            "head_share": self.head_share,
        }
        for i, (heads, neurons) in enumerate(
            zip(self.heads, self.neurons, strict=True)
        ):
            arrays[f"heads_{i}"], arrays[f"neurons_{i}"] = heads, neurons
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path):
        """Reads scores that `save` wrote.

        Raises:
            UserError: if the file is missing, damaged or holds no scores.
        """
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
            depth = len(arrays.pop("layers"))
            about = json.loads(str(arrays.pop("about")))
            if not isinstance(about, dict):
                raise TypeError("`about` is no JSON object")
            return cls(
                blocks=arrays.pop("blocks", None),
                about=about,
                head_share=float(arrays.pop("head_share")),
                **{
                    unit: tuple(arrays[f"{unit}_{i}"] for i in range(depth))
                    for unit in ("heads", "neurons")
                },
            )
        except OSError as error:
            if error.strerror:
                raise UserError(
                    f"Cannot read {path}: {error.strerror}."
                ) from error
            raise _no_scores(path, error) from error
        except (
            AttributeError,
            EOFError,
            KeyError,
            TypeError,
            zipfile.BadZipFile,
        ) as error:
            raise _no_scores(path, error) from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except ValueError as error:
            raise _no_scores(path, error) from error


def check_units(what, num_heads, intermediate_sizes, config):
    """Checks that something is of a model of this shape.

    Args:
        what: str. Such as "The scores are".
        num_heads: tuple of ints. Heads in each layer of that model.
        intermediate_sizes: tuple of ints. Neurons in each layer of it.
        config: BertConfig.

    Raises:
        UserError: if it is not.
    """
    ours = config.num_heads, config.intermediate_sizes
    if ours != (num_heads, intermediate_sizes):
        raise UserError(
            f"{what} of a model with heads {list(num_heads)} and neurons "
            f"{list(intermediate_sizes)}; this one has {list(ours[0])} and "
            f"{list(ours[1])}."
        )


def _no_scores(path, error):
    return UserError(
        f"{path} holds no scores ({error}). Write it anew by the command "
        "`score`."
    )


def taylor_scores(
    config: BertConfig,
    weights: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    about: Mapping[str, str] | None = None,
) -> Scores:
    """Scores by the first-order Taylor expansion of the loss.

    The importance of a weight is `|w * sum_b |dL_b/dw||`, with the loss `L_b`
    of each batch. A head's is the sum over its rows of the attention output
    kernel, a neuron's that over its column of the intermediate kernel and its
    row of the output kernel.

    Args:
        config: BertConfig. The shape.
        weights: dict from canonical name to array.
        gradients: dict from canonical name to array. Of each kernel of
            `SCORED_PARTS`, the sum over batches of the gradient's magnitude.
        about: dict. See `Scores`.

    Returns:
        `Scores`.

    Reference: [ROSITA](https://arxiv.org/abs/2103.11367), after
    [Importance Estimation](https://arxiv.org/abs/1906.10771).
    """

    def importance(layer, part):
        name = f"layer_{layer}_{part}/kernel"
        # In float64: sums over thousands of weights shall not depend on order.
        return np.abs(weights[name].astype(np.float64)) * gradients[name]

    return Scores(
        heads=tuple(
            _per_head(importance(i, "attention_output"), config.head_size)
            for i in range(config.num_layers)
        ),
        neurons=tuple(
            importance(i, "intermediate").sum(0)
            + importance(i, "output").sum(1)
            if size
            else np.zeros(0)
            for i, size in enumerate(config.intermediate_sizes)
        ),
        about=about or {},
        # Of its four matrices, the attention output's.
        head_share=0.25,
    )


def magnitude_scores(
    config: BertConfig,
    weights: Mapping[str, np.ndarray],
    about: Mapping[str, str] | None = None,
) -> Scores:
    """Scores by the sum of the weights' magnitudes, of the same kernels.

    Args:
        config: BertConfig. The shape.
        weights: dict from canonical name to array.
        about: dict. See `Scores`.
    """
    ones = dict.fromkeys(weights, np.float64(1.0))
    return taylor_scores(config, weights, ones, about)


def random_scores(
    config: BertConfig, seed: int, about: Mapping[str, str] | None = None
) -> Scores:
    """Scores by chance: what others have to beat.

    Uniform between 0 and the number of the unit's weights, so that heads and
    neurons are equally likely to be worth their cost.

    Args:
        config: BertConfig. The shape.
        seed: int.
        about: dict. See `Scores`.
    """
    generator = np.random.default_rng(seed)
    return Scores(
        heads=tuple(
            4 * config.head_size * config.hidden_size * generator.random(size)
            for size in config.num_heads
        ),
        neurons=tuple(
            2 * config.hidden_size * generator.random(size)
            for size in config.intermediate_sizes
        ),
        about=about or {},
    )


def fingerprint(weights: Mapping[str, np.ndarray]) -> str:
    """Returns a short hash of the encoder's weights, to know them again."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        if name.startswith("layer_"):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(weights[name]).data)
    return digest.hexdigest()[:16]


def _per_head(importance, head_size):
    heads = importance.shape[0] // head_size
    return importance.reshape(heads, -1).sum(1)
