"""Fine-tunes with plain Hugging Face and PyTorch: the peer to compare with.

Nothing of `bert_pruning` is imported. The loop is what the Transformers GLUE
examples do: tokenise once, shuffle every epoch, AdamW with weight decay 0.01
off biases and LayerNorm, 10 % linear warm-up then linear decay, clip at 1.0.

    pip install -e '.[peers]'
    python benchmarks/huggingface_finetune.py --task=MRPC --data_dir=glue \
        --init_checkpoint=MINILM --seed=1 --output=hf.jsonl

One JSON object per call is appended to --output. With --max_steps the run
is only timed: the speed leaves out the first --skip_steps steps.
"""

import argparse
import json
import pathlib
import random
import time

import numpy as np
import torch
from scipy import stats
from sklearn import metrics
from transformers import AutoModelForSequenceClassification
from transformers import AutoTokenizer

# folder -> (text columns, label column, has a header row, regression)
TASKS = {
    "CoLA": ((3,), 1, False, False),
    "SST-2": ((0,), 1, True, False),
    "MRPC": ((3, 4), 0, True, False),
    "STS-B": ((7, 8), 9, True, True),
}


def read(path, task):
    text_columns, label_column, header, regression = TASKS[task]
    lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    rows = [line.rstrip("\r").split("\t") for line in lines[header:]]
    texts = [[row[column] for column in text_columns] for row in rows]
    labels = [float(row[label_column]) for row in rows]
    return texts, labels if regression else [int(label) for label in labels]


def encode(tokenizer, texts, max_length):
    columns = [list(column) for column in zip(*texts, strict=True)]
    return tokenizer(*columns, truncation=True, max_length=max_length)


def make_batch(tokenizer, encoded, labels, indices, padding, max_length):
    features = [
        {key: values[index] for key, values in encoded.items()}
        for index in indices
    ]
    batch = tokenizer.pad(
        features,
        padding="max_length" if padding == "max" else True,
        max_length=max_length,
        return_tensors="pt",
    )
    batch["labels"] = torch.tensor([labels[index] for index in indices])
    return batch


def evaluate(model, batches, labels, regression):
    model.eval()
    with torch.no_grad():
        logits = np.concatenate(
            [model(**batch).logits.numpy() for batch in batches]
        )
    model.train()
    if regression:
        predicted = logits[:, 0]
        return {
            "pearson": float(stats.pearsonr(predicted, labels)[0]),
            "spearman": float(stats.spearmanr(predicted, labels)[0]),
        }
    predicted = logits.argmax(-1)
    return {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "f1": float(metrics.f1_score(labels, predicted)),
        "mcc": float(metrics.matthews_corrcoef(labels, predicted)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True, choices=sorted(TASKS))
    parser.add_argument("--data_dir", required=True, type=pathlib.Path)
    parser.add_argument("--init_checkpoint", required=True)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--padding", choices=("dynamic", "max"), default="max")
    parser.add_argument("--max_steps", type=int, default=0)
    parser.add_argument("--skip_steps", type=int, default=3)
    args = parser.parse_args()

    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    regression = TASKS[args.task][3]
    tokenizer = AutoTokenizer.from_pretrained(args.init_checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(
        args.init_checkpoint, num_labels=1 if regression else 2
    )
    folder = args.data_dir / args.task
    texts, labels = read(folder / "train.tsv", args.task)
    train = encode(tokenizer, texts, args.max_length)
    dev_texts, dev_labels = read(folder / "dev.tsv", args.task)
    dev = encode(tokenizer, dev_texts, args.max_length)
    dev_batches = []
    for start in range(0, len(dev_labels), args.batch_size):
        indices = range(start, min(start + args.batch_size, len(dev_labels)))
        batch = make_batch(
            tokenizer, dev, dev_labels, indices, "dynamic", args.max_length
        )
        batch.pop("labels")
        dev_batches.append(batch)

    steps_per_epoch = len(labels) // args.batch_size
    total = steps_per_epoch * args.epochs
    warmup = int(0.1 * total)
    no_decay = ("bias", "LayerNorm.weight")
    groups = [
        {
            "params": [
                p
                for n, p in model.named_parameters()
                if n.endswith(no_decay) == excluded
            ],
            "weight_decay": 0.0 if excluded else 0.01,
        }
        for excluded in (False, True)
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            step / max(1, warmup)
            if step < warmup
            else (total - step) / max(1, total - warmup)
        ),
    )
    model.train()
    step, timed_examples, timed_seconds = 0, 0, 0.0
    started = time.time()
    for _ in range(args.epochs):
        order = np.random.permutation(len(labels))
        for batch_index in range(steps_per_epoch):
            step_started = time.time()
            indices = order[batch_index * args.batch_size :][: args.batch_size]
            batch = make_batch(
                tokenizer, train, labels, indices, args.padding, args.max_length
            )
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step > args.skip_steps:
                timed_examples += len(indices)
                timed_seconds += time.time() - step_started
            if step == args.max_steps:
                break
        if step == args.max_steps:
            break
    result = {
        "task": args.task,
        "seed": args.seed,
        "epochs": args.epochs,
        "learning_rate": args.learning_rate,
        "padding": args.padding,
        "steps": step,
        "train_seconds": round(time.time() - started, 1),
        "examples_per_second": round(timed_examples / timed_seconds, 2),
    }
    if not args.max_steps:
        result |= evaluate(model, dev_batches, dev_labels, regression)
    with args.output.open("a") as stream:
        stream.write(json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
