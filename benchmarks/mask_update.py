"""How long one mask update of a whole BERT takes, here and in tfmot.

Both select the largest magnitudes of each of the 72 encoder kernels of
BERT-base: tfmot by `tf.math.top_k` over all weights, a full sort; here by
partition, one matrix per core. The masks are compared. In each round both run
once, one after the other; the seconds are the median over the rounds.

    python benchmarks/mask_update.py --sparsity=0.95
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras import (
    pruning_impl,
)

from bert_pruning.compression.pruning import Pruner
from bert_pruning.compression.pruning import wrap
from bert_pruning.compression.sparsity import Sparsity
from bert_pruning.modeling import bert
from bert_pruning.modeling.config import BertConfig


def masks_of(pruner):
    return {
        name: wrapper.pruning_vars[0][1].numpy() != 0
        for name, wrapper in pruner.wrappers.items()
    }


def reset_masks(pruner):
    for wrapper in pruner.wrappers.values():
        mask = wrapper.pruning_vars[0][1]
        mask.assign(tf.ones_like(mask))


def update_as_tfmot(pruner):
    """tfmot's own update of every mask, as its wrapper calls it."""
    for wrapper in pruner.wrappers.values():
        theirs = pruning_impl.Pruning(
            training_step_fn=lambda wrapper=wrapper: wrapper.pruning_step,
            pruning_vars=wrapper.pruning_vars,
            pruning_schedule=wrapper.pruning_schedule,
            block_size=wrapper.block_size,
            block_pooling_type=wrapper.block_pooling_type,
        )
        for weight, mask, threshold in wrapper.pruning_vars:
            limit, selected = theirs._maybe_update_block_mask(weight)
            threshold.assign(limit)
            mask.assign(selected)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    sparsity = Sparsity(final=args.sparsity, initial=args.sparsity)
    base = BertConfig.uniform(
        vocab_size=30522, hidden_size=768, num_layers=12, num_heads=12
    )
    model = wrap(bert.build_model(base, num_outputs=2), sparsity)
    pruner = Pruner(model, sparsity)
    rng = np.random.default_rng(0)
    for wrapper in pruner.wrappers.values():
        kernel, _, _ = wrapper.pruning_vars[0]
        kernel.assign(rng.normal(0.0, 0.02, kernel.shape))
        # tfmot reads the schedule's sparsity at this step.
        wrapper.pruning_step.assign(0)
    kernels = {
        name: wrapper.pruning_vars[0][0].numpy()
        for name, wrapper in pruner.wrappers.items()
    }

    seconds = {"tfmot": [], "here": []}
    for _ in range(args.rounds):
        masks = {}
        for name, update in (
            ("tfmot", update_as_tfmot),
            ("here", lambda pruner: pruner.update(0)),
        ):
            reset_masks(pruner)
            for layer, wrapper in pruner.wrappers.items():
                wrapper.pruning_vars[0][0].assign(kernels[layer])
            started = time.perf_counter()
            update(pruner)
            seconds[name].append(time.perf_counter() - started)
            masks[name] = masks_of(pruner)
    differing = sum(
        np.count_nonzero(mask != masks["tfmot"][name])
        for name, mask in masks["here"].items()
    )
    weights = sum(kernel.size for kernel in kernels.values())
    cores = len(os.sched_getaffinity(0))
    print(
        f"{len(kernels)} kernels, {weights} weights, sparsity "
        f"{args.sparsity}, {cores} cores, {args.rounds} rounds"
    )
    median = {name: statistics.median(v) for name, v in seconds.items()}
    for name, value in median.items():
        print(f"  {name:5} {value:6.2f} s")
    print(f"  ratio x{median['tfmot'] / median['here']:.1f}")
    # tfmot keeps the nearest whole number of weights, we at most so many.
    print(f"  {differing} mask entries differ")


if __name__ == "__main__":
    main()
