"""What tests of training share: data, a metric of weights, a sudden end."""

import numpy as np

from bert_pruning.data.pipeline import EncodedDataset
from bert_pruning.modeling import bert


class Crash(Exception):
    """Stands for the process being gone."""


def make_dataset(config, rows=20, seed=0):
    """Returns random rows of 3 to 8 tokens, their labels 0 and 1 in turn."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 9, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = generator.integers(5, config.vocab_size, offsets[-1])
    return EncodedDataset(
        token_ids=ids.astype(np.int32),
        offsets=offsets,
        type_boundaries=lengths.astype(np.int32),
        labels=(np.arange(rows) % 2).astype(np.int32),
        max_seq_length=16,
    )


def weight_metrics(model):
    """An evaluation that depends on every weight of the student."""
    total = sum(
        float(np.abs(array).astype(np.float64).sum())
        for array in bert.get_weights(model.student).values()
    )
    return {"eval_accuracy": total % 1, "eval_loss": total}
