"""Predicts masked tokens, many sentences at a time."""

import numpy as np
import tensorflow as tf


class MaskedPredictor:
    """Names the likeliest tokens at masked positions.

    Args:
        model: a model from `bert.build_masked_lm`.
        number: int. Tokens to name at each position.
        batch_tokens: int. Tokens of a batch, padding included.

    Example:

    ```python
    predict = MaskedPredictor(model, number=15)
    ids = predict([Masked(ids=(2, 4, 3, 17, 3), first_length=3, position=1)])
    ```
    """

    def __init__(self, model, number, batch_tokens=4096):
        self.number = number
        self.batch_tokens = batch_tokens
        ids = tf.TensorSpec((None, None), tf.int32)

        @tf.function(input_signature=[[ids, ids, ids, ids]])
        def forward(inputs):
            logits = model(inputs, training=False)["mlm_logits"]
            return tf.math.top_k(logits[:, 0], number).indices

        self._forward = forward

    def __call__(self, masked):
        """Predicts one position of each sentence.

        Args:
            masked: list of `augmentation.Masked`.

        Returns:
            An int32 array `(len(masked), number)`, the likeliest token first.
        """
        lengths = np.array([len(each.ids) for each in masked])
        # The longest first: what fits then fits for all others.
        order = np.argsort(-lengths, kind="stable")
        found = np.empty((len(masked), self.number), np.int32)
        start = 0
        while start < len(order):
            width = lengths[order[start]]
            rows = order[start : start + max(1, self.batch_tokens // width)]
            found[rows] = self._predict([masked[row] for row in rows], width)
            start += len(rows)
        return found

    def _predict(self, masked, width):
        ids = np.zeros((len(masked), width), np.int32)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, each in enumerate(masked):
            ids[row, : len(each.ids)] = each.ids
            mask[row, : len(each.ids)] = 1
            types[row, each.first_length : len(each.ids)] = 1
        positions = np.array([[each.position] for each in masked], np.int32)
        inputs = [tf.constant(x) for x in (ids, mask, types, positions)]
        return self._forward(inputs).numpy()
