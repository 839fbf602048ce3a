"""A model as a SavedModel that reads text, and what runs one.

The tokenizer is a part of it. Its signatures, as TensorFlow Serving calls them:

    serving_default   texts, to a label, a score or an answer
    ids               token ids, to what the model itself gives

    | model | serving_default takes | and gives |
    |---|---|---|
    | of classes | text, or text_a and text_b | label, score, probabilities |
    | of a score | the same | value |
    | of answers | question, context | answer, score |
    | without a head | the same as of classes | pooled_output |

A batch may have any size, but for none at all. Texts that are too long are cut
as in training, contexts into windows that are all read; bytes that are not
UTF-8 are skipped; an empty text is one without tokens.

    saved_model.save("serving/1", served)
"""

import dataclasses

import tensorflow as tf
import tf_keras as keras

from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.delivery import spans
from bert_pruning.modeling import bert
from bert_pruning.training.step import INPUT_NAMES

# What the texts are called: by a model of one, of two, and of questions.
ONE_TEXT = ("text",)
TWO_TEXTS = ("text_a", "text_b")
QUESTION = ("question", "context")

_TEXT_SIGNATURE = "serving_default"
_IDS_SIGNATURE = "ids"


@dataclasses.dataclass(frozen=True)
class Served:
    """What is served.

    Args:
        model: a model from `build_model` or `build_span_model`.
        output: str. Which of its outputs: "logits" or "pooled_output".
        tokenizer: BertTokenizer.
        max_seq_length: int. Tokens of the longest row.
        labels: tuple of str. The classes, in the order of the logits.
        text_names: tuple of str. `ONE_TEXT`, `TWO_TEXTS` or `QUESTION`, if the
            logits mark an answer in the second text.
    """

    model: keras.Model
    output: str
    tokenizer: BertTokenizer
    max_seq_length: int
    labels: tuple[str, ...] = ()
    text_names: tuple[str, ...] = ONE_TEXT


def read(served, *texts):
    """Computes all that a model says of some texts, as its SavedModel would.

    Args:
        served: Served.
        *texts: a list of str for each of its `text_names`.

    Returns:
        A dict of arrays.

    Example:

    ```python
    read(served, ["It rains."], ["It is raining."])["label"]
    ```
    """
    tensors = [tf.constant(each, tf.string) for each in texts]
    found = _read_texts(served)(
        dict(zip(served.text_names, tensors, strict=True))
    )
    return {name: tensor.numpy() for name, tensor in found.items()}


def save(directory, served):
    """Writes a SavedModel.

    Args:
        directory: str. Made if need be.
        served: Served.

    Raises:
        OSError: if it cannot be written.
    """
    module = bert.as_module(served.model)
    module.tokenizer = served.tokenizer
    texts = {
        name: tf.TensorSpec([None], tf.string, name)
        for name in served.text_names
    }
    ids = {
        name: tf.TensorSpec([None, None], tf.int32, name)
        for name in INPUT_NAMES
    }
    signatures = {
        _TEXT_SIGNATURE: _make_signature(_read_texts(served), texts),
        _IDS_SIGNATURE: _make_signature(
            lambda inputs: {served.output: _run(served, inputs)}, ids
        ),
    }
    try:
        tf.saved_model.save(module, directory, signatures)
    except tf.errors.OpError as error:
        raise OSError(error.message) from error


class SavedModel:
    """Runs a SavedModel of `save`.

    Args:
        directory: str.

    Example:

    ```python
    served = SavedModel("exported/mrpc/saved_model/1")
    served.read(["It rains."], ["It is raining."])["label"]
    served([ids, mask, type_ids])  # logits
    ```
    """

    def __init__(self, directory):
        self._loaded = tf.saved_model.load(directory)
        self._ids = self._loaded.signatures[_IDS_SIGNATURE]
        self._texts = self._loaded.signatures[_TEXT_SIGNATURE]
        _, specs = self._texts.structured_input_signature
        # In no order of their own.
        (self.text_names,) = (
            names
            for names in (ONE_TEXT, TWO_TEXTS, QUESTION)
            if set(names) == set(specs)
        )
        (self.output,) = self._ids.structured_outputs

    def __call__(self, inputs):
        """Computes the output of a batch of ids.

        Args:
            inputs: list of int32 arrays `(batch, length)`, in the order of
                `INPUT_NAMES`.

        Returns:
            A float32 array.
        """
        tensors = [tf.constant(array, tf.int32) for array in inputs]
        named = dict(zip(INPUT_NAMES, tensors, strict=True))
        return self._ids(**named)[self.output].numpy()

    def read(self, *texts):
        """Computes all that the model says of some texts.

        Args:
            *texts: a list of str for each of `text_names`.

        Returns:
            A dict of arrays.
        """
        tensors = [tf.constant(each, tf.string) for each in texts]
        found = self._texts(**dict(zip(self.text_names, tensors, strict=True)))
        return {name: tensor.numpy() for name, tensor in found.items()}


def _make_signature(function, specs):
    # A signature's names are those of its tensors.
    @tf.function(input_signature=[specs], autograph=False)
    def traced(inputs):
        return function(inputs)

    concrete = traced.get_concrete_function()

    @tf.function(autograph=False)
    def signature(**inputs):
        return concrete(inputs)

    return signature.get_concrete_function(**specs)


def _run(served, inputs):
    batch = [inputs[name] for name in INPUT_NAMES]
    return served.model(batch, training=False)[served.output]


def _read_texts(served):
    """Returns the function that reads texts, by what the model predicts."""
    if served.text_names == QUESTION:
        return lambda texts: spans.answer(
            lambda inputs: _run(served, inputs),
            served.tokenizer,
            *_in_order(served, texts),
            served.max_seq_length,
        )

    def read(texts):
        packed = served.tokenizer.pack(
            *served.tokenizer.encode(
                *_in_order(served, texts), max_seq_length=served.max_seq_length
            )
        )
        return _interpret(served, _run(served, packed))

    return read


def _in_order(served, texts):
    return [texts[name] for name in served.text_names]


def _interpret(served, found):
    if served.output != "logits":
        return {served.output: found}
    if found.shape[-1] == 1:
        return {"value": found[:, 0]}
    labels = served.labels or tuple(map(str, range(found.shape[-1])))
    probabilities = tf.nn.softmax(found)
    return {
        "label": tf.gather(tf.constant(labels), tf.argmax(found, -1)),
        "score": tf.reduce_max(probabilities, -1),
        "probabilities": probabilities,
    }
