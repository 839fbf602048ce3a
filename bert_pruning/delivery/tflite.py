"""A model as a TFLite (LiteRT) file, and what runs one.

What computes in 8 bits in Keras does so in the file, in int8 arithmetic and
with the same scales. A float32 model stays one, or keeps its weights in half
precision, or in 8 bits and rounds the inputs of its products as they come.
"""

import os
import warnings

import numpy as np
import tensorflow as tf
from ai_edge_litert import interpreter as litert

from bert_pruning.modeling import bert
from bert_pruning.modeling import quantized_layers
from bert_pruning.training.step import INPUT_NAMES


def convert(model, output, quantization="none", batch_size=None, length=None):
    """Converts a model.

    The inputs are those of `build_model`.

    Args:
        model: a model from `build_model` or `build_span_model`.
        output: str. Which of its outputs the file has.
        quantization: str. "none": float32. "float16": weights in half
            precision. "dynamic_int8": weights in 8 bits, one scale for each
            output of a Dense layer, and each row of a product's inputs rounded
            by its own range. "int8": what of the model computes in 8 bits.
        batch_size: int or None. The only one that the file takes; None: any.
        length: int or None. The same, in tokens.

    Returns:
        The file as bytes.

    Example:

    ```python
    model, output = restore_model(checkpoint)
    content = convert(model, output, "dynamic_int8")
    ```
    """
    ids = tf.TensorSpec((batch_size, length), tf.int32)

    # The names in the file's signature are those of arguments and result.
    @tf.function(input_signature=[ids] * 3)
    def forward(input_word_ids, input_mask, input_type_ids):
        inputs = [input_word_ids, input_mask, input_type_ids]
        return {output: model(inputs, training=False)[output]}

    with quantized_layers.exporting():
        traced = forward.get_concrete_function()
    # The converter writes a SavedModel of what it gets.
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [traced], bert.as_module(model)
    )
    if quantization != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    with warnings.catch_warnings():
        # The ranges are in the graph; it asks for examples to find them by.
        warnings.filterwarnings("ignore", message="Statistics for quantized")
        return converter.convert()


class Interpreter:
    """Runs a TFLite file of `convert`.

    Args:
        content: bytes. The file.
        num_threads: int or None. None: as many as the machine has cores.

    Attributes:
        output: str. What it gives.
        batch_size, length: int. Those that it takes; -1: any.

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
        details = self._run.get_input_details()[INPUT_NAMES[0]]
        # -1: any.
        self.batch_size, self.length = details["shape_signature"].tolist()

    def __call__(self, inputs):
        """Computes the output of a batch.

        Where the file takes one shape alone, rows are padded to it, and batches
        cut and padded.

        Args:
            inputs: list of int32 arrays `(batch, length)`, in the order of
                `INPUT_NAMES`.

        Returns:
            A float32 array.
        """
        arrays = [np.asarray(array, np.int32) for array in inputs]
        rows, width = arrays[0].shape
        step = self.batch_size if self.batch_size > 0 else max(rows, 1)
        found = []
        for begin in range(0, max(rows, 1), step):
            parts = [array[begin : begin + step] for array in arrays]
            found.append(self._run_one([self._fill(part) for part in parts]))
        found = np.concatenate(found)[:rows]
        # Of models whose output has a row for each token.
        return found[:, :width] if found.ndim == 3 else found

    def _fill(self, array):
        rows, width = array.shape
        more = max(self.batch_size - rows, 0), max(self.length - width, 0)
        return np.pad(array, [(0, each) for each in more])

    def _run_one(self, arrays):
        return self._run(**dict(zip(INPUT_NAMES, arrays, strict=True)))[
            self.output
        ]
