"""What scoring heads and neurons costs, against training without an optimizer.

Both read the same batches of a task's training set, the passes taking turns.

    python benchmarks/scoring.py --task=CoLA --data_dir=glue \
        --init_checkpoint=FINE_TUNED --steps=40
"""

import argparse
import statistics
import time

import tensorflow as tf

from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.data.pipeline import encode_examples
from bert_pruning.data.reading import read_examples
from bert_pruning.data.tasks import get_task
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.modeling import bert
from bert_pruning.modeling import checkpoints
from bert_pruning.modeling import layers
from bert_pruning.training import scoring
from bert_pruning.training.step import INPUT_NAMES
from bert_pruning.training.step import DistillationModel


class Some(TrainBatches):
    """The first batches of an epoch."""

    def __init__(self, steps, *args, **options):
        super().__init__(*args, **options)
        self.num_batches = min(steps, self.num_batches)

    def epoch(self, epoch, start=0):
        for number, batch in enumerate(super().epoch(epoch, start)):
            if number == self.num_batches:
                return
            yield batch


def make_backward(model):
    variables = model.student.trainable_variables
    totals = [tf.Variable(tf.zeros(v.shape)) for v in variables]

    @tf.function(reduce_retracing=True)
    def step(batch, index):
        seed = tf.stack([0, tf.cast(index, tf.int32)])
        with tf.GradientTape() as tape, layers.dropout_seed(seed):
            loss = model.losses_of(batch)["loss"]
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
        # What an optimizer would read at least.
        for total, gradient in zip(totals, gradients, strict=True):
            total.assign(tf.convert_to_tensor(gradient))

    def run(batches):
        names = (*INPUT_NAMES, "label")
        for index, batch in enumerate(batches.epoch(0)):
            tensors = {name: tf.constant(batch[name]) for name in names}
            step(tensors, tf.constant(index, tf.int64))

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--init_checkpoint", required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    task = get_task(args.task)
    checkpoint = checkpoints.load_checkpoint(args.init_checkpoint)
    tokenizer = BertTokenizer(
        checkpoint.vocabulary,
        checkpoints.resolve_do_lower_case(checkpoint, None),
    )
    examples = read_examples(task, args.data_dir, "train")
    dataset = encode_examples(examples, tokenizer, 128)
    batches = Some(args.steps, dataset, 32, seed=1)
    student = bert.build_model(checkpoint.config, task.num_outputs)
    bert.set_weights(student, checkpoint.weights)
    model = DistillationModel(student)
    backward = make_backward(model)
    passes = {
        "forward and backward of all weights": lambda: backward(batches),
        **{
            f"score --method={name}": lambda score=score: score(
                model, checkpoint.config, batches
            )
            for name, score in scoring.METHODS.items()
        },
    }
    seconds = {name: [] for name in passes}
    for number in range(args.rounds + 1):
        for name, run in passes.items():
            started = time.perf_counter()
            run()
            # The first round traces; later ones of `score` trace anew, too.
            if number:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    base = next(iter(medians.values()))
    print(f"{batches.num_batches} batches of 32, {args.task}")
    print("| pass | seconds | ratio |\n|---|---:|---:|")
    for name, value in medians.items():
        print(f"| {name} | {value:.1f} | {value / base:.2f} |")


if __name__ == "__main__":
    main()
