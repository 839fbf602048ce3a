"""Sentences augmented per second, against predicting one word at a time.

The peer does as TinyBERT's script: with PyTorch, a forward pass for each word,
gradients on, logits for every position; and for each word of several pieces all
vectors sorted by cosine, whether it was looked up before or not.

    pip install -e '.[peers]'
    python benchmarks/augmentation.py --task=CoLA --data_dir=glue \
        --init_checkpoint=MLM --glove=GLOVE --sentences=200

`--mixed_precision=bfloat16` lets this package, not the peer, compute in it.
"""

import argparse
import time

import numpy as np
import tf_keras as keras
import torch
import transformers

from bert_pruning.data.augmentation import Augmenter
from bert_pruning.data.reading import read_examples
from bert_pruning.data.tasks import get_task
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.data.word_vectors import WordVectors
from bert_pruning.data.word_vectors import read_word_vectors
from bert_pruning.modeling import bert
from bert_pruning.modeling import checkpoints
from bert_pruning.training.masked_lm import MaskedPredictor

CANDIDATES = 15


class OneByOne:
    """Predicts each masked sentence alone."""

    def __init__(self, path):
        self.model = transformers.BertForMaskedLM.from_pretrained(path).eval()

    def __call__(self, masked):
        found = []
        for each in masked:
            types = [0] * each.first_length
            types += [1] * (len(each.ids) - each.first_length)
            logits = self.model(
                torch.tensor([each.ids]),
                token_type_ids=torch.tensor([types]),
            ).logits
            best = logits[0, each.position].argsort(descending=True)
            found.append(best[:CANDIDATES].numpy())
        return np.array(found)


class SortingVectors(WordVectors):
    """Sorts all words for each one."""

    def neighbours(self, words, number):
        found = []
        for word in words:
            if word not in self._rows:
                found.append([])
                continue
            row = self._rows[word]
            cosines = self._units @ self._units[row]
            cosines[row] = -np.inf
            order = np.argsort(-cosines)[:number]
            found.append([self.words[i] for i in order])
        return found


class Forgetful(Augmenter):
    """Looks every word up again."""

    def candidates(self, texts):
        found = []
        for text in texts:
            self._neighbours.clear()
            found += super().candidates([text])
        return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--init_checkpoint", required=True)
    parser.add_argument("--glove", required=True)
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument(
        "--mixed_precision", default="float32", choices=["float32", "bfloat16"]
    )
    args = parser.parse_args()
    if args.mixed_precision != "float32":
        keras.mixed_precision.set_global_policy(f"mixed_{args.mixed_precision}")
    checkpoint = checkpoints.load_checkpoint(args.init_checkpoint)
    tokenizer = BertTokenizer(
        checkpoint.vocabulary,
        checkpoints.resolve_do_lower_case(checkpoint, None),
    )
    model = bert.build_masked_lm(checkpoint.config)
    bert.set_weights(model, checkpoint.weights, initialized=())
    examples = read_examples(get_task(args.task), args.data_dir, "train")
    texts = list(dict.fromkeys(examples.text_a))[: args.sentences]
    vectors = read_word_vectors(args.glove)
    sorting = SortingVectors.__new__(SortingVectors)
    sorting.__dict__.update(vars(vectors))
    found, rates = {}, {}
    for name, kind, predict, nearest in (
        (
            "bert_pruning",
            Augmenter,
            MaskedPredictor(model, CANDIDATES),
            vectors,
        ),
        ("one at a time", Forgetful, OneByOne(args.init_checkpoint), sorting),
    ):
        augmenter = kind(tokenizer, predict, nearest, num_candidates=CANDIDATES)
        augmenter.candidates(texts[:8])  # Traces and warms up.
        seconds = []
        for _ in range(3):
            generators = [
                np.random.default_rng([1, row]) for row in range(len(texts))
            ]
            started = time.perf_counter()
            found[name] = augmenter.augment(texts, generators)
            seconds.append(time.perf_counter() - started)
        rates[name] = len(texts) / np.median(seconds)
    ours, theirs = rates.values()
    equal = sum(a == b for a, b in zip(*found.values(), strict=True))
    print("| | sentences/s |\n|---|---:|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.1f} |")
    print(f"{ours / theirs:.1f} times as fast; {equal} of {len(texts)} alike")


if __name__ == "__main__":
    main()
