"""Trains a masked-language-model head for a BERT that has none.

`augment` needs one. The encoder learns too. Texts are plain files, a paragraph
or sentence a line; the last twentieth of the lines is held out.

    python benchmarks/masked_lm.py --init_checkpoint=MINILM \
        --texts='corpus/*.txt' --epochs=3 --output_dir=benchmark_runs/mlm
"""

import argparse
import glob
import math
import pathlib

import numpy as np
import tensorflow as tf
import tqdm

from bert_pruning.data.pipeline import EncodedDataset
from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.data.pipeline import eval_batches
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.modeling import bert
from bert_pruning.modeling import checkpoints
from bert_pruning.training.optimization import WarmupSchedule
from bert_pruning.training.optimization import build_optimizer

LENGTH = 128
INPUTS = ("input_word_ids", "input_mask", "input_type_ids")


def read_lines(patterns):
    lines = []
    for pattern in patterns.split(","):
        for path in sorted(glob.glob(pattern)):
            text = pathlib.Path(path).read_text(encoding="utf-8")
            lines += [line.strip() for line in text.split("\n")]
    return [line for line in lines if line]


def encode(lines, tokenizer):
    """Cuts every line into windows of at most LENGTH tokens."""
    windows = []
    for row in tokenizer.tokenize(lines).to_list():
        for start in range(0, len(row), LENGTH - 2):
            piece = row[start : start + LENGTH - 2]
            windows.append([tokenizer.cls_id, *piece, tokenizer.sep_id])
    lengths = np.array([len(window) for window in windows])
    return EncodedDataset(
        np.concatenate(windows).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        lengths.astype(np.int32),
        max_seq_length=LENGTH,
    )


def mask_batch(batch, tokenizer, generator):
    """Masks 15 % of the tokens: 80 % [MASK], 10 % another, 10 % as it is."""
    ids, mask = batch["input_word_ids"].copy(), batch["input_mask"]
    special = (ids == tokenizer.cls_id) | (ids == tokenizer.sep_id)
    usable = (mask == 1) & ~special
    wanted = np.maximum(1, np.round(0.15 * usable.sum(1)).astype(int))
    chance = np.where(usable, generator.random(ids.shape), 2.0)
    order = np.argsort(chance, axis=1)[:, : wanted.max()]
    weights = np.arange(wanted.max()) < wanted[:, np.newaxis]
    labels = np.take_along_axis(ids, order, 1)
    draw = generator.random(order.shape)
    others = generator.integers(0, len(tokenizer.vocabulary), order.shape)
    new = np.where(draw < 0.8, tokenizer.mask_id, labels)
    new = np.where(draw >= 0.9, others, new)
    np.put_along_axis(ids, order, np.where(weights, new, labels), 1)
    arrays = [ids, mask, batch["input_type_ids"], order, labels, weights]
    return [tf.constant(array.astype(np.int32)) for array in arrays]


def losses_of(model, ids, mask, types, positions, labels, weights, training):
    logits = model([ids, mask, types, positions], training=training)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels, logits["mlm_logits"]
    )
    weights = tf.cast(weights, tf.float32)
    hits = tf.argmax(logits["mlm_logits"], -1, tf.int32) == labels
    hits = tf.reduce_sum(tf.cast(hits, tf.float32) * weights)
    return tf.reduce_sum(losses * weights), hits, tf.reduce_sum(weights)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init_checkpoint", required=True)
    parser.add_argument("--texts", required=True, help="patterns, by commas")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    generator = np.random.default_rng(args.seed)
    checkpoint = checkpoints.load_checkpoint(args.init_checkpoint)
    tokenizer = BertTokenizer(
        checkpoint.vocabulary,
        checkpoints.resolve_do_lower_case(checkpoint, None),
    )
    lines = read_lines(args.texts)
    lines = [lines[i] for i in generator.permutation(len(lines))]
    held_out = max(1, len(lines) // 20)
    dev, train = (
        encode(lines[:held_out], tokenizer),
        encode(lines[held_out:], tokenizer),
    )
    model = bert.build_masked_lm(checkpoint.config)
    head = ("mlm_transform", "mlm_norm", "mlm_output")
    bert.set_weights(model, checkpoint.weights, initialized=head)
    batches = TrainBatches(train, args.batch_size, args.seed)
    num_steps = round(batches.num_batches * args.epochs)
    schedule = WarmupSchedule(args.learning_rate, num_steps, num_steps // 10)
    optimizer = build_optimizer(model, "adamw", schedule)

    @tf.function(reduce_retracing=True)
    def step(inputs):
        with tf.GradientTape() as tape:
            loss, _, count = losses_of(model, *inputs, training=True)
            loss /= count
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    @tf.function(reduce_retracing=True)
    def test(inputs):
        return losses_of(model, *inputs, training=False)

    def evaluate():
        fixed = np.random.default_rng(0)
        totals = np.zeros(3)
        for batch in eval_batches(dev, 64):
            totals += np.array(test(mask_batch(batch, tokenizer, fixed)))
        loss, hits, count = totals
        perplexity = math.exp(loss / count)
        return f"perplexity {perplexity:.2f}, accuracy {hits / count:.4f}"

    print(f"{len(train)} windows, {num_steps} steps; held out {len(dev)}")
    print(f"before: {evaluate()}", flush=True)
    done, epoch = 0, 0
    with tqdm.tqdm(total=num_steps, mininterval=30) as bar:
        while done < num_steps:
            for batch in batches.epoch(epoch):
                loss = step(mask_batch(batch, tokenizer, generator))
                done += 1
                bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
                bar.update()
                if done == num_steps:
                    break
            epoch += 1
    print(f"after: {evaluate()}", flush=True)
    weights = {**checkpoint.weights, **bert.get_weights(model)}
    checkpoints.save_huggingface(
        args.output_dir,
        checkpoint.config,
        weights,
        checkpoint.vocabulary,
        tokenizer.do_lower_case,
    )


if __name__ == "__main__":
    main()
