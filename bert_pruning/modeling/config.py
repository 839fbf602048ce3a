"""The shape of a BERT.

`BertConfig` is the only description of a model's architecture. Head and
feed-forward sizes are kept per layer, so a pruned BERT is just another
`BertConfig`. Two file formats are read and written: `bert_config.json` of the
official checkpoints and `config.json` of Hugging Face.
"""

import dataclasses
from collections.abc import Mapping

from bert_pruning.errors import UserError
from bert_pruning.modeling.files import check_object
from bert_pruning.modeling.quantization import Quantization

ACTIVATIONS = ("gelu", "gelu_new", "relu", "tanh", "linear")

# Hugging Face calls the tanh approximation by several names.
_HUGGINGFACE_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
}

# The official code computes "gelu" by the tanh approximation.
_OFFICIAL_ACTIVATIONS = {
    "gelu": "gelu_new",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
    "": "linear",
}

# (our field, the key both JSON formats use)
_SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
)


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Architecture of a BERT encoder, with one entry per layer where pruned.

    Args:
        vocab_size: int. Number of entries in the vocabulary.
        hidden_size: int. Width of the hidden states.
        head_size: int. Width of one attention head.
        num_heads: tuple of ints. Attention heads, one entry per layer.
        intermediate_sizes: tuple of ints. Feed-forward neurons, one entry per
            layer. 0: the layer has no feed-forward block, but its norm.
        hidden_act: str. Feed-forward activation: "gelu" (erf, as Hugging
            Face), "gelu_new" (tanh approximation, as the official code),
            "relu", "tanh" or "linear".
        hidden_dropout_prob: float. Dropout after embeddings and sub-layers.
        attention_probs_dropout_prob: float. Dropout on attention
            probabilities.
        classifier_dropout: float. Dropout on the pooled output.
        max_position_embeddings: int. Longest sequence, in tokens.
        type_vocab_size: int. Number of segment types.
        initializer_range: float. Standard deviation of new weights.
        layer_norm_eps: float. Added to the variance in layer normalisation.
        embedding_rank: int or None. Rank of factorised word embeddings.
        quantization: Quantization or None. What computes in 8 bits.

    Raises:
        UserError: if a size is not positive, the per-layer tuples differ in
            length or the activation is unknown.

    Example:

    ```python
    config = BertConfig.uniform(
        vocab_size=30522, hidden_size=128, num_layers=2, num_heads=2
    )
    config.num_layers  # 2
    ```

    Reference: [BERT](https://arxiv.org/abs/1810.04805).
    """

    vocab_size: int
    hidden_size: int
    head_size: int
    num_heads: tuple[int, ...]
    intermediate_sizes: tuple[int, ...]
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    embedding_rank: int | None = None
    quantization: Quantization | None = None

    def __post_init__(self):
        for name in ("num_heads", "intermediate_sizes"):
            sizes = getattr(self, name)
            if not isinstance(sizes, (list, tuple)):
                raise UserError(
                    f"{name} needs one entry per layer. Received: {sizes!r}."
                )
            object.__setattr__(self, name, tuple(sizes))
        if len(self.num_heads) != len(self.intermediate_sizes):
            raise UserError(
                "num_heads and intermediate_sizes need one entry per layer. "
                f"Received: {len(self.num_heads)} and "
                f"{len(self.intermediate_sizes)} entries."
            )
        sizes = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "head_size": self.head_size,
            "max_position_embeddings": self.max_position_embeddings,
            "type_vocab_size": self.type_vocab_size,
        }
        for layer in range(self.num_layers):
            sizes[f"num_heads[{layer}]"] = self.num_heads[layer]
        if self.embedding_rank is not None:
            sizes["embedding_rank"] = self.embedding_rank
        _check_sizes(sizes)
        for layer, size in enumerate(self.intermediate_sizes):
            if not isinstance(size, int) or size < 0:
                raise UserError(
                    f"intermediate_sizes[{layer}] must be a whole number, 0 "
                    f"without a feed-forward block. Received: {size!r}."
                )
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"hidden_act must be one of {', '.join(ACTIVATIONS)}. "
                f"Received: {self.hidden_act!r}."
            )
        tables = ("gelu", "gelu_new", "relu")
        if self.quantization is not None and self.hidden_act not in tables:
            raise UserError(
                f"In 8 bits hidden_act must be one of {', '.join(tables)}. "
                f"Received: {self.hidden_act!r}."
            )
        for name in (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "classifier_dropout",
        ):
            rate = getattr(self, name)
            if not isinstance(rate, (int, float)) or not 0.0 <= rate < 1.0:
                raise UserError(
                    f"{name} must lie in [0, 1). Received: {rate!r}."
                )
        for name in ("initializer_range", "layer_norm_eps"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value > 0.0:
                raise UserError(
                    f"{name} must be positive. Received: {value!r}."
                )

    @property
    def num_layers(self):
        """Number of encoder layers."""
        return len(self.num_heads)

    @property
    def is_uniform(self):
        """Whether the shape is that of a plain, unpruned BERT."""
        return (
            len(set(self.num_heads)) <= 1
            and len(set(self.intermediate_sizes)) <= 1
            and 0 not in self.intermediate_sizes
            and all(
                heads * self.head_size == self.hidden_size
                for heads in self.num_heads
            )
            and self.embedding_rank is None
        )

    def is_quantized(self, layer):
        """Whether a Dense layer computes in 8 bits.

        Args:
            layer: str. Its name.
        """
        return self.quantization is not None and self.quantization.covers(layer)

    @property
    def short_name(self):
        """The shape in short: heads, layers, neurons and embedding rank.

        "a2_l8_f512_e128"; "a1-4" where layers differ, "e-1" without a rank.
        """
        heads, neurons = _span(self.num_heads), _span(self.intermediate_sizes)
        rank = self.embedding_rank or -1
        return f"a{heads}_l{self.num_layers}_f{neurons}_e{rank}"

    @classmethod
    def uniform(
        cls,
        *,
        vocab_size,
        hidden_size,
        num_layers,
        num_heads,
        intermediate_size=None,
        **others,
    ):
        """Builds the config of a plain BERT, all layers alike."""
        _check_sizes(
            {
                "hidden_size": hidden_size,
                "num_hidden_layers": num_layers,
                "num_attention_heads": num_heads,
            }
        )
        if hidden_size % num_heads:
            raise UserError(
                "hidden_size must be a multiple of num_attention_heads. "
                f"Received: {hidden_size} and {num_heads}."
            )
        return cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            head_size=hidden_size // num_heads,
            num_heads=(num_heads,) * num_layers,
            intermediate_sizes=(intermediate_size or 4 * hidden_size,)
            * num_layers,
            **others,
        )

    def to_dict(self):
        """Returns the fields as JSON-serialisable values."""
        values = dataclasses.asdict(self)
        values["num_heads"] = list(self.num_heads)
        values["intermediate_sizes"] = list(self.intermediate_sizes)
        if self.quantization is not None:
            values["quantization"]["layers"] = list(self.quantization.layers)
        return values

    @classmethod
    def from_dict(cls, values: Mapping):
        """Builds a config from `to_dict`; other keys are an error."""
        fields = dataclasses.fields(cls)
        missing = [
            field.name
            for field in fields
            if field.default is dataclasses.MISSING and field.name not in values
        ]
        if missing:
            raise UserError(
                f"BertConfig lacks {', '.join(missing)}. Received fields: "
                f"{', '.join(sorted(values)) or 'none'}."
            )
        known = {field.name for field in fields}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(
                f"Unknown field of BertConfig: {', '.join(unknown)}. "
                f"Known fields: {', '.join(sorted(known))}."
            )
        quantization = values.get("quantization")
        if quantization is not None:
            check_object(quantization, "quantization", "BertConfig")
            quantization = Quantization.from_dict(quantization)
        return cls(**{**values, "quantization": quantization})

    @classmethod
    def from_official(cls, values: Mapping):
        """Builds a config from the content of `bert_config.json`.

        Keys that BERT does not read (the multilingual files carry some) are
        ignored; defaults are those of the official code.
        """
        _require(values, ("vocab_size",), "bert_config.json")
        activation = values.get("hidden_act", "gelu")
        activation = "" if activation is None else str(activation).lower()
        if activation not in _OFFICIAL_ACTIVATIONS:
            raise UserError(
                "hidden_act in bert_config.json must be gelu, relu, tanh or "
                f"linear. Received: {values['hidden_act']!r}."
            )
        shared = {key: values[key] for key in _SHARED_FIELDS if key in values}
        shared.setdefault("hidden_size", 768)
        shared.setdefault("type_vocab_size", 16)
        return cls.uniform(
            num_layers=values.get("num_hidden_layers", 12),
            num_heads=values.get("num_attention_heads", 12),
            intermediate_size=values.get("intermediate_size", 3072),
            hidden_act=_OFFICIAL_ACTIVATIONS[activation],
            **shared,
        )

    def to_official(self):
        """Returns the content of `bert_config.json`.

        Raises:
            UserError: if the official code cannot build this shape.
        """
        if not self.is_uniform:
            raise UserError(
                "The official BERT code cannot build layers of unequal or "
                "reduced width. Received: heads "
                f"{list(self.num_heads)}, neurons "
                f"{list(self.intermediate_sizes)}, embedding rank "
                f"{self.embedding_rank}."
            )
        if self.hidden_act == "gelu":
            raise UserError(
                "The official BERT code computes gelu by the tanh "
                "approximation; this model was trained with the erf form. "
                "Its official checkpoint would give other logits."
            )
        official = {ours: key for key, ours in _OFFICIAL_ACTIVATIONS.items()}
        official["linear"] = "linear"
        values = {key: getattr(self, key) for key in _SHARED_FIELDS}
        values.update(
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads[0],
            intermediate_size=self.intermediate_sizes[0],
            hidden_act=official[self.hidden_act],
        )
        return dict(sorted(values.items()))

    @classmethod
    def from_huggingface(cls, values: Mapping):
        """Builds a config from the content of Hugging Face's `config.json`.

        A `bert_pruning` block, which our own runs write, takes precedence:
        it holds what Hugging Face's fields cannot say.
        """
        block = values.get("bert_pruning", {})
        check_object(block, "bert_pruning", "config.json")
        if "config" in block:
            check_object(block["config"], "bert_pruning.config", "config.json")
            return cls.from_dict(block["config"])
        model_type = values.get("model_type", "bert")
        if model_type != "bert":
            raise UserError(
                "Only BERT and DistilBERT checkpoints can be loaded. Received "
                f"a config.json of model_type {model_type!r}."
            )
        position_type = values.get("position_embedding_type", "absolute")
        if position_type != "absolute":
            raise UserError(
                "Only absolute position embeddings are supported. Received: "
                f"position_embedding_type {position_type!r}."
            )
        _require(
            values,
            (
                "vocab_size",
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
            ),
            "config.json",
        )
        activation = values.get("hidden_act", "gelu")
        if str(activation) not in _HUGGINGFACE_ACTIVATIONS:
            raise UserError(
                "hidden_act in config.json must be one of "
                f"{', '.join(_HUGGINGFACE_ACTIVATIONS)}. "
                f"Received: {activation!r}."
            )
        shared = {key: values[key] for key in _SHARED_FIELDS if key in values}
        classifier_dropout = values.get("classifier_dropout")
        if classifier_dropout is None:
            classifier_dropout = values.get("hidden_dropout_prob", 0.1)
        return cls.uniform(
            num_layers=values["num_hidden_layers"],
            num_heads=values["num_attention_heads"],
            intermediate_size=values.get("intermediate_size", 3072),
            hidden_act=_HUGGINGFACE_ACTIVATIONS[activation],
            classifier_dropout=classifier_dropout,
            layer_norm_eps=values.get("layer_norm_eps", 1e-12),
            **shared,
        )

    def to_huggingface(self):
        """Returns the content of Hugging Face's `config.json`.

        `bert_pruning.config` in it is the full shape; the plain fields are
        true only where `is_uniform`.
        """
        values = {key: getattr(self, key) for key in _SHARED_FIELDS}
        values.update(
            architectures=["BertForSequenceClassification"],
            model_type="bert",
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.hidden_size // self.head_size,
            intermediate_size=max(self.intermediate_sizes, default=0),
            hidden_act=self.hidden_act,
            classifier_dropout=self.classifier_dropout,
            layer_norm_eps=self.layer_norm_eps,
            position_embedding_type="absolute",
            pad_token_id=0,
            bert_pruning={"config": self.to_dict()},
        )
        return values


def _span(sizes):
    low, high = min(sizes, default=0), max(sizes, default=0)
    return f"{low}" if low == high else f"{low}-{high}"


def _check_sizes(sizes):
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise UserError(
                f"{name} must be a positive integer. Received: {size!r}."
            )


def _require(values, keys, file_name):
    missing = [key for key in keys if key not in values]
    if missing:
        raise UserError(
            f"{file_name} lacks {', '.join(missing)}. Is it the file of a "
            f"BERT? Received keys: {', '.join(sorted(values))}."
        )
