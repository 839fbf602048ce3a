"""What TensorBoard's events tell of a training."""

import os

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

_TAG = "train/loss"


def read_losses(path):
    """Reads the losses of a run.

    Args:
        path: str. The run.

    Returns:
        The steps and the losses, two lists, or None if nothing was kept.
    """
    folder = os.path.join(path, "events")
    if not os.path.isdir(folder):
        return None
    events = event_accumulator.EventAccumulator(
        folder, size_guidance={event_accumulator.TENSORS: 0}
    ).Reload()
    if _TAG not in events.Tags()["tensors"]:
        return None
    found = [
        (event.step, float(tensor_util.make_ndarray(event.tensor_proto)))
        for event in events.Tensors(_TAG)
    ]
    # A run that was resumed wrote some steps twice.
    steps, losses = zip(*sorted(dict(found).items()), strict=True)
    return list(steps), list(losses)
