"""Several tasks share an encoder, and each moves only what its ticket keeps."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tiny_bert
import tiny_runs
from tiny_training import make_dataset

from bert_pruning.compression import surgery
from bert_pruning.compression.structure import Structure
from bert_pruning.compression.structure import keep_top
from bert_pruning.data.mixture import Mixture
from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.data.tasks import get_task
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling import layers
from bert_pruning.training.multitask import MultiTaskEvaluator
from bert_pruning.training.multitask import MultiTaskModel
from bert_pruning.training.multitask import Tickets
from bert_pruning.training.optimization import OPTIMIZERS
from bert_pruning.training.optimization import build_optimizer
from bert_pruning.training.optimization import slots_of
from bert_pruning.training.step import DistillationModel
from bert_pruning.training.stepping import Stepper

CONFIG = tiny_runs.tiny_config(num_layers=2, num_heads=4)
NO_DROPOUT = dataclasses.replace(
    CONFIG,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    classifier_dropout=0.0,
)
TICKET = Structure(
    CONFIG.num_heads,
    CONFIG.intermediate_sizes,
    ((0, 2), (0, 1, 2, 3)),
    ((), tuple(range(32))),
)
OTHER = Structure(
    CONFIG.num_heads,
    CONFIG.intermediate_sizes,
    ((0, 1), (1,)),
    (tuple(range(32)), ()),
)
OUTPUTS = {"CoLA": 2, "STS-B": 1}


def random_weights(config=CONFIG):
    weights = tiny_bert.random_weights(config, 0)
    for seed, (task, outputs) in enumerate(OUTPUTS.items()):
        head = tiny_bert.random_weights(config, seed, outputs)
        for part in ("kernel", "bias"):
            weights[f"classifier_{task}/{part}"] = head[f"classifier/{part}"]
    return weights


def make_model(tickets=(TICKET, OTHER), optimizer="adamw", config=CONFIG):
    student = bert.build_model(config, OUTPUTS)
    bert.set_weights(student, random_weights(config), initialized=())
    gates = Tickets(config, dict(zip(OUTPUTS, tickets, strict=True)))
    model = MultiTaskModel(student, gates, seed=1)
    model.compile(build_optimizer(student, optimizer, 1e-2))
    return model


def make_mixture():
    return Mixture(
        [
            TrainBatches(make_dataset(CONFIG, rows, seed), 4, seed=0)
            for seed, rows in enumerate((24, 16))
        ],
        seed=0,
    )


def alone(task, ticket, config=CONFIG):
    """The weights of one task's part, cut out."""
    weights = dict(random_weights(config))
    for part in ("kernel", "bias"):
        weights[f"classifier/{part}"] = weights[f"classifier_{task}/{part}"]
    weights = {n: a for n, a in weights.items() if "classifier_" not in n}
    if ticket is None:
        return config, weights
    return surgery.shrink(config, weights, ticket)


@pytest.mark.parametrize(("place", "ticket"), [(0, TICKET), (1, OTHER)])
def test_a_task_s_gates_are_its_ticket_cut_out(place, ticket):
    model = make_model()
    task = list(OUTPUTS)[place]
    inputs = list(tiny_bert.random_inputs(CONFIG, 5, 9).values())
    gated = model.predictor(place)(inputs)["logits"]
    config, weights = alone(task, ticket)
    part = bert.build_model(config, OUTPUTS[task])
    bert.set_weights(part, weights, initialized=())
    np.testing.assert_allclose(gated, part(inputs)["logits"], atol=2e-6)
    whole = model.student(inputs)["logits"][task]
    assert not np.allclose(gated, whole, atol=1e-3)


def test_a_gate_may_be_anything_between():
    model = make_model()
    inputs = list(tiny_bert.random_inputs(CONFIG, 2, 5).values())
    variables = bert.named_variables(model.student)
    kernel = variables["layer_1_attention_output/kernel"]
    gates = tf.constant([1.0, 0.5, 0.0, 2.0])
    with layers.gates({"layer_1_head_gate": gates}):
        gated = model.student(inputs)["logits"]["CoLA"]
    scale = np.repeat(gates, CONFIG.head_size)[:, np.newaxis]
    kernel.assign(kernel * scale)
    scaled = model.student(inputs)["logits"]["CoLA"]
    np.testing.assert_allclose(gated, scaled, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_a_task_does_not_use_does_not_move(optimizer):
    model, mixture = make_model(optimizer=optimizer), make_mixture()
    stepper = Stepper(model, mixture.label_dtype)
    variables = bert.named_variables(model.student)
    size = CONFIG.head_size

    def columns(head):
        return np.s_[..., head * size : (head + 1) * size]

    # Heads and blocks that a task leaves out, and the other's classifier.
    unused = {
        0: [
            *(("layer_0_query/kernel", columns(h)) for h in (1, 3)),
            *(("layer_0_value/bias", columns(h)) for h in (1, 3)),
            ("layer_0_attention_output/kernel", np.s_[size : 2 * size]),
            ("layer_0_intermediate/kernel", np.s_[:]),
            ("layer_0_output/bias", np.s_[:]),
            ("classifier_STS-B/kernel", np.s_[:]),
        ],
        1: [
            *(("layer_1_key/kernel", columns(h)) for h in (0, 2, 3)),
            ("layer_1_attention_output/kernel", np.s_[:size]),
            ("layer_1_output/kernel", np.s_[:]),
            ("classifier_CoLA/bias", np.s_[:]),
        ],
    }
    used = {
        0: [("layer_0_query/kernel", columns(0)), ("layer_1_output/bias", ...)],
        1: [("layer_1_key/kernel", columns(1)), ("layer_0_output/bias", ...)],
    }
    slots = slots_of(model.optimizer, model.student).values()
    # The head that no task keeps stays as it was, weight decay and all.
    nobody = columns(3)
    first = variables["layer_0_query/kernel"].numpy()[nobody]
    for batch in [*mixture.epoch(0), *mixture.epoch(1)]:
        task = batch["task"]
        before = {name: v.numpy() for name, v in variables.items()}
        moments = [{n: v.numpy() for n, v in s.items()} for s in slots]
        stepper.run(batch)
        for name, part in unused[task]:
            after = variables[name].numpy()
            np.testing.assert_array_equal(after[part], before[name][part])
            for slot, old in zip(slots, moments, strict=True):
                np.testing.assert_array_equal(
                    slot[name].numpy()[part], old[name][part]
                )
        for name, part in used[task]:
            after = variables[name].numpy()
            assert (after[part] != before[name][part]).all(), name
    last = variables["layer_0_query/kernel"].numpy()[nobody]
    np.testing.assert_array_equal(first, last)


def test_one_task_with_a_ticket_trains_as_its_part_alone():
    config = NO_DROPOUT
    model = make_model(config=config)
    smaller, weights = alone("CoLA", TICKET, config)
    part = bert.build_model(smaller, 2)
    bert.set_weights(part, weights, initialized=())
    single = DistillationModel(part, seed=1)
    single.compile(build_optimizer(part, "adamw", 1e-2))
    ours = Stepper(model, np.float32)
    theirs = Stepper(single, np.int32)
    dataset = make_dataset(CONFIG, 24)
    for batch in TrainBatches(dataset, 4, seed=0).epoch(0):
        label = batch["label"].astype(np.float32)
        loss = ours.run({**batch, "label": label, "task": 0})["loss"]
        expected = theirs.run(batch)["loss"]
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    _, cut = surgery.shrink(config, bert.get_weights(model.student), TICKET)
    for name, array in bert.get_weights(part).items():
        # A key's bias has no influence: its gradient is a rounding error.
        if name.startswith("layer_") and not name.endswith("key/bias"):
            np.testing.assert_allclose(cut[name], array, atol=2e-4)


def test_tasks_are_switched_without_a_new_trace():
    model, mixture = make_model(), make_mixture()
    traces = []
    original = model.losses_of
    model.losses_of = lambda batch: traces.append(1) or original(batch)
    stepper = Stepper(model, mixture.label_dtype)
    for batch in mixture.epoch(0):
        stepper.run(batch)
    assert len(traces) == 1


@pytest.mark.parametrize("place", [0, 1])
def test_a_step_is_by_the_loss_of_its_own_task(place):
    model = make_model(config=NO_DROPOUT)
    labels = np.array([[1, 0, 1, 1], [5.0, 4.5, 0.3, 3.0]][place], np.float32)
    inputs = tiny_bert.random_inputs(CONFIG, 4, 7)
    logits = model.predictor(place)(list(inputs.values()))["logits"].numpy()
    if place == 0:
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        rows = np.arange(4), labels.astype(int)
        expected = -np.log(shares[rows]).mean()
    else:
        expected = np.mean(np.square(logits[:, 0] - labels))
    variables = bert.named_variables(model.student)
    task = list(OUTPUTS)[place]
    before = variables[f"classifier_{task}/kernel"].numpy()
    stepper = Stepper(model, np.float32)
    loss = stepper.run({**inputs, "label": labels, "task": place})["loss"]
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert (variables[f"classifier_{task}/kernel"].numpy() != before).all()


def test_each_classifier_has_its_own_dropout():
    student = bert.build_model(CONFIG, OUTPUTS, {"STS-B": 0.0})
    rates = [
        student.get_layer(f"classifier_dropout_{task}").rate for task in OUTPUTS
    ]
    assert rates == [CONFIG.classifier_dropout, 0.0]
    assert rates[0] > 0.0


def test_tasks_are_scored_each_and_on_average():
    tasks = [get_task("CoLA"), get_task("STS-B")]
    model = make_model()
    cola, stsb = make_dataset(CONFIG, 12), make_dataset(CONFIG, 10, 1)
    scores = np.linspace(0, 5, 10, dtype=np.float32)
    stsb = dataclasses.replace(stsb, labels=scores)
    results = MultiTaskEvaluator(model, tasks).evaluate(
        [{"": cola}, {"": stsb, "mismatched": stsb}]
    )
    assert set(results) == {
        *("eval_mcc_CoLA", "eval_accuracy_CoLA", "eval_loss_CoLA"),
        *("eval_spearman_STS-B", "eval_pearson_STS-B", "eval_loss_STS-B"),
        *("eval_spearman_mismatched_STS-B", "eval_pearson_mismatched_STS-B"),
        *("eval_loss_mismatched_STS-B", "eval_mean", "eval_loss"),
    }
    mean = (results["eval_mcc_CoLA"] + results["eval_spearman_STS-B"]) / 2
    assert results["eval_mean"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("ticket", "message"),
    [
        (keep_top(tiny_runs.tiny_config()), "The ticket of CoLA: .* is of"),
        (keep_top(CONFIG, num_layers=1), "keeps no head of layer 1"),
        (
            dataclasses.replace(TICKET, neurons=((0,), (0,))),
            "keeps 1 of the 32 neurons of layer 0",
        ),
    ],
)
def test_a_ticket_that_cannot_be_shared_is_refused(ticket, message):
    with pytest.raises(UserError, match=message):
        Tickets(CONFIG, {"CoLA": ticket})
