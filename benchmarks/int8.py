"""Models in float32 and in 8 bits: quality, bytes and latency.

Each run is scored in Keras and as the TFLite file that `export` writes, and
both are timed on the same tokens, taking turns.

    python benchmarks/int8.py --data_dir=GLUE --task=STS-B \
        --runs=runs/sts-b,runs/sts-b_int8
"""

import argparse
import os
import statistics
import time

import numpy as np
import tensorflow as tf

from bert_pruning.data import pipeline
from bert_pruning.data import tasks
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.delivery import tflite
from bert_pruning.delivery.restoring import restore_model
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.training import evaluation

SHAPES = ((1, 64), (32, 64), (1, 128), (32, 128))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--runs", required=True, help="with commas between")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()

    task = tasks.get_task(args.task)
    examples = tasks.read_examples(task, args.data_dir, "dev")
    contenders, rows = {}, []
    for path in args.runs.split(","):
        checkpoint = load_checkpoint(path)
        tokenizer = BertTokenizer(
            checkpoint.vocabulary, checkpoint.do_lower_case
        )
        dataset = pipeline.encode_examples(examples, tokenizer, 128)
        model, output = restore_model(checkpoint)
        quantization = checkpoint.config.quantization
        content = tflite.convert(
            model, output, "int8" if quantization else "none"
        )
        forwards = {
            "Keras": evaluation.trace_logits(model),
            "TFLite": tflite.Interpreter(content, os.cpu_count()),
        }
        stored = {
            "Keras": sum(array.nbytes for array in checkpoint.weights.values()),
            "TFLite": len(content),
        }
        for name, forward in forwards.items():
            logits = evaluation.predict_all(forward, dataset)
            found = evaluation.score(task, dataset.labels, logits)
            title = f"{os.path.basename(os.path.normpath(path))}, {name}"
            rows.append((title, found[task.primary_metric], stored[name]))
            contenders[title] = forward
    times = measure(contenders, args.rounds)
    shown = [f"{batch} of {length}" for batch, length in SHAPES]
    print("| |", " | ".join([task.primary_metric, "MB", *shown]), "|")
    print("|---" * (3 + len(SHAPES)) + "|")
    for title, metric, size in rows:
        cells = [f"{metric:.4f}", f"{size / 1e6:.1f}"]
        cells += [f"{times[title, shape]:.1f}" for shape in SHAPES]
        print("|", " | ".join([title, *cells]), "|")


def measure(contenders, rounds):
    """Returns the median milliseconds of each contender and shape."""
    generator = np.random.default_rng(0)
    times = {}
    for batch, length in SHAPES:
        ids = generator.integers(1000, 20000, (batch, length)).astype(np.int32)
        inputs = [
            tf.constant(array)
            for array in (ids, np.ones_like(ids), np.zeros_like(ids))
        ]
        taken = {title: [] for title in contenders}
        for number in range(rounds + 2):
            for title, forward in contenders.items():
                started = time.perf_counter()
                np.asarray(forward(inputs))
                if number >= 2:
                    taken[title].append(time.perf_counter() - started)
        for title, seconds in taken.items():
            times[title, (batch, length)] = 1000 * statistics.median(seconds)
    return times


if __name__ == "__main__":
    main()
