"""Fine-tuning accuracy here and in Hugging Face + PyTorch, side by side.

Same weights, hyper-parameters (those of huggingface_finetune.py), data and
number of seeds; the last checkpoint counts on both sides. A second call
resumes.

    pip install -e '.[peers]'
    python benchmarks/finetune.py --data_dir=glue --init_checkpoint=MINILM \
        --runs=CoLA:1,2,3 --runs=STS-B:1,2,3 --runs=MRPC:1,2,3 \
        --output_dir=benchmark_runs/finetune
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from bert_pruning.training.run import read_results

METRICS = {
    "CoLA": ("mcc",),
    "SST-2": ("accuracy",),
    "MRPC": ("accuracy", "f1"),
    "STS-B": ("pearson", "spearman"),
}
LEARNING_RATE = 5e-5
BATCH_SIZE = 32


def train_ours(args, task, seed):
    directory = args.output_dir / f"{task}_{seed}"
    if not (directory / "DONE").exists():
        subprocess.run(
            [
                *(sys.executable, "-m", "bert_pruning", "train"),
                f"--task_name={task}",
                f"--data_dir={args.data_dir}",
                f"--init_checkpoint={args.init_checkpoint}",
                f"--output_dir={directory}",
                f"--num_train_epochs={args.epochs}",
                f"--learning_rate={LEARNING_RATE}",
                f"--train_batch_size={BATCH_SIZE}",
                f"--seed={seed}",
                # At the end only: the peer does not choose a checkpoint.
                *("--keep=last", "--eval_steps=1000000"),
            ],
            check=True,
        )
    results = read_results(directory / "eval_results.txt")
    return {name: results[f"eval_{name}"] for name in METRICS[task]} | {
        "seconds": results["train_time"]
    }


def train_peer(args, task, seed):
    path = args.output_dir / "huggingface.jsonl"
    done = path.read_text().splitlines() if path.exists() else []
    for line in done:
        result = json.loads(line)
        if (result["task"], result["seed"]) == (task, seed):
            break
    else:
        subprocess.run(
            [
                sys.executable,
                str(
                    pathlib.Path(__file__).with_name("huggingface_finetune.py")
                ),
                f"--task={task}",
                f"--data_dir={args.data_dir}",
                f"--init_checkpoint={args.init_checkpoint}",
                f"--seed={seed}",
                f"--epochs={args.epochs}",
                f"--learning_rate={LEARNING_RATE}",
                f"--batch_size={BATCH_SIZE}",
                "--padding=dynamic",
                f"--output={path}",
            ],
            check=True,
        )
        result = json.loads(path.read_text().splitlines()[-1])
    return {name: result[name] for name in METRICS[task]} | {
        "seconds": result["train_seconds"]
    }


def describe(values):
    mean = f"{statistics.mean(values):.4f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.4f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--init_checkpoint", required=True)
    parser.add_argument("--output_dir", required=True, type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--runs", required=True, action="append", help="TASK:SEED,SEED,..."
    )
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for text in args.runs:
        task, _, seeds = text.partition(":")
        ours, peer = [], []
        for seed in map(int, seeds.split(",")):
            ours.append(train_ours(args, task, seed))
            peer.append(train_peer(args, task, seed))
        for name in METRICS[task]:
            a = [result[name] for result in ours]
            b = [result[name] for result in peer]
            difference = statistics.mean(a) - statistics.mean(b)
            rows.append(
                f"| {task} | {name} | {len(a)} | {describe(a)} | "
                f"{describe(b)} | {difference:+.4f} |"
            )
    print("| task | metric | seeds | here | Hugging Face | difference |")
    print("|---|---|---:|---:|---:|---:|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
