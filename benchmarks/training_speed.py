"""Examples per second of fine-tuning, and what a teacher and pruning cost.

Ours pads each batch to its longest example, out of buckets of similar
lengths. Hugging Face + PyTorch runs in a process of its own, once padding to
the maximum (the default of its GLUE script) and once to each batch's longest.
Ours and the peer alternate, so that both see the same machine.

    pip install -e '.[peers]'
    python benchmarks/training_speed.py --task=MRPC --data_dir=glue \
        --init_checkpoint=MINILM
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

from bert_pruning.compression import pruning
from bert_pruning.compression import sparsity
from bert_pruning.data import pipeline
from bert_pruning.data import tasks
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.modeling import bert
from bert_pruning.modeling import checkpoints
from bert_pruning.training import distillation
from bert_pruning.training import optimization
from bert_pruning.training import step


def build_step(checkpoint, task, num_steps, distils):
    """Returns a function of a batch that does one optimizer step."""

    def restored():
        model = bert.build_model(checkpoint.config, task.num_outputs)
        bert.set_weights(model, checkpoint.weights, checkpoint.new_layers)
        return model

    student, teacher, matches, pruner = restored(), None, (), None
    if distils:
        teacher = restored()
        matches = distillation.build_matches(
            ("logits", "hidden", "attention"),
            checkpoint.config,
            checkpoint.config,
        )
        schedule = sparsity.Sparsity(final=0.8, end_step=num_steps)
        student = pruning.wrap(student, schedule)
        pruner = pruning.Pruner(student, schedule)
    model = step.DistillationModel(student, teacher, matches, pruner=pruner)
    model.compile(optimization.build_optimizer(student, "adamw", 5e-5))
    function = tf.function(model.train_step, reduce_retracing=True)
    done = 0

    def run(batch):
        nonlocal done
        losses = function({k: tf.constant(v) for k, v in batch.items()})
        done += 1
        if pruner is not None:
            pruner.update(done)
        return losses["loss"]

    return run


def time_steps(run, batches, steps):
    """Returns the examples per second, those of making the batches too."""
    examples = 0
    started = time.perf_counter()
    for batch in itertools.islice(batches.epoch(0), steps):
        loss = run(batch)
        examples += len(batch["label"])
    float(loss)  # A GPU may still be at work.
    return examples / (time.perf_counter() - started)


def time_peer(args, padding):
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder, "result.jsonl")
        subprocess.run(
            [
                sys.executable,
                str(
                    pathlib.Path(__file__).with_name("huggingface_finetune.py")
                ),
                f"--task={args.task}",
                f"--data_dir={args.data_dir}",
                f"--init_checkpoint={args.init_checkpoint}",
                f"--max_steps={args.steps}",
                f"--padding={padding}",
                f"--output={output}",
            ],
            check=True,
            capture_output=True,
        )
        return json.loads(output.read_text())["examples_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="MRPC")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--init_checkpoint", required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    checkpoint = checkpoints.load_checkpoint(args.init_checkpoint)
    task = tasks.get_task(args.task)
    examples = tasks.read_examples(task, args.data_dir, "train")
    tokenizer = BertTokenizer(checkpoint.vocabulary, checkpoint.do_lower_case)
    dataset = pipeline.encode_examples(examples, tokenizer, 128)
    batches = pipeline.TrainBatches(dataset, 32, seed=1)
    steps = args.steps * (args.rounds + 1)
    plain = build_step(checkpoint, task, steps, distils=False)
    pruning = build_step(checkpoint, task, steps, distils=True)
    for run in (plain, pruning):  # Traces, and warms the caches up.
        time_steps(run, batches, 5)

    figures = {"plain": [], "pruning": [], "max": [], "dynamic": []}
    for _ in range(args.rounds):
        figures["plain"].append(time_steps(plain, batches, args.steps))
        figures["pruning"].append(time_steps(pruning, batches, args.steps))
        figures["max"].append(time_peer(args, "max"))
        figures["dynamic"].append(time_peer(args, "dynamic"))
    rate = {name: statistics.median(v) for name, v in figures.items()}
    print(f"{args.task}, batches of 32, examples per second:")
    print(f"  bert_pruning, fine-tuning            {rate['plain']:8.1f}")
    print(f"  bert_pruning, pruning + distilling   {rate['pruning']:8.1f}")
    print(f"  Hugging Face, padded to 128          {rate['max']:8.1f}")
    print(f"  Hugging Face, padded per batch       {rate['dynamic']:8.1f}")
    print(f"against padding to 128: x{rate['plain'] / rate['max']:.2f}")
    print(f"against padding per batch: x{rate['plain'] / rate['dynamic']:.2f}")
    print(
        "step time, pruning + distilling over fine-tuning: "
        f"x{rate['plain'] / rate['pruning']:.2f}"
    )


if __name__ == "__main__":
    main()
