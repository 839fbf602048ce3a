"""Tiny tasks and checkpoints on disk, and commands run on them."""

import contextlib
import csv
import importlib
import io
import multiprocessing
import sys
import traceback

import numpy as np
import tiny_bert
from absl import flags

from bert_pruning import __main__ as front_door
from bert_pruning.modeling.checkpoints import save_huggingface

GOOD = ("good", "fine", "great", "lovely")
BAD = ("bad", "poor", "awful", "ugly")
OTHER = ("a", "film", "plot", "was", "it", "and", "the", "very", "end", "##s")
VOCABULARY = tiny_bert.SPECIAL_TOKENS + GOOD + BAD + OTHER

# What a training needs beside its data and checkpoints, as small as can be.
QUICK = (
    *("--train_batch_size=4", "--max_seq_length=16", "--learning_rate=1e-2"),
    *("--max_steps=4", "--eval_steps=2", "--log_steps=1"),
)


def tiny_config(**changes):
    """Returns the shape of a BERT of one layer for `VOCABULARY`."""
    values = {"num_layers": 1, "hidden_size": 16, "intermediate_size": 32}
    values["vocab_size"] = len(VOCABULARY)
    return tiny_bert.tiny_config(**{**values, **changes})


def write_checkpoint(directory, task=None, seed=0, vocabulary=None, **changes):
    """Writes a BERT with random weights; returns its path.

    Args:
        directory: path.
        task: dict or None. Its classifier's task; None for no classifier.
        seed: int.
        vocabulary: sequence of str or None.
        **changes: fields of the configuration.
    """
    vocabulary = vocabulary or VOCABULARY
    config = tiny_config(**{"vocab_size": len(vocabulary), **changes})
    outputs = (len(task["labels"]) or 1) if task else None
    weights = tiny_bert.random_weights(config, seed, outputs)
    save_huggingface(directory, config, weights, vocabulary, True, task)
    return str(directory)


def sentences(count, seed=0):
    """Returns texts and their labels: 1 with a good word, 0 with a bad one."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    texts = []
    for label in labels:
        words = list(random.choice(OTHER[:-1], random.integers(1, 8)))
        words.append(random.choice((BAD, GOOD)[label]))
        texts.append(" ".join(random.permutation(words)))
    return texts, labels


def write_sst2(data_dir, train=24, dev=12, test=6):
    """Writes SST-2's files with made-up sentences; returns the folder."""
    folder = data_dir / "SST-2"
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate({"train": train, "dev": dev}.items()):
        texts, labels = sentences(count, seed)
        rows = zip(texts, labels, strict=True)
        write_table(folder / f"{split}.tsv", ["sentence", "label"], rows)
    rows = enumerate(sentences(test, seed=2)[0])
    write_table(folder / "test.tsv", ["index", "sentence"], rows)
    return str(data_dir)


def write_table(path, header, rows):
    """Writes a TSV file."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([header, *rows])


def run_command(*arguments):
    """Runs a command of the command line in this process.

    Returns:
        Its exit status, standard output and standard error.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = _run(arguments)
    return status, out.getvalue(), err.getvalue()


def start_command(log, *arguments, devices=1, eagerly=False):
    """Starts a command in a process of its own, to be killed.

    The processes are forked from one that has imported everything, because
    importing takes longer than training.

    Args:
        log: path of a file for what it prints.
        *arguments: the command and its flags.
        devices: int. Into how many the CPU is divided.
        eagerly: bool. Whether nothing is traced.

    Returns:
        A started `multiprocessing.Process`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tiny_runs", "bert_pruning.commands.assembly"]
    )
    process = context.Process(
        target=_run_and_exit, args=(str(log), arguments, devices, eagerly)
    )
    process.start()
    return process


def _run(arguments):
    before = set(flags.FLAGS)
    try:
        return front_door.main(["bert_pruning", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        keras = importlib.import_module("tf_keras")
        keras.mixed_precision.set_global_policy("float32")


def _run_and_exit(log, arguments, devices, eagerly):
    tf = importlib.import_module("tensorflow")
    tf.config.run_functions_eagerly(eagerly)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * devices,
    )
    with open(log, "a", encoding="utf-8") as file:
        sys.stdout = sys.stderr = file
        try:
            status = _run(arguments)
        except BaseException:
            traceback.print_exc()
            status = 1
    sys.exit(status)
