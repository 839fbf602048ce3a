"""The front door: `python -m bert_pruning COMMAND --flag=value ...`.

    train     fine-tunes, distils and prunes
    evaluate  scores a checkpoint on a labelled split
    predict   writes GLUE submission files
    score     tells how much each head, neuron and layer matters
    shrink    cuts a model down to what matters most
    tickets   draws winning, losing and random tickets from scores
    augment   makes more training data by replacing words
    prepare   makes pre-training examples of text
    recipe    runs a chain of commands
    phases    compares trained tickets with the whole model
    report    counts parameters, zeros and bytes
    export    writes a model for other programs to run
    benchmark measures latency beside size and quality
    fetch     downloads official checkpoints and data sets
    run_all   trains every task at every learning rate, then prunes

`python -m bert_pruning COMMAND --help` lists a command's flags; every command
takes `--flagfile=FILE`.
"""

import importlib
import logging
import os
import sys

from absl import app
from absl import flags
from absl import logging as absl_logging

from bert_pruning.errors import UserError

_HELP = {
    f"{dashes}{name}"
    for dashes in ("-", "--")
    for name in ("h", "help", "helpshort", "helpfull")
}

COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "score",
    "shrink",
    "tickets",
    "augment",
    "prepare",
    "recipe",
    "phases",
    "report",
    "export",
    "benchmark",
    "fetch",
    "run_all",
)


def main(argv=None):
    """Runs the command named first in `argv`; returns the exit status."""
    argv = list(sys.argv if argv is None else argv)
    if len(argv) < 2 or argv[1] in ("--help", "-h", "help"):
        print(__doc__)
        return 0 if len(argv) > 1 else 2
    name = argv[1]
    if name not in COMMANDS:
        print(
            f"Unknown command {name!r}. Commands: {', '.join(COMMANDS)}.",
            file=sys.stderr,
        )
        return 2
    # Its INFO lines would drown the progress bar.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    command = importlib.import_module(f"bert_pruning.commands.{name}")
    before = set(flags.FLAGS)
    command.define_flags()
    if _HELP & set(argv[2:]):
        print(command.__doc__)
        print(_describe(sorted(set(flags.FLAGS) - before)))
        return 0
    app.run(
        lambda rest: _run(command, rest[1:]),
        argv=[f"bert_pruning {name}", *argv[2:]],
        flags_parser=_parse,
    )
    return 0


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        text = str(error).removeprefix("ERROR:: ")
        print(f"Error: {text}\nThe flags: {argv[0]} --help", file=sys.stderr)
        sys.exit(2)


def _run(command, surplus):
    # Our own messages only: absl's INFO level lets TensorFlow's through too.
    absl_logging.set_verbosity(absl_logging.WARNING)
    # Its warnings look like ours, without time and place.
    absl_logging.get_absl_handler().setFormatter(logging.Formatter())
    log = logging.getLogger("bert_pruning")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(logging.StreamHandler())
    try:
        if surplus:
            raise UserError(
                "Settings are given as --flag=value. Received: "
                f"{' '.join(surplus)}."
            )
        sys.exit(command.main())
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        print(f"Error: {_out_of_memory()}", file=sys.stderr)
        sys.exit(2)


def _is_out_of_memory(error):
    # Only a command that has imported TensorFlow can have raised it.
    tf = sys.modules.get("tensorflow")
    if tf is None or not isinstance(error, tf.errors.ResourceExhaustedError):
        return False
    return "No space left" not in str(error)


def _out_of_memory():
    advice = {
        "train_batch_size": "lower",
        "gradient_accumulation_steps": "raise",
        "eval_batch_size": "lower",
    }
    return "The device is out of memory. One of these may help: " + ", ".join(
        f"{verb} --{name}={flags.FLAGS[name].value}"
        for name, verb in advice.items()
        if name in flags.FLAGS
    )


def _describe(names):
    lines = []
    for name in names:
        flag = flags.FLAGS[name]
        default = "" if flag.default is None else f" [{_default(flag)}]"
        lines.append(f"  --{name}{default}\n      {flag.help}")
    return "\n".join(lines)


def _default(flag):
    values = flag.default if isinstance(flag.default, list) else [flag.default]
    return ",".join(
        str(value).lower() if isinstance(value, bool) else str(value)
        for value in values
    )


if __name__ == "__main__":
    sys.exit(main())
