r"""Measures how fast models are, side by side, and how large and how good.

    python -m bert_pruning benchmark \
        --models=pytorch:runs/mrpc,runs/mrpc,exported/mrpc --plot=mrpc.png

Models are runs and other checkpoints, folders that `export` wrote, and, with a
program's name before the colon, checkpoints that PyTorch (Hugging Face
Transformers) or ONNX Runtime (`onnx:`) runs, where these are installed.
"""

import json

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.errors import UserError
from bert_pruning.outputs import cannot_write

FLAGS = flags.FLAGS


def define_flags():
    """Defines the flags of `benchmark`."""
    flags.DEFINE_list("models", [], "What is measured, commas between.")
    flags.DEFINE_list("batch_sizes", ["1", "8", "32"], "Examples at once.")
    flags.DEFINE_list("lengths", ["32", "64", "128"], "Tokens of each.")
    flags.DEFINE_bool(
        "with_tokenization", False, "Begin with texts, not with token ids."
    )
    flags.DEFINE_integer(
        "threads", None, "Of each program; left out, all cores.", lower_bound=1
    )
    flags.DEFINE_integer(
        "rounds", 40, "Batches of each kind that count.", lower_bound=4
    )
    flags.DEFINE_enum(
        "format", "markdown", ["markdown", "json"], "Of what is printed."
    )
    flags.DEFINE_string(
        "plot",
        None,
        "Draws quality against latency, at the first batch size and length, "
        "and against bytes into this .png, .svg or .pdf.",
    )


def main():
    """Measures by the flags; returns the exit status."""
    shared.require("models")
    batch_sizes = shared.positive_numbers("batch_sizes")
    lengths = shared.positive_numbers("lengths")
    shared.check_picture(".png", ".svg", ".pdf")

    from bert_pruning.delivery import benchmark
    from bert_pruning.delivery import latency
    from bert_pruning.delivery import runners

    if FLAGS.with_tokenization and min(lengths) < 3:
        raise UserError(
            "--with_tokenization needs --lengths of at least 3: a word, [CLS] "
            f"and [SEP]. Received: {min(lengths)}."
        )
    for name in FLAGS.models:
        runners.check_runnable(name)
        runners.check_length(name, max(lengths), FLAGS.with_tokenization)
    qualities = [benchmark.read_quality(name) for name in FLAGS.models]
    if FLAGS.plot and not any(qualities):
        raise UserError(
            "--plot draws quality, but none of the models has been scored: "
            "runs are when they are trained, exports with --data_dir."
        )
    settings = latency.make_settings(
        batch_sizes, lengths, FLAGS.with_tokenization
    )
    measured = latency.measure_latencies(
        FLAGS.models, settings, FLAGS.threads, FLAGS.rounds
    )
    rows = [
        benchmark.Row(*each) for each in zip(measured, qualities, strict=True)
    ]
    if FLAGS.format == "json":
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        print(benchmark.as_markdown(rows))
    if FLAGS.plot:
        try:
            others = benchmark.draw(rows, FLAGS.plot)
        except OSError as error:
            raise cannot_write(FLAGS.plot, error, "--plot") from error
        if others:
            shared.LOG.warning(
                "Not in %s, for they are not scored on one task with the "
                "first: %s",
                *(FLAGS.plot, ", ".join(others)),
            )
    return 0
