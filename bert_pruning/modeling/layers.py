"""The few layers that tf_keras lacks, all weight-free or a single table.

Attention works on three plain `Dense` outputs, so tfmot can prune the Dense
kernels and a head can be cut out by slicing columns.
"""

import contextlib
import contextvars
import math
import zlib

import tensorflow as tf
import tf_keras as keras

from bert_pruning.errors import UserError
from bert_pruning.modeling.quantized_layers import round_weights

# Added to the scores of padded keys; in float16 it still fits.
MASK_VALUE = -10000.0

_dropout_seed = contextvars.ContextVar("dropout_seed", default=None)

_gates = contextvars.ContextVar("gates", default=None)

_register = keras.utils.register_keras_serializable(package="bert_pruning")


@contextlib.contextmanager
def dropout_seed(seed):
    """Makes every `Dropout` inside the block a pure function of `seed`.

    A training step that passes (run seed, step number) repeats exactly when
    a killed run is resumed.

    Args:
        seed: int tensor of shape `(2,)`.

    Example:

    ```python
    with dropout_seed(tf.stack([run_seed, step])):
        outputs = model(inputs, training=True)
    ```
    """
    token = _dropout_seed.set(seed)
    try:
        yield
    finally:
        _dropout_seed.reset(token)


@contextlib.contextmanager
def gates(values):
    """Makes every `Gate` inside the block multiply by its value.

    Args:
        values: dict from a gate's name to a float tensor `(parts,)`. A gate
            that is not named lets everything pass.

    Example:

    ```python
    with gates({"layer_0_head_gate": tf.constant([1.0, 0.0])}):
        outputs = model(inputs)  # without the second head of the first layer
    ```
    """
    token = _gates.set(values)
    try:
        yield
    finally:
        _gates.reset(token)


@_register
class Gate(keras.layers.Layer):
    """Multiplies each of some equal parts of the last axis by its gate.

    The gates are those of the block `gates`; outside of one it does nothing.

    Reference: [Super Tickets](https://arxiv.org/abs/2105.12002).
    """

    def call(self, inputs):
        gate = (_gates.get() or {}).get(self.name)
        if gate is None:
            return inputs
        gate = tf.cast(gate, inputs.dtype)
        return inputs * tf.repeat(gate, inputs.shape[-1] // gate.shape[0])


@_register
class Dropout(keras.layers.Layer):
    """Dropout whose mask depends on `dropout_seed` and the layer's name.

    Each random 32-bit word serves two elements, so the rate is exact to
    2**-16 and the generator, the costly part on a CPU, runs half as often.

    Args:
        rate: float. Share of elements set to zero, in [0, 1).

    Reference: [Dropout](https://jmlr.org/papers/v15/srivastava14a.html).
    """

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, inputs, training=False):
        if not training or self.rate == 0.0:
            return inputs
        seed = _dropout_seed.get()
        if seed is None:
            seed = tf.random.uniform((2,), maxval=2**31 - 1, dtype=tf.int32)
        # Layers share the step's seed; the name tells them apart. The generator
        # takes its seed from the host: no way through a GPU for each layer.
        with tf.device("CPU:0"):
            seed = tf.bitwise.bitwise_xor(
                tf.cast(seed, tf.int32),
                [zlib.crc32(self.name.encode()) & 0x7FFFFFFF, 0],
            )
        size = tf.size(inputs)
        words = tf.random.stateless_uniform(
            [(size + 1) // 2], seed, minval=None, maxval=None, dtype=tf.int32
        )
        halves = tf.reshape(tf.bitcast(words, tf.int16), [-1])[:size]
        keep = tf.reshape(
            halves >= round(self.rate * 2**16) - 2**15, tf.shape(inputs)
        )
        scale = tf.cast(1.0 / (1.0 - self.rate), inputs.dtype)
        return inputs * (tf.cast(keep, inputs.dtype) * scale)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@_register
class LayerNormalization(keras.layers.Layer):
    """Layer normalisation over the last axis, computed in float32.

    Args:
        epsilon: float. Added to the variance.

    Reference: [Layer Normalization](https://arxiv.org/abs/1607.06450).
    """

    def __init__(self, epsilon, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        width = (input_shape[-1],)
        float32 = {"dtype": tf.float32, "experimental_autocast": False}
        self.gamma = self.add_weight(
            "gamma", width, initializer="ones", **float32
        )
        self.beta = self.add_weight(
            "beta", width, initializer="zeros", **float32
        )
        super().build(input_shape)

    def call(self, inputs):
        values = tf.cast(inputs, tf.float32)
        mean = tf.reduce_mean(values, -1, keepdims=True)
        centred = values - mean
        variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
        normed = centred * tf.math.rsqrt(variance + self.epsilon)
        return tf.cast(normed * self.gamma + self.beta, inputs.dtype)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


@_register
class PositionEmbedding(keras.layers.Layer):
    """Adds a learned embedding of each token's absolute position.

    Args:
        max_length: int. Number of positions, in tokens.
        initializer_range: float. Standard deviation of the new table.

    Raises:
        UserError: if the sequence is longer than `max_length`. Where the
            length is only known while the graph runs, an
            `InvalidArgumentError` with the same message.
    """

    def __init__(self, max_length, initializer_range=0.02, **kwargs):
        super().__init__(**kwargs)
        self.max_length = max_length
        self.initializer_range = initializer_range

    def build(self, input_shape):
        self.embeddings = self.add_weight(
            "embeddings",
            (self.max_length, input_shape[-1]),
            initializer=keras.initializers.TruncatedNormal(
                stddev=self.initializer_range
            ),
        )
        super().build(input_shape)

    def call(self, inputs):
        message = (
            f"The model reads at most {self.max_length} tokens "
            "(max_position_embeddings); shorten the input or lower "
            "--max_seq_length."
        )
        static_length = inputs.shape[1]
        if static_length is not None and static_length > self.max_length:
            raise UserError(f"{message} Received: {static_length} tokens.")
        length = tf.shape(inputs)[1]
        if static_length is None:
            check = tf.debugging.assert_less_equal(
                length, self.max_length, message=message
            )
            # XLA drops assertions, and then there is nothing to wait for.
            with tf.control_dependencies([] if check is None else [check]):
                length = tf.identity(length)
        return inputs + tf.cast(self.embeddings, inputs.dtype)[:length]

    def get_config(self):
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "initializer_range": self.initializer_range,
        }


@_register
class FlattenTokens(keras.layers.Layer):
    """Makes a matrix of all tokens, `(batch * length, width)`."""

    def call(self, inputs):
        return tf.reshape(inputs, [-1, inputs.shape[-1]])


@_register
class UnflattenTokens(keras.layers.Layer):
    """Undoes `FlattenTokens`.

    Called on `[tokens, mask]`, with the int mask `(batch, length)`; returns
    `(batch, length, width)`.
    """

    def call(self, inputs):
        tokens, mask = inputs
        shape = tf.shape(mask)
        return tf.reshape(tokens, [shape[0], shape[1], tokens.shape[-1]])


@_register
class AttentionScores(keras.layers.Layer):
    """Scaled, masked scores of every head, before the softmax.

    Called on `[query, key, mask]`: two tensors of shape
    `(batch * length, heads * head_size)`, of which the number of heads is read
    off, and the int mask `(batch, length)`. Returns
    `(batch, heads, length, length)`. Only keys are masked: a padded query
    still attends, as in the official code.

    Args:
        head_size: int. Width of one head.

    Reference: [Attention Is All You Need](https://arxiv.org/abs/1706.03762).
    """

    def __init__(self, head_size, **kwargs):
        super().__init__(**kwargs)
        self.head_size = head_size

    def call(self, inputs):
        query, key, mask = inputs
        query = split_heads(query, self.head_size, tf.shape(mask))
        key = split_heads(key, self.head_size, tf.shape(mask))
        scores = tf.matmul(query, key, transpose_b=True)
        scores *= tf.cast(1.0 / math.sqrt(self.head_size), scores.dtype)
        penalty = tf.cast(1 - mask, scores.dtype) * MASK_VALUE
        # Not by slices: TFLite has no new axes.
        return scores + tf.expand_dims(tf.expand_dims(penalty, 1), 1)

    def get_config(self):
        return {**super().get_config(), "head_size": self.head_size}


@_register
class AttentionContext(keras.layers.Layer):
    """Attention-weighted values of every head, heads side by side.

    Called on `[scores, value]`, with scores from `AttentionScores` and value
    `(batch * length, heads * head_size)`; returns the shape of value. The
    softmax is computed in float32.

    Args:
        head_size: int. Width of one head.
        rate: float. Dropout on the attention probabilities.
    """

    def __init__(self, head_size, rate, **kwargs):
        super().__init__(**kwargs)
        self.head_size = head_size
        self.rate = rate
        self.dropout = Dropout(rate, name=f"{self.name}_probs_dropout")

    def call(self, inputs, training=False):
        scores, value = inputs
        probabilities = tf.nn.softmax(tf.cast(scores, tf.float32))
        probabilities = tf.cast(probabilities, value.dtype)
        probabilities = self.dropout(probabilities, training=training)
        shape = tf.shape(scores)
        shape = tf.stack([shape[0], shape[2]])
        value_heads = split_heads(value, self.head_size, shape)
        context = tf.matmul(probabilities, value_heads)
        context = tf.transpose(context, (0, 2, 1, 3))
        return tf.reshape(context, tf.shape(value))

    def get_config(self):
        return {
            **super().get_config(),
            "head_size": self.head_size,
            "rate": self.rate,
        }


@_register
class TokenEmbedding(keras.layers.Embedding):
    """A table of embeddings that also scores states against every token.

    Called with `reverse=True` on states `(..., width)`, it returns their
    products with each row, `(..., tokens)`: the decoder of a masked language
    model, which has no kernel of its own.

    Args:
        *args: Of `Embedding`.
        quantized: bool. Whether the table is rounded to int8, with one scale.
        **kwargs: Of `Embedding`.

    Reference: [Tied embeddings](https://arxiv.org/abs/1608.05859).
    """

    def __init__(self, *args, quantized=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.quantized = quantized

    def call(self, inputs, reverse=False):
        if not (reverse or self.quantized):
            return super().call(inputs)
        table = self.embeddings
        if self.quantized:
            table = round_weights(table, "per_tensor")
        if reverse:
            table = tf.cast(table, inputs.dtype)
            return tf.matmul(inputs, table, transpose_b=True)
        return tf.gather(table, inputs)

    def get_config(self):
        return {**super().get_config(), "quantized": self.quantized}


@_register
class GatherPositions(keras.layers.Layer):
    """Takes the states at some positions of each row.

    Called on `[states, positions]`, `(batch, length, width)` and int
    `(batch, positions)`; returns `(batch, positions, width)`.
    """

    def call(self, inputs):
        states, positions = inputs
        return tf.gather(states, positions, axis=1, batch_dims=1)


@_register
class Bias(keras.layers.Layer):
    """Adds a learned vector along the last axis."""

    def build(self, input_shape):
        self.bias = self.add_weight(
            "bias", (input_shape[-1],), initializer="zeros"
        )
        super().build(input_shape)

    def call(self, inputs):
        return inputs + self.bias


@_register
class FirstToken(keras.layers.Layer):
    """Takes the hidden state of the first token, [CLS]."""

    def call(self, inputs):
        return inputs[:, 0]


def split_heads(values, head_size, shape):
    """Reshapes (batch * length, width) to (batch, heads, length, head_size).

    Args:
        values: float tensor `(batch * length, heads * head_size)`.
        head_size: int.
        shape: int tensor `(2,)`, batch and length.
    """
    heads = values.shape[-1] // head_size
    values = tf.reshape(values, [shape[0], shape[1], heads, head_size])
    return tf.transpose(values, (0, 2, 1, 3))
