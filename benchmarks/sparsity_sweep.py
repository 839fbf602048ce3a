"""Pruning with and without a teacher, and one-shot, at several sparsities.

Three methods of equal steps and batches, all from the weights of the same
fine-tuned model: prune while distilling from it, prune gradually without a
teacher, and one-shot magnitude pruning followed by fine-tuning. Each is given
every learning rate, and its best counts. Prints a Markdown table and draws the
plot. A second call resumes.

    python benchmarks/sparsity_sweep.py --task=STS-B --data_dir=glue \
        --init_checkpoint=MINILM --epochs=3 --learning_rates=2e-4,6e-4 \
        --output_dir=benchmark_runs/sweep --plot=benchmarks/sparsity.png
"""

import argparse
import pathlib
import subprocess
import sys

import matplotlib.figure

from bert_pruning.data.tasks import get_task
from bert_pruning.training.run import read_results

METHODS = {
    "distilled": "prune while distilling",
    "gradual": "prune without a teacher",
    "one_shot": "one-shot, then fine-tune",
}


def train(args, directory, *flags):
    if not (directory / "DONE").exists():
        subprocess.run(
            [
                *(sys.executable, "-m", "bert_pruning", "train"),
                f"--task_name={args.task}",
                f"--data_dir={args.data_dir}",
                f"--output_dir={directory}",
                f"--seed={args.seed}",
                *flags,
            ],
            check=True,
        )
    return read_results(directory / "eval_results.txt")


def method_flags(method, sparsity, teacher):
    flags = [
        f"--init_checkpoint={teacher}",
        *("--pruning=magnitude", f"--sparsity={sparsity}"),
    ]
    if method == "one_shot":
        return [*flags, f"--initial_sparsity={sparsity}"]
    flags.append("--pruning_end=0.7")
    if method == "distilled":
        flags += [
            f"--teacher_checkpoint={teacher}",
            "--distill=logits,hidden,attention",
        ]
    return flags


def draw(path, task, metric, dense, table):
    figure = matplotlib.figure.Figure(figsize=(6, 4), dpi=120)
    axes = figure.add_subplot()
    axes.axhline(dense, color="grey", linestyle=":", label="dense teacher")
    for method, title in METHODS.items():
        points = [(s, v) for (m, s), v in table.items() if m == method]
        axes.plot(*zip(*points, strict=True), marker="o", label=title)
    axes.set_xlabel("sparsity of the encoder's kernels")
    axes.set_ylabel(f"{task} {metric.removeprefix('eval_')} (dev)")
    axes.set_title(f"{task}: pruning MiniLM-L6, equal steps")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--init_checkpoint", required=True)
    parser.add_argument("--output_dir", required=True, type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning_rates", default="2e-4,6e-4")
    parser.add_argument("--teacher_epochs", type=float, default=3)
    parser.add_argument("--sparsities", default="0.5,0.8,0.9,0.95")
    args = parser.parse_args()
    root = args.output_dir / args.task
    metric = get_task(args.task).primary_metric
    teacher = root / "teacher"
    dense = train(
        args,
        teacher,
        f"--init_checkpoint={args.init_checkpoint}",
        f"--num_train_epochs={args.teacher_epochs}",
    )
    sparsities = [float(value) for value in args.sparsities.split(",")]
    table, best = {}, {}
    for sparsity in sparsities:
        for method in METHODS:
            found = {}
            for rate in args.learning_rates.split(","):
                name = f"{method}_{sparsity}_lr_{rate}"
                results = train(
                    args,
                    root / name,
                    f"--num_train_epochs={args.epochs}",
                    f"--learning_rate={rate}",
                    *method_flags(method, sparsity, teacher),
                )
                found[rate] = results[metric]
            best[method, sparsity] = max(found, key=found.get)
            table[method, sparsity] = max(found.values())
    print(f"{args.task}, {metric}; dense teacher {dense[metric]:.4f}")
    print("| sparsity | " + " | ".join(METHODS.values()) + " |")
    print("|---|" + "---:|" * len(METHODS))
    for sparsity in sparsities:
        values = [
            f"{table[method, sparsity]:.4f} ({best[method, sparsity]})"
            for method in METHODS
        ]
        print(f"| {sparsity} | " + " | ".join(values) + " |")
    if args.plot:
        draw(args.plot, args.task, metric, dense[metric], table)


if __name__ == "__main__":
    main()
