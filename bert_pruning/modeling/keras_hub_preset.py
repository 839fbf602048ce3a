"""Reads a BERT preset of keras-hub, downloaded by name or from a directory.

keras-hub runs on Keras 3, the graph on tf_keras: only arrays pass between
them. keras-hub is imported when a preset is asked for, not before.
"""

import numpy as np

from bert_pruning.errors import UserError
from bert_pruning.modeling import mapping
from bert_pruning.modeling.config import BertConfig


def read_preset(preset: str):
    """Reads a preset's encoder and vocabulary.

    Args:
        preset: str. What `keras_hub.models.BertBackbone.from_preset` takes: a
            name such as "bert_tiny_en_uncased", a handle such as
            "hf://user/model", or a directory.

    Returns:
        A dict with `config`, `weights`, `vocabulary` and `do_lower_case`.

    Raises:
        UserError: if keras-hub is not installed, the preset cannot be had, or
            it is no BERT.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise UserError(
            f"preset:{preset} needs keras-hub, which cannot be imported "
            f"({error}). Install it with: pip install keras-hub"
        ) from error
    # It raises errors of every library that it downloads with.
    try:
        backbone = keras_hub.models.Backbone.from_preset(preset)
        tokenizer = None
        if isinstance(backbone, keras_hub.models.BertBackbone):
            tokenizer = keras_hub.models.BertTokenizer.from_preset(preset)
    except Exception as error:
        raise UserError(
            f"keras-hub cannot load the preset {preset!r}: {error}"
        ) from error
    if tokenizer is None:
        raise UserError(
            f"The preset {preset!r} is a {type(backbone).__name__}. Only "
            "those of BertBackbone can be loaded."
        )
    config = preset_config(backbone)
    return {
        "config": config,
        "weights": preset_weights(backbone, config),
        "vocabulary": tuple(tokenizer.get_vocabulary()),
        "do_lower_case": bool(tokenizer.lowercase),
    }


def preset_config(backbone):
    """Returns the BertConfig of a `keras_hub.models.BertBackbone`."""
    return BertConfig.uniform(
        vocab_size=backbone.vocabulary_size,
        hidden_size=backbone.hidden_dim,
        num_layers=backbone.num_layers,
        num_heads=backbone.num_heads,
        intermediate_size=backbone.intermediate_dim,
        hidden_act="gelu_new",
        hidden_dropout_prob=backbone.dropout,
        attention_probs_dropout_prob=backbone.dropout,
        max_position_embeddings=backbone.max_sequence_length,
        type_vocab_size=backbone.num_segments,
    )


def preset_weights(backbone, config):
    """Returns a backbone's weights by canonical name.

    Its attention keeps heads as an axis of their own: every array has our
    elements in our order, in another shape.
    """
    arrays = {
        variable.path: _merge_heads(variable.path, np.asarray(variable))
        for variable in backbone.weights
    }
    rows = mapping.match_weights(
        config,
        {path: array.shape for path, array in arrays.items()},
        "keras_hub",
        backbone.name,
    )
    return {row.name: row.convert(arrays[row.stored_name]) for row in rows}


def _merge_heads(path, array):
    parts = path.split("/")
    if len(parts) < 2 or parts[-2] not in (
        "query",
        "key",
        "value",
        "attention_output",
    ):
        return array
    if parts[-1] == "bias":
        return array.reshape(-1)
    if parts[-2] == "attention_output":
        return array.reshape(-1, array.shape[-1])
    return array.reshape(array.shape[0], -1)
