"""The flags of one command at a time: absl keeps them for the whole process."""

import contextlib
import importlib

from absl import flags

FLAGS = flags.FLAGS


@contextlib.contextmanager
def defined_flags(command):
    """Defines the flags of a command, unparsed, and takes them back.

    Args:
        command: str. Such as "train".
    """
    _remove()
    module = importlib.import_module(f"bert_pruning.commands.{command}")
    module.define_flags()
    try:
        yield FLAGS
    finally:
        _remove()


def _remove():
    for module, found in list(FLAGS.flags_by_module_dict().items()):
        if module.startswith("bert_pruning."):
            for flag in list(found):
                delattr(FLAGS, flag.name)
