"""A model as a TFLite file, and what runs one.

What computes in 8 bits in Keras does so in the file, in int8 arithmetic and
with the same scales; all else stays float32.
"""

import os
import warnings

import numpy as np
import tensorflow as tf
from ai_edge_litert import interpreter as litert

from bert_pruning.modeling import quantized_layers
from bert_pruning.training.step import INPUT_NAMES


def convert(model, output, is_quantized):
    """Converts a model.

    The inputs are those of `build_model`, of any batch size and length.

    Args:
        model: a model from `build_model` or `build_span_model`.
        output: str. Which of its outputs the file has.
        is_quantized: bool. Whether a part of it computes in 8 bits.

    Returns:
        The file as bytes.

    Example:

    ```python
    model, output = restore_model(checkpoint)
    content = convert(model, output, is_quantized=False)
    ```
    """
    ids = tf.TensorSpec((None, None), tf.int32)

    # The names in the file's signature are those of arguments and result.
    @tf.function(input_signature=[ids] * 3)
    def forward(input_word_ids, input_mask, input_type_ids):
        inputs = [input_word_ids, input_mask, input_type_ids]
        return {output: model(inputs, training=False)[output]}

    with quantized_layers.exporting():
        traced = forward.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], model)
    if is_quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with warnings.catch_warnings():
        # The ranges are in the graph; it asks for examples to find them by.
        warnings.filterwarnings("ignore", message="Statistics for quantized")
        return converter.convert()


class Interpreter:
    """Runs a TFLite file of `convert`.

    Args:
        content: bytes. The file.
        num_threads: int or None. None: as many as the machine has cores.

    Example:

    ```python
    logits = Interpreter(content)([ids, mask, type_ids])
    ```
    """

    def __init__(self, content, num_threads=None):
        interpreter = litert.Interpreter(
            model_content=content, num_threads=num_threads or os.cpu_count()
        )
        self._run = interpreter.get_signature_runner()
        (self.output,) = self._run.get_output_details()

    def __call__(self, inputs):
        """Computes the output of a batch.

        Args:
            inputs: list of int32 arrays `(batch, length)`, in the order of
                `INPUT_NAMES`.

        Returns:
            A float32 array.
        """
        arrays = [np.asarray(array, np.int32) for array in inputs]
        return self._run(**dict(zip(INPUT_NAMES, arrays, strict=True)))[
            self.output
        ]
