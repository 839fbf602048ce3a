"""Counts parameters, zeros and bytes of checkpoints and compares them.

    python -m bert_pruning report --init_checkpoint=runs/mrpc,runs/mrpc_x20

With --latency it times them too; --plot draws them.

Sparsity is given over the pruned matrices, over all encoder kernels and over
the whole model: 0.95 of BERT-base's 72 matrices is 0.737 of the model.
"""

import json
import os

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.errors import UserError
from bert_pruning.outputs import cannot_write

FLAGS = flags.FLAGS


def define_flags():
    """Defines the flags of `report`."""
    flags.DEFINE_list(
        "init_checkpoint", [], "The checkpoints, separated by commas."
    )
    flags.DEFINE_enum(
        "format",
        "text",
        ["text", "json", "markdown"],
        "text: every matrix; markdown: one row per checkpoint; json: all.",
    )
    flags.DEFINE_bool(
        "latency",
        False,
        "Also time each model, at --batch_sizes and --lengths.",
    )
    flags.DEFINE_list("batch_sizes", ["1", "32"], "For --latency.")
    flags.DEFINE_list("lengths", ["64", "128"], "Tokens, for --latency.")
    flags.DEFINE_string(
        "plot",
        None,
        "Draws heads and neurons by layer, quality against size and speed, "
        "and losses into this .png, .svg or .pdf; as .html with the tables.",
    )


def main():
    """Reports by the flags; returns the exit status."""
    shared.require("init_checkpoint")
    for name in ("batch_sizes", "lengths"):
        if shared.is_changed(name) and not FLAGS.latency:
            raise UserError(f"--{name} needs --latency.")
    batch_sizes = shared.positive_numbers("batch_sizes")
    lengths = shared.positive_numbers("lengths")
    shared.check_picture(".png", ".svg", ".pdf", ".html")

    from bert_pruning.delivery import latency
    from bert_pruning.delivery import plots
    from bert_pruning.delivery import report
    from bert_pruning.modeling import checkpoints
    from bert_pruning.training import run as runs

    loaded = [
        checkpoints.load_checkpoint(path) for path in FLAGS.init_checkpoint
    ]
    latencies = [()] * len(loaded)
    if FLAGS.latency:
        longest = max(lengths)
        for checkpoint in loaded:
            if longest > checkpoint.config.max_position_embeddings:
                raise UserError(
                    f"{checkpoint.path} reads at most "
                    f"{checkpoint.config.max_position_embeddings} tokens. "
                    f"Received: --lengths={longest}."
                )
        settings = latency.make_settings(batch_sizes, lengths)
        latencies = [
            each.latencies
            for each in latency.measure_latencies(
                FLAGS.init_checkpoint, settings
            )
        ]
    reports = []
    for checkpoint, measured in zip(loaded, latencies, strict=True):
        results = {}
        found = os.path.join(checkpoint.path, "eval_results.txt")
        done = os.path.join(checkpoint.path, "DONE")
        if os.path.exists(done) and os.path.exists(found):
            results = runs.read_results(found)
        reports.append(report.measure(checkpoint, results, measured))
    if FLAGS.format == "json":
        print(json.dumps([each.to_dict() for each in reports], indent=2))
    elif FLAGS.format == "markdown":
        print(report.as_markdown(reports))
    else:
        print(report.as_text(reports))
    if FLAGS.plot:
        try:
            plots.draw_reports(reports, FLAGS.plot)
        except OSError as error:
            raise cannot_write(FLAGS.plot, error, "--plot") from error
    return 0
