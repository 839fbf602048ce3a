"""TensorBoard finds what a run has to show."""

import resource

import numpy as np
import pytest
import tensorflow as tf

from bert_pruning.compression.costs import Count
from bert_pruning.errors import UserError
from bert_pruning.training.summaries import Summaries
from bert_pruning.training.summaries import heat_map

COUNTS = {
    "layer_0_query": Count(100, 90),
    "layer_0_attention_output": Count(100, 50),
    "layer_11_query": Count(200, 0),
    "pooler": Count(10, 5),
}


def read_events(directory):
    """Every value in the event files: (tag, step) to protocol buffer."""
    values = {}
    for path in directory.glob("events.out.*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                values[value.tag, event.step] = value
    return values


def scalar_of(value):
    return float(tf.make_ndarray(value.tensor))


def test_events_hold_scalars_flags_sparsity_and_hyperparameters(tmp_path):
    with Summaries(
        tmp_path, "--seed=1\n--sparsity=0.5\n", {"learning_rate": 5e-5}
    ) as summaries:
        summaries.scalars({"train/loss": 0.5, "train/hidden_loss": 2}, step=3)
        summaries.sparsity(COUNTS, target=0.6, step=7)
    events = read_events(tmp_path)
    assert scalar_of(events["train/loss", 3]) == 0.5
    assert scalar_of(events["train/hidden_loss", 3]) == 2.0
    assert scalar_of(events["sparsity/total", 7]) == pytest.approx(145 / 410)
    assert scalar_of(events["sparsity/target", 7]) == pytest.approx(0.6)
    for name, count in COUNTS.items():
        value = events[f"sparsity_per_matrix/{name}", 7]
        assert scalar_of(value) == pytest.approx(count.sparsity)
    text = tf.make_ndarray(events["flags", 0].tensor)
    assert b"--sparsity=0.5" in np.ravel(text)[0]
    session = events["_hparams_/session_start_info", 0]
    assert b"learning_rate" in session.metadata.plugin_data.content
    image = tf.make_ndarray(events["sparsity_per_matrix", 7].tensor)
    assert image[2].startswith(b"\x89PNG")


def test_what_was_flushed_is_on_disk(tmp_path):
    summaries = Summaries(tmp_path)
    summaries.scalars({"eval/eval_f1": 0.25}, step=1)
    summaries.flush()
    assert scalar_of(read_events(tmp_path)["eval/eval_f1", 1]) == 0.25


def test_the_heat_map_shows_which_matrix_is_sparse():
    def picture(**sparsities):
        return heat_map(
            {name: Count(100, zeros) for name, zeros in sparsities.items()}
        )

    one = picture(layer_0_query=90, layer_0_key=0, layer_10_query=0)
    assert one.dtype == np.uint8
    assert one.ndim == 3
    other = picture(layer_0_query=0, layer_0_key=90, layer_10_query=0)
    assert one.shape == other.shape
    differing = np.flatnonzero((one != other).any(axis=(0, 2)))
    same = picture(layer_0_query=90, layer_0_key=0, layer_10_query=0)
    np.testing.assert_array_equal(one, same)
    # Two cells of the upper row, side by side.
    assert differing.size > 50


def test_a_full_disk_is_said_to_be_one(tmp_path):
    summaries = Summaries(tmp_path)
    summaries.flush()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(UserError, match=f"(?s){tmp_path}.*Free some"):
            for step in range(100):
                summaries.scalars({"train/loss": 0.5}, step)
            summaries.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"Cannot write to {tmp_path}/file"):
        Summaries(tmp_path / "file" / "events")
