"""DistilBERT: a BERT without token types and without a pooler.

Its files become those of such a BERT: the fields of its configuration and the
names of its weights are translated, and token types are added, all at zero, so
that every state is the same.

Reference: [DistilBERT](https://arxiv.org/abs/1910.01108).
"""

import re
from collections.abc import Mapping

import numpy as np

from bert_pruning.errors import UserError

MODEL_TYPE = "distilbert"

# Of its config.json, and what BERT's calls them.
_FIELDS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "seq_classif_dropout": "classifier_dropout",
}

# Its layers, and where BERT has them.
_LAYERS = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}
_HEADS = {
    "vocab_transform": "cls.predictions.transform.dense",
    "vocab_layer_norm": "cls.predictions.transform.LayerNorm",
    "vocab_projector.weight": "cls.predictions.decoder.weight",
    "vocab_projector.bias": "cls.predictions.bias",
    "classifier": "classifier",
    "qa_outputs": "qa_outputs",
}

_LAYER = re.compile(r"transformer\.layer\.(\d+)\.(.+)\.(weight|bias)")
_TYPES = "bert.embeddings.token_type_embeddings.weight"


def as_bert_config(values: Mapping) -> dict:
    """Returns the config.json of the BERT that a DistilBERT is.

    Args:
        values: mapping. The content of a DistilBERT's config.json.

    Raises:
        UserError: if a field is missing.
    """
    missing = [name for name in list(_FIELDS)[:4] if name not in values]
    if missing:
        raise UserError(
            f"The config.json of a DistilBERT lacks {', '.join(missing)}."
        )
    translated = {
        _FIELDS.get(name, name): value
        for name, value in values.items()
        if name != "model_type"
    }
    return {**translated, "type_vocab_size": 2}


def as_bert_arrays(arrays: Mapping) -> tuple[dict, list[str]]:
    """Returns the weights under BERT's names, and what a person should know.

    Args:
        arrays: mapping from name to array. Of a DistilBERT with any head.
    """
    renamed = {_bert_name(name): array for name, array in arrays.items()}
    notes = []
    words = renamed.get("bert.embeddings.word_embeddings.weight")
    if words is not None:
        renamed[_TYPES] = np.zeros((2, words.shape[-1]), np.float32)
    if "pre_classifier.weight" in renamed:
        for name in list(renamed):
            if name.startswith(("pre_classifier.", "classifier.")):
                del renamed[name]
        notes.append(
            "The classifier of the DistilBERT was left out: it has a ReLU "
            "where a BERT has the tanh of its pooler."
        )
    return renamed, notes


def _bert_name(name):
    name = name.removeprefix("bert.").removeprefix(f"{MODEL_TYPE}.")
    match = _LAYER.fullmatch(name)
    if match and match[2] in _LAYERS:
        return f"bert.encoder.layer.{match[1]}.{_LAYERS[match[2]]}.{match[3]}"
    for theirs, ours in _HEADS.items():
        if name == theirs or name.startswith(f"{theirs}."):
            return ours + name[len(theirs) :]
    return name if name.startswith("pre_classifier.") else f"bert.{name}"
