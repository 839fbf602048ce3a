"""The masks are exact, only where they should be, and there after each step."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
import tiny_bert

from bert_pruning.compression import costs
from bert_pruning.compression.masks import kept_count
from bert_pruning.compression.pruning import Pruner
from bert_pruning.compression.pruning import wrap
from bert_pruning.compression.pruning import wrappers_of
from bert_pruning.compression.sparsity import Sparsity
from bert_pruning.compression.sparsity import find_targets
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.training.optimization import AdamW
from bert_pruning.training.step import DistillationModel

CONFIG = tiny_bert.tiny_config(hidden_size=16, intermediate_size=32)
ONE_LAYER = tiny_bert.tiny_config(
    num_layers=1, hidden_size=16, intermediate_size=32
)


def make_model(config=CONFIG, num_outputs=2, seed=0):
    """A model with random weights, biases too."""
    model = bert.build_model(config, num_outputs)
    bert.set_weights(model, tiny_bert.random_weights(config, seed, num_outputs))
    return model


def make_pruned(config=CONFIG, step=None, **options):
    """A wrapped model and its pruner, pruned up to a step."""
    sparsity = Sparsity(**options)
    wrapped = wrap(make_model(config), sparsity)
    pruner = Pruner(wrapped, sparsity)
    for done in range(0 if step is None else step + 1):
        pruner.update(done)
    return wrapped, pruner


def make_batches(batches=6, batch_size=4):
    """A data set for `fit`, of dicts with labels."""
    inputs = tiny_bert.random_inputs(CONFIG, batches * batch_size, length=6)
    inputs["label"] = np.arange(batches * batch_size, dtype=np.int32) % 2
    return tf.data.Dataset.from_tensor_slices(inputs).batch(batch_size)


# === Schedule ===


@pytest.mark.parametrize(
    ("share", "expected"),
    [(10, 0.257), (25, 0.549), (50, 0.831), (75, 0.935), (90, 0.949)],
)
def test_the_schedule_is_the_papers_cubic(share, expected):
    sparsity = Sparsity(final=0.95, end_step=1000)
    assert sparsity.at(10 * share) == pytest.approx(expected, abs=5e-4)


def test_the_schedule_is_tfmots():
    sparsity = Sparsity(final=0.9, initial=0.2, begin_step=50, end_step=250)
    theirs = tfmot.sparsity.keras.PolynomialDecay(
        0.2, 0.9, begin_step=50, end_step=250, power=3, frequency=2
    )
    for step in range(50, 251, 2):
        updates, value = theirs(tf.constant(step, tf.int64))
        assert sparsity.updates_at(step) == bool(updates)
        assert sparsity.at(step) == pytest.approx(float(value), abs=1e-6)


def test_before_the_ramp_all_is_dense_and_after_it_the_target_stays():
    sparsity = Sparsity(final=0.8, initial=0.3, begin_step=10, end_step=20)
    values = [sparsity.at(step) for step in (0, 9, 10, 20, 99)]
    assert values == pytest.approx([0.0, 0.0, 0.3, 0.8, 0.8])
    assert not any(map(sparsity.updates_at, (0, 9, 21, 99)))


@pytest.mark.parametrize(
    ("frequency", "end_step", "updates"),
    [(10, 100, 11), (7, 100, 16), (100, 100, 2), (0, 1000, 101), (0, 30, 31)],
)
def test_the_last_update_is_exact_whether_the_frequency_divides_or_not(
    frequency, end_step, updates
):
    sparsity = Sparsity(final=0.95, end_step=end_step, frequency=frequency)
    steps = [s for s in range(2 * end_step) if sparsity.updates_at(s)]
    assert len(steps) == updates
    assert steps[-1] == end_step
    assert sparsity.at(steps[-1]) == 0.95
    values = [sparsity.at(step) for step in steps]
    assert values == sorted(values)


def test_a_pattern_may_be_given_with_its_sparsity_rounded():
    assert Sparsity(final=0.333, m_by_n=(1, 3)).final == 1 / 3


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"final": 1.0}, "--sparsity .* 1.0"),
        ({"final": -0.1}, "--sparsity .* -0.1"),
        ({"final": float("nan")}, "--sparsity .* nan"),
        ({"final": 0.5, "initial": 0.6}, "--initial_sparsity .* 0.6 and 0.5"),
        ({"final": 0.5, "begin_step": 6, "end_step": 5}, "begin at step 6"),
        ({"final": 0.5, "end_step": 5, "frequency": 6}, "frequency=6 .* 5"),
        ({"final": 0.5, "end_step": 5, "frequency": -1}, "Received: -1"),
        ({"final": 0.6, "m_by_n": (2, 4)}, "2x4 .* --sparsity=0.6"),
        ({"final": 0.5, "m_by_n": (4, 4)}, "Received: 4x4"),
        (
            {"final": 0.5, "m_by_n": (2, 4), "block_size": (4, 1)},
            "two patterns",
        ),
        ({"final": 0.5, "block_size": (0, 1)}, r"\(0, 1\)"),
        ({"final": 0.5, "block_pooling_type": "MIN"}, "Received: MIN"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, received):
    with pytest.raises(UserError, match=received.replace(" .* ", "(?s:.*)")):
        Sparsity(**options)


# === Wrapping ===


def test_exactly_the_72_kernels_of_12_layers_are_wrapped():
    config = tiny_bert.tiny_config(num_layers=12)
    wrapped, pruner = make_pruned(config, final=0.5, step=0)
    expected = {name.split("/")[0] for name in bert.encoder_kernels(config)}
    assert len(expected) == 72
    assert set(pruner.wrappers) == expected
    assert {wrapper.layer.name for wrapper in wrappers_of(wrapped)} == expected
    before = tiny_bert.random_weights(config, 0, 2)
    for name, array in bert.get_weights(wrapped).items():
        if name.endswith("/kernel") and name.split("/")[0] in expected:
            assert costs.count(array).sparsity == 0.5, name
        else:
            # Embeddings, norms, biases, pooler, classifier.
            np.testing.assert_array_equal(array, before[name], name)


def test_targets_can_be_chosen():
    _, pruner = make_pruned(final=0.5, targets=("layer_1_*t", "pooler"))
    assert set(pruner.wrappers) == {
        *("layer_1_attention_output", "layer_1_output", "pooler")
    }


def test_a_target_without_a_layer_is_refused():
    with pytest.raises(UserError, match="(?s)'layer_9_\\*'.*layer_0_query"):
        make_pruned(final=0.5, targets=("layer_0_*", "layer_9_*"))


def test_blocks_that_do_not_divide_a_kernel_are_refused():
    with pytest.raises(UserError, match="--block_size=4x5 .* layer_0_"):
        make_pruned(final=0.5, block_size=(4, 5))


def test_wrapping_changes_nothing_and_copies_the_weights():
    model = make_model()
    wrapped = wrap(model, Sparsity(final=0.5))
    inputs = tiny_bert.random_inputs(CONFIG, batch_size=3, length=7)
    before, after = model(inputs), wrapped(inputs)
    assert before.keys() == after.keys()
    for name in before:
        for one, other in zip(before[name], after[name], strict=True):
            np.testing.assert_array_equal(one, other)
    for variable in wrapped.variables:
        variable.assign(tf.zeros_like(variable))
    np.testing.assert_array_equal(before["logits"], model(inputs)["logits"])


def test_wrap_then_unwrap_is_the_identity():
    wrapped, _ = make_pruned(final=0.8, step=0)
    plain = bert.build_model(CONFIG, num_outputs=2)
    bert.set_weights(plain, bert.get_weights(wrapped), initialized=())
    inputs = tiny_bert.random_inputs(CONFIG, batch_size=3, length=7)
    for name, value in wrapped(inputs).items():
        for one, other in zip(value, plain(inputs)[name], strict=True):
            np.testing.assert_array_equal(one, other)


def test_tfmot_can_strip_the_wrappers():
    wrapped, _ = make_pruned(final=0.8, step=0)
    stripped = tfmot.sparsity.keras.strip_pruning(wrapped)
    assert not wrappers_of(stripped)
    inputs = tiny_bert.random_inputs(CONFIG, batch_size=3, length=7)
    np.testing.assert_array_equal(
        stripped(inputs)["logits"], wrapped(inputs)["logits"]
    )
    kernel = bert.get_weights(stripped)["layer_1_output/kernel"]
    # 32 * 16 = 512 weights, of which floor(102.4) stay.
    assert costs.count(kernel).kept == 102


# === Patterns ===


@pytest.mark.parametrize("end_step", [0, 10])
def test_two_of_four_consecutive_weights_of_a_column_stay(end_step):
    wrapped, pruner = make_pruned(
        final=0.5, m_by_n=(2, 4), end_step=end_step, step=end_step
    )
    dense = tiny_bert.random_weights(CONFIG, 0, 2)
    for name in bert.encoder_kernels(CONFIG):
        kernel = bert.get_weights(wrapped)[name]
        groups = kernel.T.reshape(-1, 4)
        assert (np.count_nonzero(groups, axis=1) == 2).all(), name
        original = np.abs(dense[name].T.reshape(-1, 4))
        largest = np.sort(original, axis=1)[:, 2:].sum()
        assert np.abs(groups).sum() == pytest.approx(largest, rel=1e-5)
    pruner.check_reached()


def test_no_group_has_more_zeros_than_its_pattern_on_the_way():
    options = {"final": 0.5, "m_by_n": (2, 4), "end_step": 8}
    wrapped, pruner = make_pruned(**options, step=0)
    gone = {}
    for step in range(1, 9):
        pruner.update(step)
        for name in bert.encoder_kernels(CONFIG):
            kernel = bert.get_weights(wrapped)[name]
            zeros = np.count_nonzero(kernel == 0)
            kept = int(kernel.size * (1 - pruner.sparsity.at(step)))
            assert zeros == kernel.size - kept, (name, step)
            groups = kernel.T.reshape(-1, 4)
            assert (np.count_nonzero(groups, axis=1) >= 2).all()
            before = gone.get(name, np.zeros(kernel.shape, bool))
            assert not kernel[before].any()
            gone[name] = kernel == 0
    pruner.check_reached()


def test_groups_must_divide_the_columns():
    kernels = {"layer_0_query": (10, 8)}
    sparsity = Sparsity(
        final=0.5, m_by_n=(2, 4), targets=("layer_*",), end_step=1
    )
    with pytest.raises(UserError, match="2x4 does not divide .* of 10"):
        find_targets(kernels, sparsity)


@pytest.mark.parametrize("pooling", ["AVG", "MAX"])
def test_blocks_are_kept_or_zeroed_as_one(pooling):
    wrapped, pruner = make_pruned(
        final=0.75,
        end_step=8,
        step=8,
        block_size=(4, 2),
        block_pooling_type=pooling,
    )
    dense = tiny_bert.random_weights(CONFIG, 0, 2)
    pool = {"AVG": np.mean, "MAX": np.max}[pooling]
    for name in bert.encoder_kernels(CONFIG):
        kernel = bert.get_weights(wrapped)[name]
        rows, columns = kernel.shape

        def blocks(array):
            rows, columns = array.shape
            array = array.reshape(rows // 4, 4, columns // 2, 2)
            return array.transpose(0, 2, 1, 3).reshape(-1, 8)

        kept = np.count_nonzero(blocks(kernel), axis=1)
        assert set(kept) == {0, 8}
        assert (kept == 8).sum() == rows * columns // 8 // 4
        strength = pool(np.abs(blocks(dense[name])), axis=1)
        assert strength[kept == 8].min() > strength[kept == 0].max()
    pruner.check_reached()


# === In training ===


class Watcher(keras.callbacks.Callback):
    """Notes the sparsity of the kernels after each batch."""

    def __init__(self, pruner):
        super().__init__()
        self.pruner = pruner
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        counts = self.pruner.measured().values()
        self.seen.append({round(count.sparsity, 4) for count in counts})


@pytest.mark.parametrize("with_tfmots_callback", [False, True])
def test_in_fit_the_kernels_are_sparse_after_every_batch(with_tfmots_callback):
    # One of the two eagerly, which is fast.
    wrapped, pruner = make_pruned(
        ONE_LAYER, final=0.75, end_step=4, frequency=2
    )
    model = DistillationModel(wrapped, pruner=pruner)
    model.compile(AdamW(1e-2), run_eagerly=with_tfmots_callback)
    watcher = Watcher(pruner)
    callbacks = [pruner, watcher]
    if with_tfmots_callback:
        callbacks.insert(0, tfmot.sparsity.keras.UpdatePruningStep())
    history = model.fit(make_batches(6), callbacks=callbacks, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    halfway = round(1 - kept_count(256, 0.75 * (1 - 0.5**3)) / 256, 4)
    other = round(1 - kept_count(512, 0.75 * (1 - 0.5**3)) / 512, 4)
    assert watcher.seen == [
        *({0.0}, {halfway, other}, {halfway, other}),
        *({0.75}, {0.75}, {0.75}),
    ]


def test_a_wrapped_model_of_ones_own_is_pruned_in_fit_too():
    model = keras.Sequential([keras.layers.Dense(8, name="only")])
    model.build((None, 4))
    sparsity = Sparsity(final=0.5, end_step=3, targets=("only",))
    wrapped = wrap(model, sparsity)
    pruner = Pruner(wrapped, sparsity)
    wrapped.compile("sgd", "mse")
    watcher = Watcher(pruner)
    x = np.random.default_rng(0).standard_normal((15, 4))
    wrapped.fit(
        x, x @ np.ones((4, 8)), 3, callbacks=[pruner, watcher], verbose=0
    )
    assert watcher.seen[2:] == [{0.5}, {0.5}, {0.5}]


def test_a_pruned_weight_stays_zero_whatever_the_optimizer_does():
    wrapped, pruner = make_pruned(ONE_LAYER, final=0.75, step=0)
    masks = {
        name: wrapper.pruning_vars[0][1].numpy()
        for name, wrapper in pruner.wrappers.items()
    }
    model = DistillationModel(wrapped, pruner=pruner)
    model.compile(AdamW(0.5, bias_correction=False))
    for batch in make_batches(3):
        model.train_step(batch)
    for name, wrapper in pruner.wrappers.items():
        kernel = wrapper.layer.kernel.numpy()
        np.testing.assert_array_equal(kernel != 0, masks[name] != 0)


def test_weights_that_are_zero_whatever_the_mask_says_miss_no_target():
    wrapped, pruner = make_pruned(ONE_LAYER, step=1, final=0.25, end_step=1)
    kernel = pruner.wrappers["layer_0_query"].layer.kernel
    kernel.assign(tf.zeros_like(kernel))
    pruner.check_reached()


def test_a_missed_target_fails_loudly():
    wrapped, pruner = make_pruned(ONE_LAYER, final=0.75, end_step=4, step=3)
    with pytest.raises(RuntimeError, match="(?s)layer_.*0.738.*0.7500"):
        pruner.check_reached()
    pruner.update(4)
    pruner.check_reached()
    kernel = pruner.wrappers["layer_0_key"].layer.kernel
    kernel.assign(tf.ones_like(kernel))
    with pytest.raises(RuntimeError, match="layer_0_key ended at .* 0.0000"):
        pruner.check_reached()
