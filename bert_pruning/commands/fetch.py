r"""`fetch`: downloads official checkpoints, GLUE and the demonstration.

    python -m bert_pruning fetch --output_dir=datasets \
        --what=glue,2018_10_18/uncased_L-12_H-768_A-12
"""

from functools import partial

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.data.demo import fetch_demo
from bert_pruning.data.fetch import CHECKPOINT_URL
from bert_pruning.data.fetch import GLUE
from bert_pruning.data.fetch import GLUE_URL
from bert_pruning.data.fetch import fetch_checkpoint
from bert_pruning.data.fetch import fetch_glue
from bert_pruning.data.fetch import find_checkpoint

FLAGS = flags.FLAGS


def define_flags():
    """Defines the flags of `fetch`."""
    flags.DEFINE_list(
        "what",
        [],
        "What to fetch, separated by commas: 'demo'; 'glue' for all its tasks, "
        f"or some of {', '.join(GLUE)}; official checkpoints as DATE/NAME, for "
        "example 2018_10_18/uncased_L-12_H-768_A-12.",
    )
    flags.DEFINE_string("output_dir", "datasets", "Folder to put it in.")
    flags.DEFINE_string(
        "checkpoint_url", CHECKPOINT_URL, "Where the official checkpoints are."
    )
    flags.DEFINE_string("glue_url", GLUE_URL, "Where GLUE is.")


def main():
    """Fetches by the flags; returns the exit status."""
    shared.require("what")
    fetch(FLAGS.what, FLAGS.output_dir, FLAGS.checkpoint_url, FLAGS.glue_url)
    return 0


def fetch(
    what: list[str],
    output_dir: str,
    checkpoint_url: str = CHECKPOINT_URL,
    glue_url: str = GLUE_URL,
) -> None:
    """Fetches several things and prints where each one is.

    Args:
        what: list of str. See the flag.
        output_dir: str. The folder to put them in.
        checkpoint_url: str. See `fetch_checkpoint`.
        glue_url: str. See `fetch_glue`.

    Raises:
        UserError: a name is unknown (before the first download), or a
            download fails.
    """
    tasks = {name.lower(): name for name in GLUE}
    glue = partial(fetch_glue, output_dir=output_dir, base_url=glue_url)
    official = partial(
        fetch_checkpoint, output_dir=output_dir, base_url=checkpoint_url
    )
    steps = []
    for name in what:
        if name.lower() == "demo":
            steps.append(partial(fetch_demo, output_dir))
        elif name.lower() == "glue":
            steps += [partial(glue, task) for task in GLUE]
        elif name.lower() in tasks:
            steps.append(partial(glue, tasks[name.lower()]))
        else:
            steps.append(partial(official, find_checkpoint(name)))
    for step in steps:
        print(step())
