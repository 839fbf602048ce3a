"""The BERT graph: a flat functional model of plain layers with stable names.

One builder serves every shape. Weights move between models, checkpoints and
wrappers by canonical name, `layer name/weight name`, never by position.
"""

import dataclasses
import zlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras

from bert_pruning.errors import UserError
from bert_pruning.modeling import layers
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.quantization import is_activated
from bert_pruning.modeling.quantization import is_range
from bert_pruning.modeling.quantized_layers import QuantizedDense


def build_model(
    config: BertConfig,
    num_outputs: int | Mapping[str, int] | None = None,
    classifier_dropout: Mapping[str, float] | None = None,
):
    """Builds a BERT encoder, with a classifier or regressor on top if asked.

    The inputs are `input_word_ids`, `input_mask` and `input_type_ids`, all
    int32 `(batch, length)` of any length up to
    `config.max_position_embeddings`. The outputs are a dict:

    - `hidden_states`: list of `num_layers + 1` tensors `(batch, length,
      hidden_size)`; the first is the embedding output.
    - `attention_scores`: list of `num_layers` tensors `(batch, heads, length,
      length)`, scaled and masked, before the softmax.
    - `pooled_output`: `(batch, hidden_size)`.
    - `logits`: `(batch, num_outputs)`, float32; only with `num_outputs`. With
      several tasks, a dict from each one's name.

    What a caller does not use costs nothing inside a `tf.function`.

    Args:
        config: BertConfig. The shape.
        num_outputs: int, dict or None. Width of the classifier; 1 for
            regression, None for the bare encoder. A dict from the name of each
            of several tasks: their classifiers are `classifier_{name}`.
        classifier_dropout: dict from the name of a task to float, or None.
            Where it is not `config.classifier_dropout`.

    Returns:
        A `tf_keras.Model` with newly initialised weights.

    Example:

    ```python
    config = BertConfig.uniform(
        vocab_size=100, hidden_size=32, num_layers=2, num_heads=2
    )
    model = build_model(config, num_outputs=2)
    ids = tf.constant([[2, 17, 42, 3]])
    logits = model(
        {
            "input_word_ids": ids,
            "input_mask": tf.ones_like(ids),
            "input_type_ids": tf.zeros_like(ids),
        }
    )["logits"]
    ```

    Reference: [BERT](https://arxiv.org/abs/1810.04805).
    """

    encoder = _build_encoder(config)
    pooled = _pool(config, encoder)
    outputs = {**encoder.outputs, "pooled_output": pooled}

    def classify(width, rate, suffix=""):
        x = layers.Dropout(rate, name=f"classifier_dropout{suffix}")(pooled)
        x = _dense(config, width, f"classifier{suffix}")(x)
        return _as_logits(x, f"logits{suffix}")

    rate = config.classifier_dropout
    if isinstance(num_outputs, Mapping):
        rates = classifier_dropout or {}
        outputs["logits"] = {
            task: classify(width, rates.get(task, rate), f"_{task}")
            for task, width in num_outputs.items()
        }
    elif num_outputs is not None:
        outputs["logits"] = classify(num_outputs, rate)

    return keras.Model(encoder.inputs, outputs, name="bert")


def build_masked_lm(config: BertConfig):
    """Builds a BERT with the head that predicts masked tokens.

    It has a fourth input, `masked_positions`, int32 `(batch, positions)`: only
    these are compared with the vocabulary. The output is a dict with
    `mlm_logits`, float32 `(batch, positions, vocab_size)`. The decoder's kernel
    is the table of word embeddings.

    Args:
        config: BertConfig. Its embeddings must not be factorised.

    Returns:
        A `tf_keras.Model` with newly initialised weights.

    Raises:
        UserError: if the embeddings are factorised.

    Reference: [BERT](https://arxiv.org/abs/1810.04805).
    """
    encoder = _build_encoder(config)
    positions, logits = _predict_masked(config, encoder)
    return keras.Model(
        [*encoder.inputs, positions], {"mlm_logits": logits}, name="bert"
    )


def build_pretraining(config: BertConfig):
    """Builds a BERT with both heads that it is pre-trained with.

    The inputs are those of `build_masked_lm`; the outputs those of
    `build_model` without a classifier, with `mlm_logits` and `nsp_logits`,
    float32 `(batch, 2)`: that the second segment follows the first, or not.

    Args:
        config: BertConfig. Its embeddings must not be factorised.

    Returns:
        A `tf_keras.Model` with newly initialised weights.

    Raises:
        UserError: if the embeddings are factorised.

    Reference: [BERT](https://arxiv.org/abs/1810.04805).
    """
    encoder = _build_encoder(config)
    positions, logits = _predict_masked(config, encoder)
    pooled = _pool(config, encoder)
    x = _dense(config, 2, "next_sentence")(pooled)
    outputs = {
        **encoder.outputs,
        "pooled_output": pooled,
        "mlm_logits": logits,
        "nsp_logits": _as_logits(x, "nsp_logits"),
    }
    return keras.Model([*encoder.inputs, positions], outputs, name="bert")


def build_span_model(config: BertConfig):
    """Builds a BERT that marks a span of its text, as for SQuAD.

    The inputs are those of `build_model`, the outputs too, but `logits` are
    float32 `(batch, length, 2)`: of each token being the first of the span, and
    the last. There is no pooler.

    Args:
        config: BertConfig.

    Returns:
        A `tf_keras.Model` with newly initialised weights.

    Reference: [BERT](https://arxiv.org/abs/1810.04805).
    """
    encoder = _build_encoder(config)
    x = _dense(config, 2, "span")(encoder.hidden_states[-1])
    outputs = {**encoder.outputs, "logits": _as_logits(x, "logits")}
    return keras.Model(encoder.inputs, outputs, name="bert")


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """The part that all models have, as tensors and layers of Keras."""

    inputs: list
    hidden_states: list
    attention_scores: list
    word_embeddings: keras.layers.Layer

    @property
    def outputs(self):
        return {
            "hidden_states": self.hidden_states,
            "attention_scores": self.attention_scores,
        }


def _pool(config, encoder):
    x = layers.FirstToken(name="first_token")(encoder.hidden_states[-1])
    return _dense(config, config.hidden_size, "pooler", activation="tanh")(x)


def _as_logits(x, name):
    """Float32, whatever the model computes in."""
    return keras.layers.Activation("linear", dtype=tf.float32, name=name)(x)


def _predict_masked(config, encoder):
    """Returns the input of positions, and the logits there."""
    if config.embedding_rank:
        raise UserError(
            "Masked tokens can be predicted only with whole word embeddings. "
            f"Received: embeddings of rank {config.embedding_rank}."
        )
    positions = keras.Input((None,), dtype=tf.int32, name="masked_positions")
    x = layers.GatherPositions(name="masked_states")(
        [encoder.hidden_states[-1], positions]
    )
    x = _dense(config, config.hidden_size, "mlm_transform")(x)
    x = keras.layers.Activation(
        activation_function(config.hidden_act), name="mlm_activation"
    )(x)
    x = _norm(config, "mlm_norm")(x)
    x = encoder.word_embeddings(x, reverse=True)
    x = layers.Bias(name="mlm_output")(x)
    return positions, _as_logits(x, "mlm_logits")


def _build_encoder(config):
    # === Inputs ===
    word_ids, mask, type_ids = (
        keras.Input((None,), dtype=tf.int32, name=name)
        for name in ("input_word_ids", "input_mask", "input_type_ids")
    )

    # === Embeddings ===
    is_quantized = bool(config.quantization and config.quantization.embeddings)
    word_embeddings = layers.TokenEmbedding(
        config.vocab_size,
        config.embedding_rank or config.hidden_size,
        quantized=is_quantized,
        dtype=tf.float32 if is_quantized else None,
        embeddings_initializer=_initializer(config),
        name="word_embeddings",
    )
    x = word_embeddings(word_ids)
    if config.embedding_rank:
        x = _dense(
            config, config.hidden_size, "embedding_projection", use_bias=False
        )(x)
    types = keras.layers.Embedding(
        config.type_vocab_size,
        config.hidden_size,
        embeddings_initializer=_initializer(config),
        name="token_type_embeddings",
    )(type_ids)
    x = keras.layers.Add(name="embeddings_add")([x, types])
    x = layers.PositionEmbedding(
        config.max_position_embeddings,
        config.initializer_range,
        name="position_embeddings",
    )(x)
    x = _norm(config, "embeddings_norm")(x)
    x = _dropout(config, "embeddings_dropout")(x)
    hidden_states, attention_scores = [x], []

    # === Encoder ===
    # On a matrix of all tokens, (batch * length, width): a Dense layer on
    # three dimensions computes shapes for longer than small products take.
    x = layers.FlattenTokens(name="tokens")(x)
    for i, intermediate_size in enumerate(config.intermediate_sizes):
        width = config.num_heads[i] * config.head_size
        query = _dense(config, width, f"layer_{i}_query")(x)
        key = _dense(config, width, f"layer_{i}_key")(x)
        value = _dense(config, width, f"layer_{i}_value")(x)
        scores = layers.AttentionScores(
            config.head_size, name=f"layer_{i}_scores"
        )([query, key, mask])
        y = layers.AttentionContext(
            config.head_size,
            config.attention_probs_dropout_prob,
            name=f"layer_{i}_attention",
        )([scores, value])
        y = layers.Gate(name=f"layer_{i}_head_gate")(y)
        y = _dense(config, config.hidden_size, f"layer_{i}_attention_output")(y)
        y = _dropout(config, f"layer_{i}_attention_dropout")(y)
        y = keras.layers.Add(name=f"layer_{i}_attention_add")([x, y])
        x = _norm(config, f"layer_{i}_attention_norm")(y)
        if intermediate_size:
            x = _feed_forward(config, i, x)
        x = _norm(config, f"layer_{i}_output_norm")(x)
        states = layers.UnflattenTokens(name=f"layer_{i}_states")([x, mask])
        hidden_states.append(states)
        attention_scores.append(scores)
    return _Encoder(
        [word_ids, mask, type_ids],
        hidden_states,
        attention_scores,
        word_embeddings,
    )


def _feed_forward(config, i, x):
    width = config.intermediate_sizes[i]
    y = _dense(config, width, f"layer_{i}_intermediate")(x)
    y = keras.layers.Activation(
        activation_function(config.hidden_act), name=f"layer_{i}_activation"
    )(y)
    y = _dense(config, config.hidden_size, f"layer_{i}_output")(y)
    y = layers.Gate(name=f"layer_{i}_block_gate")(y)
    y = _dropout(config, f"layer_{i}_output_dropout")(y)
    return keras.layers.Add(name=f"layer_{i}_output_add")([x, y])


def _initializer(config):
    return keras.initializers.TruncatedNormal(stddev=config.initializer_range)


def _dense(config, units, name, **kwargs):
    kwargs.update(kernel_initializer=_initializer(config), name=name)
    if config.is_quantized(name):
        # The rounding is one of float32, whatever the other layers compute in.
        return QuantizedDense(
            *(units, config.quantization.weights, is_activated(name)),
            **{**kwargs, "dtype": tf.float32},
        )
    return keras.layers.Dense(units, **kwargs)


def _norm(config, name):
    return layers.LayerNormalization(config.layer_norm_eps, name=name)


def _dropout(config, name):
    return layers.Dropout(config.hidden_dropout_prob, name=name)


@keras.utils.register_keras_serializable(package="bert_pruning")
def gelu_new(values):
    """Gelu by its tanh approximation, as the official BERT computes it."""
    return tf.nn.gelu(values, approximate=True)


_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": gelu_new,
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
}


def activation_function(name):
    """Returns what `keras.layers.Activation` takes for a config's name."""
    return _ACTIVATIONS[name]


def encoder_kernels(config: BertConfig):
    """Returns the canonical names of the kernels that pruning acts on.

    Six per layer: query, key, value, attention output, intermediate and
    output; 72 matrices for BERT-base.
    """
    attention = ("query", "key", "value", "attention_output")
    return tuple(
        f"layer_{i}_{part}/kernel"
        for i, neurons in enumerate(config.intermediate_sizes)
        for part in (
            *attention,
            *(("intermediate", "output") if neurons else ()),
        )
    )


def named_variables(model):
    """Returns the model's own weights by canonical name.

    Pruning wrappers are looked through, and what they add (mask, threshold,
    step) is left out.

    Args:
        model: a model from `build_model`, wrapped by tfmot or not.

    Returns:
        A dict from `layer name/weight name` to variable, in graph order.
    """
    variables = {}
    for layer in model.layers:
        layer = getattr(layer, "layer", layer)
        for variable in layer.weights:
            weight = variable.name.split(":")[0].rsplit("/", 1)[-1]
            variables[f"{layer.name}/{weight}"] = variable
    return variables


def named_parameters(model):
    """Returns the weights that an optimizer moves by canonical name.

    All of `named_variables` but the ranges of what computes in 8 bits.
    """
    return {
        name: variable
        for name, variable in named_variables(model).items()
        if not is_range(name)
    }


def get_weights(model):
    """Returns the model's weights as arrays by canonical name."""
    return {
        name: variable.numpy()
        for name, variable in named_variables(model).items()
    }


def as_module(model):
    """Returns the model's weights as a module to write a SavedModel of.

    Of a Keras model TensorFlow would trace all layers anew, which takes longer
    than the functions that it is written for.

    Args:
        model: a model from `build_model` or `build_span_model`.

    Returns:
        A `tf.Module`; more that is to be written may be set on it.
    """
    module = tf.Module()
    module.weights = model.weights
    return module


def draw_weights(model, names, stddev, seed):
    """Draws new kernels, each a function of the seed and its name alone.

    So a classifier begins alike on a whole model and on a part of it.

    Args:
        model: a model from `build_model`, wrapped or not.
        names: list of str. Canonical names; biases among them stay at zero.
        stddev: float. Of the normal distribution, cut off at twice that.
        seed: int.
    """
    variables = named_variables(model)
    for name in names:
        if name.endswith("/kernel"):
            seeds = [seed, zlib.crc32(name.encode()) & 0x7FFFFFFF]
            variables[name].assign(
                tf.random.stateless_truncated_normal(
                    variables[name].shape, seeds, stddev=stddev
                )
            )


def set_weights(model, weights, initialized=("classifier",)):
    """Copies arrays into a model by canonical name.

    Args:
        model: a model from `build_model`, wrapped or not.
        weights: dict from canonical name to array. Names of heads that this
            model does not have are skipped.
        initialized: tuple of str. Layers that may keep their new weights
            when `weights` lacks them.

    Returns:
        The names that kept their new weights.

    Raises:
        UserError: if a weight is missing or its shape differs.
    """
    variables = named_variables(model)
    kept, missing = [], []
    for name, variable in variables.items():
        if name not in weights:
            new = name.split("/")[0] in initialized
            (kept if new else missing).append(name)
        elif tuple(weights[name].shape) != tuple(variable.shape):
            raise UserError(
                f"Weight {name} has shape {tuple(weights[name].shape)}, but "
                f"the model needs {tuple(variable.shape)}."
            )
    if missing:
        raise UserError(
            f"{len(missing)} weights are missing, the first: "
            f"{', '.join(missing[:5])}."
        )
    for name, variable in variables.items():
        if name in weights:
            variable.assign(np.asarray(weights[name]))
    return kept
