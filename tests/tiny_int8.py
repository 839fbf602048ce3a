"""Tiny models that compute in 8 bits, for tests."""

import dataclasses
import functools

import numpy as np
import tiny_bert

from bert_pruning.modeling import bert
from bert_pruning.modeling.quantization import Quantization
from bert_pruning.training.step import INPUT_NAMES

INT8 = Quantization()
CONFIG = tiny_bert.tiny_config(quantization=INT8)


def normal(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(np.float32)


def observed_weights(config, num_outputs=2, seed=0):
    """Returns random weights, and the ranges of some random batches."""
    found = _observe(config, num_outputs, seed)
    return {name: array.copy() for name, array in found.items()}


@functools.cache
def _observe(config, num_outputs, seed):
    plain = dataclasses.replace(config, quantization=None)
    model = bert.build_model(config, num_outputs)
    weights = bert.get_weights(model)
    weights.update(tiny_bert.random_weights(plain, seed, num_outputs))
    bert.set_weights(model, weights)
    for batch in range(3):
        inputs = tiny_bert.random_inputs(config, 6, 9, seed=batch)
        model([inputs[name] for name in INPUT_NAMES], training=True)
    return bert.get_weights(model)


def logits_of(config, weights, inputs):
    model = bert.build_model(config, weights["classifier/kernel"].shape[1])
    bert.set_weights(model, weights, initialized=())
    return model([inputs[name] for name in INPUT_NAMES])["logits"].numpy()
