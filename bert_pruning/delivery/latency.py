"""How long a model takes for one batch, on this machine."""

import dataclasses
import statistics
import time

import numpy as np


@dataclasses.dataclass(frozen=True)
class Latency:
    """The median time of a forward pass.

    Args:
        batch_size: int. Sequences.
        length: int. Tokens of each, none of them padding.
        milliseconds: float.
    """

    batch_size: int
    length: int
    milliseconds: float

    @property
    def title(self):
        """Names the setting, not the time."""
        return f"batch {self.batch_size} of {self.length} tokens"

    @property
    def examples_per_second(self):
        """Sequences per second."""
        return 1000 * self.batch_size / self.milliseconds


def measure_latencies(checkpoints, batch_sizes, lengths, rounds=20):
    """Measures models side by side, in float32 and without tokenization.

    The models take turns in every round, so that a slow moment of the machine
    is one of all.

    Args:
        checkpoints: list of checkpoints.Checkpoint.
        batch_sizes: sequence of ints.
        lengths: sequence of ints. Tokens.
        rounds: int. Forward passes of each, after two that do not count.

    Returns:
        A list of `Latency` for each checkpoint.
    """
    forwards = [_build_forward(checkpoint) for checkpoint in checkpoints]
    found = [[] for _ in checkpoints]
    for length in lengths:
        for batch_size in batch_sizes:
            times = [[] for _ in checkpoints]
            for number in range(rounds + 2):
                for forward, taken in zip(forwards, times, strict=True):
                    seconds = forward(batch_size, length)
                    if number >= 2:
                        taken.append(seconds)
            for latencies, taken in zip(found, times, strict=True):
                median = 1000 * statistics.median(taken)
                latencies.append(Latency(batch_size, length, median))
    return found


def _build_forward(checkpoint):
    import tensorflow as tf

    from bert_pruning.delivery.restoring import restore_model

    model, output = restore_model(checkpoint)
    vocab_size = checkpoint.config.vocab_size

    @tf.function(reduce_retracing=True)
    def predict(inputs):
        return model(inputs, training=False)[output]

    def forward(batch_size, length):
        generator = np.random.default_rng(0)
        shape = (batch_size, length)
        ids = tf.constant(generator.integers(0, vocab_size, shape), tf.int32)
        inputs = [ids, tf.ones_like(ids), tf.zeros_like(ids)]
        started = time.perf_counter()
        predict(inputs).numpy()
        return time.perf_counter() - started

    return forward
