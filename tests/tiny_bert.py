"""Tiny BERTs with reproducible random weights, for tests and goldens."""

import dataclasses

import numpy as np

from bert_pruning.modeling.checkpoints import save_huggingface
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.names import weight_table

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

TASKS = {
    "classification": {"name": "MNLI", "labels": ["no", "yes", "maybe"]},
    "regression": {"name": "STS-B", "labels": []},
}


def tiny_config(**changes):
    """Returns a BERT of 2 layers, with 8 hidden units and 20 tokens."""
    values = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 16,
        "hidden_act": "gelu",
    }
    return BertConfig.uniform(**{**values, **changes})


def uneven_config():
    """Returns a pruned BERT: unequal layers and factorised embeddings."""
    return BertConfig(
        vocab_size=20,
        hidden_size=8,
        head_size=4,
        num_heads=(2, 1),
        intermediate_sizes=(5, 12),
        hidden_act="gelu",
        max_position_embeddings=16,
        embedding_rank=3,
    )


def blockless_config():
    """Returns a BERT whose first layer has no feed-forward block."""
    return dataclasses.replace(uneven_config(), intermediate_sizes=(0, 12))


def vocabulary(size=20, cased=False):
    """Returns a vocabulary of special tokens and made-up words."""
    words = [f"Word{i}" if cased else f"word{i}" for i in range(size - 5)]
    return SPECIAL_TOKENS + tuple(words)


def random_weights(config, seed=0, num_outputs=None, heads=("pooler",)):
    """Returns random weights by canonical name.

    Args:
        config: BertConfig.
        seed: int.
        num_outputs: int or None. Width of the classifier, None for none.
        heads: which of "pooler", "mlm", "next_sentence", "span" to add.
    """
    generator = np.random.RandomState(seed)
    groups = {None, *heads}
    if num_outputs:
        groups.add("classifier")
    weights = {}
    for row in weight_table(config, "huggingface"):
        if row.group in groups:
            shape = [num_outputs if n is None else n for n in row.shape]
            values = 0.2 * generator.standard_normal(shape)
            if row.name.endswith("/gamma"):
                values += 1.0
            weights[row.name] = values.astype(np.float32)
    return weights


def random_inputs(config, batch_size, length, seed=0):
    """Returns token ids, padding and segments as the graph's inputs."""
    generator = np.random.RandomState(seed)
    shape = (batch_size, length)
    lengths = generator.randint(1, length + 1, batch_size)
    lengths[0] = length
    mask = np.arange(length) < lengths[:, np.newaxis]
    ids = generator.randint(1, config.vocab_size, shape)
    types = generator.randint(0, config.type_vocab_size, shape)
    return {
        "input_word_ids": np.where(mask, ids, 0).astype(np.int32),
        "input_mask": mask.astype(np.int32),
        "input_type_ids": types.astype(np.int32),
    }


def save_run(directory, name):
    """Saves a run of one of `TASKS`; returns inputs to try it on."""
    config, task = tiny_config(), TASKS[name]
    weights = random_weights(config, num_outputs=len(task["labels"]) or 1)
    save_huggingface(directory, config, weights, vocabulary(), True, task)
    return random_inputs(config, batch_size=4, length=7)


def golden_tensor(index, shape):
    """Returns small integers, exact in every float type."""
    values = np.arange(np.prod(shape, dtype=int)) % 61 + index % 7
    return values.reshape(shape).astype(np.float32)
