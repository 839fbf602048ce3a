"""How fast pre-training is: making its examples, and its steps.

    python benchmarks/pretraining.py --texts=TEXTS --init_checkpoint=MINILM

`prepare` is timed as a whole, from the command line to the last file. Steps are
of learning the text alone, and of pruning (shadow weights) beside a teacher;
both take turns. Some of each are traced with a single thread as well: what is
not spent in products of matrices is overhead.
"""

import argparse
import glob
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

PRODUCTS = ("MatMul", "Einsum", "BatchMatMul")


def prepare(texts, init_checkpoint, directory):
    """Returns examples per second."""
    from bert_pruning.data import examples
    from bert_pruning.modeling import checkpoints

    started = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "bert_pruning", "prepare"),
            *(f"--input={texts}", f"--init_checkpoint={init_checkpoint}"),
            *(f"--output_dir={directory}", "--max_seq_length=128"),
        ],
        check=True,
    )
    seconds = time.perf_counter() - started
    checkpoint = checkpoints.load_checkpoint(init_checkpoint)
    corpus = examples.find_corpus(directory, checkpoint.vocabulary, True)
    rows = sum(corpus.rows_of("train")) + sum(corpus.rows_of("dev"))
    return rows, rows / seconds


class Steps:
    """The two kinds of steps, on the same batches."""

    def __init__(self, directory, init_checkpoint, batch_size):
        import numpy as np

        from bert_pruning.data import examples
        from bert_pruning.data import pretraining as data
        from bert_pruning.data.shards import ShardedBatches
        from bert_pruning.modeling import checkpoints
        from bert_pruning.training import pretraining

        checkpoint = checkpoints.load_checkpoint(init_checkpoint)
        corpus = examples.find_corpus(directory, checkpoint.vocabulary, True)
        self.batches = pretraining.MaskedBatches(
            ShardedBatches(
                *(corpus.rows_of("train"), lambda n: corpus.read("train", n)),
                *(np.int32, batch_size, 1, 1),
            ),
            data.Masking(checkpoint.vocabulary),
            seed=1,
        )
        self.runs = {
            "learning the text": self._stepper(checkpoint, is_pruned=False),
            "pruning, distilling": self._stepper(checkpoint, is_pruned=True),
        }

    def _stepper(self, checkpoint, is_pruned):
        import numpy as np

        from bert_pruning.compression import pruning
        from bert_pruning.compression.sparsity import Sparsity
        from bert_pruning.modeling import bert
        from bert_pruning.training import distillation
        from bert_pruning.training import optimization
        from bert_pruning.training import pretraining
        from bert_pruning.training.stepping import Stepper

        def build():
            model = bert.build_pretraining(checkpoint.config)
            heads = ("pooler", "mlm_transform", "mlm_norm", "mlm_output")
            bert.set_weights(
                model, checkpoint.weights, (*heads, "next_sentence")
            )
            return model

        student, options = build(), {}
        if is_pruned:
            sparsity = Sparsity(
                *(0.9, 0.9), end_step=1, regrowth="shadow", update_end_step=2
            )
            student = pruning.wrap(student, sparsity)
            options = {
                "teacher": build(),
                "pruner": pruning.Pruner(student, sparsity),
                "label_weight": 0.5,
                "matches": distillation.build_matches(
                    *(("logits",), checkpoint.config, checkpoint.config),
                    *({"logits": 0.5}, 2.0, None, "kl"),
                ),
            }
        model = pretraining.PretrainingModel(student, **options)
        model.compile(optimization.build_optimizer(student, "adamw", 1e-4))
        if is_pruned:
            model.pruner.update(0)
        return Stepper(model, np.int32)

    def run(self, name, steps):
        """Runs some steps; returns the seconds of each."""
        taken = []
        for batch in itertools.islice(self.batches.epoch(0), steps):
            started = time.perf_counter()
            float(self.runs[name].run(batch)["loss"])
            taken.append(time.perf_counter() - started)
        return taken


def share_outside_products(directory, init_checkpoint, batch_size):
    """Returns for each kind of step the share of time outside of products."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    steps = Steps(directory, init_checkpoint, batch_size)
    found = {}
    for name in steps.runs:
        steps.run(name, 2)
        with tempfile.TemporaryDirectory() as log:
            tf.profiler.experimental.start(log)
            seconds = sum(steps.run(name, 2))
            tf.profiler.experimental.stop()
            found[name] = 1 - _seconds_of_products(log) / seconds
    return found


def _seconds_of_products(log):
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (path,) = glob.glob(f"{log}/**/*.xplane.pb", recursive=True)
    space = xplane_pb2.XSpace()
    with open(path, "rb") as file:
        space.ParseFromString(file.read())
    total = 0
    for plane in space.planes:
        names = {key: each.name for key, each in plane.event_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                # An operation is called "its name:its kind".
                kind = names[event.metadata_id].rpartition(":")[2]
                if any(product in kind for product in PRODUCTS):
                    total += event.duration_ps
    return total / 1e12


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--init_checkpoint", required=True)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows, rate = prepare(args.texts, args.init_checkpoint, directory)
        print(f"prepare: {rows} examples, {rate:.0f} a second")
        given = directory, args.init_checkpoint, args.batch_size
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            shares = pool.apply(share_outside_products, given)
        steps = Steps(*given)
        found = {name: [] for name in steps.runs}
        for name in steps.runs:
            steps.run(name, 2)
        for _ in range(args.rounds):
            for name in steps.runs:
                found[name] += steps.run(name, args.steps)
        for name, seconds in found.items():
            median = statistics.median(seconds)
            print(
                f"{name}: {median:.2f} s a step, "
                f"{args.batch_size / median:.1f} examples a second, "
                f"{shares[name]:.0%} outside of products"
            )


if __name__ == "__main__":
    main()
