"""What TensorBoard shows of a run: scalars, flags, sparsity, HParams."""

import contextlib
import io

import matplotlib.figure
import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from bert_pruning.compression import costs
from bert_pruning.errors import UserError


class Summaries:
    """Writes a run's TensorBoard events.

    Args:
        directory: str. The run's `events/`.
        flags: str. The command's flags as a flagfile's text, shown as text.
        hyperparameters: dict from name to value, for the HParams dashboard.

    Raises:
        UserError: if the events cannot be written; from every method.
    """

    def __init__(self, directory, flags="", hyperparameters=None):
        self._directory = directory
        with self._writing():
            self._writer = tf.summary.create_file_writer(str(directory))
        with self._writing(step=0):
            tf.summary.text("flags", f"```\n{flags}\n```")
            if hyperparameters:
                hparams.hparams(hyperparameters, trial_id=str(directory))

    def scalars(self, values, step):
        """Writes a dict of scalars, tag to value, at one step."""
        with self._writing(step):
            for tag, value in values.items():
                tf.summary.scalar(tag, value)

    def sparsity(self, counts, target, step):
        """Writes the sparsity in all and per matrix, and its heat map.

        Args:
            counts: dict from layer name to `costs.Count`.
            target: float. The scheduled sparsity.
            step: int.
        """
        overall = sum(counts.values(), costs.Count(0, 0))
        scalars = {"sparsity/total": overall.sparsity}
        scalars["sparsity/target"] = target
        for name, count in counts.items():
            scalars[f"sparsity_per_matrix/{name}"] = count.sparsity
        self.scalars(scalars, step)
        with self._writing(step):
            tf.summary.image(
                "sparsity_per_matrix", heat_map(counts)[np.newaxis]
            )

    def flush(self):
        """Puts everything written so far on disk."""
        with self._writing():
            self._writer.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self._writing():
            self._writer.close()

    @contextlib.contextmanager
    def _writing(self, step=None):
        try:
            with contextlib.ExitStack() as stack:
                if step is not None:
                    stack.enter_context(self._writer.as_default(step=step))
                yield
        except (OSError, tf.errors.OpError) as error:
            raise UserError(
                f"Cannot write to {self._directory}: {error}. Free some space; "
                "the same command, without --overwrite, resumes the run."
            ) from error


def heat_map(counts):
    """Draws layers against matrices, coloured by sparsity.

    Args:
        counts: dict from names such as `layer_3_query` to `costs.Count`.

    Returns:
        A uint8 array `(height, width, 4)`.
    """
    layers = sorted({_layer_and_part(name)[0] for name in counts})
    parts = list(dict.fromkeys(_layer_and_part(name)[1] for name in counts))
    values = np.full((len(layers), len(parts)), np.nan)
    for name, count in counts.items():
        layer, part = _layer_and_part(name)
        values[layers.index(layer), parts.index(part)] = count.sparsity
    # A figure of its own, without pyplot, keeps no global state.
    figure = matplotlib.figure.Figure(
        figsize=(1.2 * len(parts) + 2, 0.35 * len(layers) + 1.6), dpi=80
    )
    axes = figure.add_subplot()
    image = axes.imshow(values, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(parts)), [p.replace("_", "\n") for p in parts])
    axes.set_yticks(range(len(layers)), layers)
    axes.set_ylabel("layer")
    figure.colorbar(image, label="share of zeros")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba")
    width, height = figure.canvas.get_width_height()
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)


def _layer_and_part(name):
    _, _, rest = name.partition("layer_")
    layer, _, part = rest.partition("_")
    return (int(layer), part) if layer.isdigit() else (-1, name)
