"""What a ticket costs in a step of several tasks.

Three contenders take turns on the same batches: a ticket for each task, no
tickets, and, for the last task alone, ordinary fine-tuning.

    python benchmarks/multitask_step.py --data_dir=glue \
        --init_checkpoint=MINILM --tasks=CoLA,MRPC,STS-B --level=20
"""

import argparse
import itertools
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from bert_pruning.compression import tickets
from bert_pruning.data import pipeline
from bert_pruning.data import tasks
from bert_pruning.data.mixture import Mixture
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.modeling import bert
from bert_pruning.modeling import checkpoints
from bert_pruning.training import multitask
from bert_pruning.training import optimization
from bert_pruning.training.step import DistillationModel
from bert_pruning.training.stepping import Stepper


def compiled(model, optimizer):
    model.compile(optimization.build_optimizer(model.student, optimizer, 5e-5))
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--init_checkpoint", required=True)
    parser.add_argument("--tasks", default="CoLA,MRPC,STS-B")
    parser.add_argument("--level", default="20")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    checkpoint = checkpoints.load_checkpoint(args.init_checkpoint)
    config = checkpoint.config
    tokenizer = BertTokenizer(checkpoint.vocabulary, checkpoint.do_lower_case)
    all_tasks = [tasks.get_task(name) for name in args.tasks.split(",")]
    mixture = Mixture(
        [
            pipeline.TrainBatches(
                pipeline.encode_examples(
                    tasks.read_examples(task, args.data_dir, "train"),
                    tokenizer,
                    128,
                ),
                32,
                seed=1,
            )
            for task in all_tasks
        ],
        seed=1,
    )
    level = tickets.Level.parse(args.level, config)
    outputs = {task.name: task.num_outputs for task in all_tasks}

    def shared(drawn):
        student = bert.build_model(config, outputs)
        new = [f"classifier_{name}" for name in outputs]
        bert.set_weights(
            student, checkpoint.weights, [*checkpoint.new_layers, *new]
        )
        gates = multitask.Tickets(config, drawn)
        return compiled(
            multitask.MultiTaskModel(student, gates), args.optimizer
        )

    student = bert.build_model(config, all_tasks[-1].num_outputs)
    bert.set_weights(student, checkpoint.weights, checkpoint.new_layers)
    one = mixture.tasks[-1]
    contenders = {
        "tickets": shared(
            {
                name: tickets.draw_ticket(config, level, "random", seed=i)
                for i, name in enumerate(outputs)
            }
        ),
        "no tickets": shared(dict.fromkeys(outputs)),
        "one task": compiled(DistillationModel(student), args.optimizer),
    }
    steppers = {
        name: Stepper(
            model, one.label_dtype if name == "one task" else np.float32
        )
        for name, model in contenders.items()
    }

    def run(name, epoch):
        batches = one if name == "one task" else mixture
        taken, examples, tokens = 0.0, 0, 0
        for batch in itertools.islice(batches.epoch(epoch), args.steps):
            started = time.perf_counter()
            float(steppers[name].run(batch)["loss"])
            taken += time.perf_counter() - started
            examples += len(batch["label"])
            tokens += batch["input_mask"].size
        return taken / args.steps, taken / tokens

    for name in contenders:
        run(name, 0)
    found = {name: [] for name in contenders}
    for number in range(args.rounds):
        for name in contenders:
            found[name].append(run(name, number))
    print(f"{args.tasks}; each ticket leaves {level} out; {args.optimizer}")
    seconds = {
        name: statistics.median(each[0] for each in pairs)
        for name, pairs in found.items()
    }
    for name, value in seconds.items():
        per_token = statistics.median(each[1] for each in found[name])
        print(
            f"  {name:10} {1e3 * value:8.1f} ms a step, "
            f"{1e6 * per_token:6.1f} us a token"
        )
    ratio = seconds["tickets"] / seconds["no tickets"]
    print(f"a step with tickets takes x{ratio:.3f} of one without")


if __name__ == "__main__":
    main()
