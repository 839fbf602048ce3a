"""Layers that compute in 8 bits, simulated in float32.

The weights are rounded in each forward pass, so that training feels the
rounding and zeros stay zeros; activations are rounded within ranges that
training observes.
"""

import contextlib
import contextvars

import numpy as np
import tensorflow as tf
import tf_keras as keras

from bert_pruning.modeling.quantization import GRANULARITIES
from bert_pruning.modeling.quantization import LEVELS

# Share of a batch's range in the moving average.
_UPDATE = 0.01

# 256 values, 127 of them above zero.
_UNIT_RANGE = (-128.0 / 127.0, 1.0)

# What the interpreter of TFLite gives to tanh, whatever its input.
_TANH_RANGE = (-1.0, 127.0 / 128.0)

_exporting = contextvars.ContextVar("exporting", default=False)


@contextlib.contextmanager
def exporting():
    """Makes the layers traced inside compute as converters understand.

    Kernels and ranges become constants, and a Dense layer a convolution, for
    which alone TFLite's converter takes one scale for each channel.
    """
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


@keras.utils.register_keras_serializable(package="bert_pruning")
class QuantizedDense(keras.layers.Dense):
    """A Dense layer whose product is that of int8 matrices.

    Weights are rounded symmetrically by the largest of them, anew in each
    pass; inputs and outputs by moving averages over the training batches, which
    the first one begins: inputs within the least and the greatest value,
    outputs the same, or symmetrically by the greatest magnitude of each
    channel. Gradients pass through the rounding, but not from beyond the range.
    Before a first batch in training ranges and outputs are NaN.

    Args:
        units: int.
        granularity: str. One of `GRANULARITIES`, of the weights.
        activated: bool. Whether an activation function follows, so that the
            outputs have one range.
        **kwargs: Of `Dense`.

    Reference: [Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference](https://arxiv.org/abs/1712.05877).
    """

    def __init__(
        self, units, granularity=GRANULARITIES[0], activated=False, **kwargs
    ):
        super().__init__(units, **kwargs)
        self.granularity = granularity
        self.activated = activated

    def build(self, input_shape):
        super().build(input_shape)

        def add_range(name, size):
            return self.add_weight(
                name,
                (size,),
                tf.float32,
                keras.initializers.Constant(np.nan),
                trainable=False,
                experimental_autocast=False,
                aggregation=tf.VariableAggregation.MEAN,
            )

        self.input_range = add_range("input_range", 2)
        if self.activated:
            self.output_range = add_range("output_range", 2)
        else:
            self.output_limits = add_range("output_limits", self.units)

    def call(self, inputs, training=False):
        if inputs.shape.rank == 2:
            return self._multiply(inputs, training)
        rows = tf.reshape(inputs, [-1, inputs.shape[-1]])
        shape = tf.concat([tf.shape(inputs)[:-1], [self.units]], 0)
        return tf.reshape(self._multiply(rows, training), shape)

    def _multiply(self, inputs, training):
        if training:
            _move(self.input_range, _span(inputs), inputs)
        x = _round(inputs, self.input_range)
        if _exporting.get():
            return self._export(x)
        # On whole numbers: sums below 2**24 are exact, as in int32.
        x_scale = (self.input_range[1] - self.input_range[0]) / 255.0
        kernel, scale = _levels(self.kernel, self.granularity)
        scale *= x_scale
        y = tf.matmul(_nearest(x / x_scale), kernel)
        if self.use_bias:
            y += _nearest(self.bias / scale)
        y *= scale
        if self.activated:
            if training:
                _move(self.output_range, _span(y), inputs)
            return self._activate(_round(y, self.output_range))
        if training:
            limits = tf.reduce_max(tf.abs(y), 0)
            _move(self.output_limits, limits, inputs)
        limits = _without_zeros(self.output_limits)
        return self._activate(_round(y / limits, _UNIT_RANGE) * limits)

    def get_prunable_weights(self):
        """What tfmot's wrapper puts a mask on."""
        return [self.kernel]

    def get_config(self):
        return {
            **super().get_config(),
            "granularity": self.granularity,
            "activated": self.activated,
        }

    def _activate(self, values):
        if self.activation is None:
            return values
        values = self.activation(values)
        is_tanh = self.activation is keras.activations.tanh
        if is_tanh and not _exporting.get():
            return _round(values, _TANH_RANGE)
        return values

    def _export(self, x):
        levels, scale = _constants(self.kernel, self.granularity)
        limits, output_range = np.float32(1.0), _UNIT_RANGE
        if self.activated:
            output_range = self.output_range
        else:
            # The product is made in units of each channel's limit.
            limits = _value(self.output_limits, _without_zeros)
        scale = np.broadcast_to(scale[0] / limits, [self.units])
        ends = LEVELS * scale
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            # (1, 1, in, out): a convolution of single pixels...
            *((levels * scale)[np.newaxis, np.newaxis], -ends, ends),
            narrow_range=True,
        )
        # ...and (1, 1, rows, width): an image of one line.
        y = tf.reshape(x, [1, 1, -1, x.shape[-1]])
        y = tf.nn.conv2d(y, kernel, 1, "VALID")
        if self.use_bias:
            y = tf.nn.bias_add(y, _value(self.bias) / limits)
        y = tf.reshape(_round(y, output_range), [-1, self.units])
        return self._activate(y if self.activated else y * limits)


def round_weights(weights, granularity):
    """Rounds a matrix to int8 and back.

    Args:
        weights: float32 variable or tensor `(in, out)`.
        granularity: str. "per_channel": by the largest of each column.

    Returns:
        A tensor; its gradient is that of `weights`.
    """
    if _exporting.get():
        levels, scale = _constants(weights, granularity)
        limit = float(LEVELS * scale.max())
        return tf.quantization.fake_quant_with_min_max_args(
            levels * scale, -limit, limit, narrow_range=True
        )
    levels, scale = _levels(weights, granularity)
    return levels * scale


def _levels(weights, granularity):
    """Returns weights as whole numbers, and their scale or one for each."""
    values = tf.convert_to_tensor(weights)
    axis = 0 if granularity == "per_channel" else None
    limit = tf.reduce_max(tf.abs(values), axis, keepdims=True)
    scale = tf.stop_gradient(_without_zeros(limit) / LEVELS)
    return _nearest(values / scale), scale


@tf.custom_gradient
def _nearest(values):
    """Rounds to whole numbers; the gradient passes through."""
    return tf.round(values), lambda gradient: gradient


def _without_zeros(limits):
    """What is zero throughout needs a scale too, and any will do."""
    return tf.where(tf.equal(limits, 0.0), 1.0, limits)


def _constants(weights, granularity):
    """Returns what `_levels` does as arrays, while a graph is made."""
    with tf.init_scope():
        return [found.numpy() for found in _levels(weights, granularity)]


def _value(variable, function=tf.identity):
    """Returns a function of a variable as an array, while a graph is made."""
    with tf.init_scope():
        return function(tf.convert_to_tensor(variable)).numpy()


def _round(values, found):
    """Rounds to 256 values within a range; a variable, or two numbers."""
    if isinstance(found, tuple):
        return tf.quantization.fake_quant_with_min_max_args(values, *found)
    if _exporting.get():
        return tf.quantization.fake_quant_with_min_max_args(
            values, *map(float, _value(found))
        )
    return _round_within(values, found[0], found[1])


@tf.custom_gradient
def _round_within(values, low, high):
    """TensorFlow's own gradient is not deterministic on a GPU: an error."""
    rounded = tf.quantization.fake_quant_with_min_max_vars(values, low, high)
    within = tf.abs(rounded - values) <= (high - low) / 255.0

    def differentiate(gradient):
        return tf.where(within, gradient, 0.0), None, None

    return rounded, differentiate


def _span(values):
    """Returns the least and the greatest value, zero included."""
    low = tf.minimum(tf.reduce_min(values), 0.0)
    high = tf.maximum(tf.reduce_max(values), 0.0)
    return tf.stack([low, tf.where(low == high, 1.0, high)])


def _move(variable, found, batch):
    """Moves a range a little towards that of a batch."""
    old = tf.convert_to_tensor(variable)
    found = tf.stop_gradient(found)
    moved = tf.where(tf.math.is_nan(old), found, old + _UPDATE * (found - old))
    # Without rows there is nothing to observe.
    variable.assign(tf.where(tf.shape(batch)[0] > 0, moved, old))
