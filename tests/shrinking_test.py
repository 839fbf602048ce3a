"""A model is cut while it trains, and a killed run ends as if it had not."""

import gc
import json
import pathlib
import weakref

import numpy as np
import pytest
import tiny_bert
import tiny_runs
from tiny_training import Crash
from tiny_training import make_dataset
from tiny_training import weight_metrics

from bert_pruning.compression import importance
from bert_pruning.compression import surgery
from bert_pruning.compression.shrinkage import depth_shrinkage
from bert_pruning.compression.shrinkage import width_shrinkage
from bert_pruning.compression.structure import keep_top
from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.modeling import bert
from bert_pruning.training import optimization
from bert_pruning.training.optimization import WarmupSchedule
from bert_pruning.training.optimization import build_optimizer
from bert_pruning.training.run import Run
from bert_pruning.training.scoring import GradientMagnitudes
from bert_pruning.training.shrinking import IterativeShrinking
from bert_pruning.training.step import DistillationModel
from bert_pruning.training.summaries import Summaries
from bert_pruning.training.trainer import Plan
from bert_pruning.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("eagerly")

CONFIG = tiny_runs.tiny_config(num_layers=2, num_heads=4)
STEPS = 12


def build(config, weights, start=0):
    student = bert.build_model(config, 2)
    if weights is not None:
        bert.set_weights(student, weights, initialized=())
    model = DistillationModel(
        student,
        magnitudes=GradientMagnitudes(student),
        seed=3,
        config=config,
    )
    schedule = WarmupSchedule(1e-2, STEPS, warmup_steps=2, start=start)
    model.compile(build_optimizer(student, "adamw", schedule))
    return model


def make_shrinking(kind="width", **options):
    """Cuts at the steps 3 and 6, of 12."""
    shrinkage = {
        "width": lambda: width_shrinkage(CONFIG, 6, 2, 8, 6),
        "depth": lambda: depth_shrinkage(CONFIG, 3, 1),
    }[kind]()
    return IterativeShrinking(shrinkage, build, **options)


def make_trainer(directory, shrinking, plan=None, evaluate=None):
    run = Run(directory)
    run.begin()

    def save_model(model, best):
        pathlib.Path(best, "config.json").write_text(
            json.dumps(model.config.to_dict())
        )
        weights = bert.get_weights(model.student)
        np.savez(pathlib.Path(best, "weights.npz"), **weights)

    values = {"num_steps": STEPS, "steps_per_epoch": 5, "eval_steps": 2}
    values.update(save_steps=1, log_steps=3)
    return Trainer(
        build(CONFIG, tiny_bert.random_weights(CONFIG, 0, 2)),
        TrainBatches(make_dataset(CONFIG), batch_size=4, seed=3),
        Plan(**{**values, **(plan or {})}),
        run,
        Summaries(run.path("events")),
        evaluate or weight_metrics,
        "eval_accuracy",
        save_model,
        shrinking,
    )


def crash_at(trainer, step):
    run_step = trainer._run_step

    def crashing(batch):
        if int(trainer.model.steps_done) == step:
            raise Crash
        return run_step(batch)

    trainer._run_step = crashing


@pytest.mark.parametrize("carry_optimizer", [False, True])
@pytest.mark.parametrize("kind", ["width", "depth"])
def test_a_killed_run_ends_as_if_it_had_not(tmp_path, kind, carry_optimizer):
    def trainer_in(directory):
        shrinking = make_shrinking(kind, carry_optimizer=carry_optimizer)
        return make_trainer(directory, shrinking)

    whole = trainer_in(tmp_path / "whole")
    expected = whole.train()
    # Before the first cut, between two, right after one, and at the end.
    for step in (2, 4, 6, 11):
        trainer = trainer_in(tmp_path / "killed")
        crash_at(trainer, step)
        with pytest.raises(Crash):
            trainer.train()
    trainer = trainer_in(tmp_path / "killed")
    results = trainer.train()
    for name in ("eval_accuracy", "eval_loss", "loss", "global_step"):
        assert results[name] == expected[name]
    weights = bert.get_weights(trainer.model.student)
    for name, array in bert.get_weights(whole.model.student).items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
    final = make_shrinking(kind).shrinkage.shapes[-1]
    best = tmp_path / "killed" / "checkpoint" / "best"
    assert json.loads((best / "config.json").read_text()) == final.to_dict()
    assert trainer.model.config == final


def test_a_model_that_was_cut_is_let_go(tmp_path):
    trainer = make_trainer(tmp_path, make_shrinking())
    first = weakref.ref(trainer.model)
    trainer.train()
    gc.collect()
    assert first() is None


def test_a_larger_model_is_never_the_best(tmp_path):
    scores = iter([0.9, 0.8, 0.5, 0.4, 0.6, 0.3])

    def evaluate(model):
        return {"eval_accuracy": next(scores), "eval_loss": 1.0}

    results = make_trainer(
        tmp_path, make_shrinking(), evaluate=evaluate
    ).train()
    assert results["global_step"] == 10
    assert results["eval_accuracy"] == 0.6


def test_what_matters_by_the_gradients_since_the_last_cut_is_kept():
    shrinking = make_shrinking()
    model = build(CONFIG, tiny_bert.random_weights(CONFIG, 0, 2))
    generator = np.random.default_rng(0)
    gradients = [
        generator.standard_normal(v.shape).astype(np.float32)
        for v in model.student.trainable_variables
    ]
    for _ in range(3):
        model.magnitudes.add(gradients)
    weights = bert.get_weights(model.student)
    scores = importance.taylor_scores(CONFIG, weights, model.magnitudes.numpy())
    smaller = shrinking.cut(model, 3)
    structure = keep_top(CONFIG, scores, num_heads=3, num_neurons=20)
    config, expected = surgery.shrink(CONFIG, weights, structure)
    config, expected = surgery.factorize_embeddings(config, expected, 11)
    assert smaller.config == config
    found = bert.get_weights(smaller.student)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    # The next cut is judged by what comes.
    assert not any(a.any() for a in smaller.magnitudes.numpy().values())
    assert int(smaller.steps_done) == 3


@pytest.mark.parametrize("carry_optimizer", [False, True])
def test_the_learning_rate_s_line_is_unbroken(tmp_path, carry_optimizer):
    shrinking = make_shrinking(carry_optimizer=carry_optimizer)
    trainer = make_trainer(tmp_path, shrinking)
    rates = []
    run_step = trainer._run_step

    def noting(batch):
        losses = run_step(batch)
        rates.append(float(trainer.model.optimizer.learning_rate))
        return losses

    trainer._run_step = noting
    trainer.train()
    schedule = WarmupSchedule(1e-2, STEPS, warmup_steps=2)
    assert rates == pytest.approx([float(schedule(s)) for s in range(STEPS)])


def test_the_optimizer_starts_anew_or_goes_on(tmp_path):
    for carry in (False, True):
        trainer = make_trainer(
            tmp_path / str(carry), make_shrinking(carry_optimizer=carry)
        )
        crash_at(trainer, 3)
        with pytest.raises(Crash):
            trainer.train()
        model = trainer.model
        slots = optimization.slots_of(model.optimizer, model.student)
        moved = {
            name
            for slot in slots.values()
            for name, variable in slot.items()
            if np.any(variable.numpy())
        }
        if not carry:
            assert not moved
            assert int(model.optimizer.iterations) == 0
            continue
        assert int(model.optimizer.iterations) == 3
        assert "layer_0_query/kernel" in moved
        assert "classifier/bias" in moved
        assert not [name for name in moved if "word_embeddings" in name]
        shapes = {
            name: tuple(variable.shape)
            for name, variable in bert.named_variables(model.student).items()
        }
        for name, variable in slots["momentum"].items():
            assert tuple(variable.shape) == shapes[name]


def test_slots_are_cut_with_their_weights():
    shrinking = make_shrinking(carry_optimizer=True)
    model = build(CONFIG, tiny_bert.random_weights(CONFIG, 0, 2))
    weights = bert.get_weights(model.student)
    ones = [np.ones(v.shape, np.float32) for v in model.student.weights]
    model.magnitudes.add(ones)
    slots = optimization.slots_of(model.optimizer, model.student)
    for slot in slots.values():
        for name, variable in slot.items():
            variable.assign(weights[name])
    smaller = shrinking.cut(model, 3)
    cut = bert.get_weights(smaller.student)
    theirs = optimization.slots_of(smaller.optimizer, smaller.student)
    for name, variable in theirs["velocity"].items():
        if "embedding" not in name:
            np.testing.assert_array_equal(variable, cut[name], err_msg=name)


# === Patience ===


def test_patience_is_lost_at_evaluations_alone(tmp_path):
    left = iter([0.1, 0.2, 0.3, 0.2])
    trainer = make_trainer(
        tmp_path / "run",
        None,
        {"num_steps": 16, "eval_steps": 4, "patience_steps": 2},
        lambda _: {"eval_accuracy": next(left), "eval_loss": 1.0},
    )
    # As long as each is better, it goes on.
    assert trainer.train()["global_step"] == 12
    assert int(trainer.model.steps_done) == 16


def test_training_ends_when_it_gets_no_better(tmp_path):
    scores = [0.9, 0.5, 0.6, 0.55, 0.5, 0.4]
    left = iter(scores)

    def evaluate(model):
        return {"eval_accuracy": next(left), "eval_loss": 1.0}

    def trainer_in(directory):
        return make_trainer(
            directory,
            make_shrinking("depth"),
            {"patience_steps": 4},
            evaluate,
        )

    trainer = trainer_in(tmp_path / "run")
    results = trainer.train()
    # 0.9 was not of the final size; the best is 0.6, of step 6.
    assert results["global_step"] == 6
    assert int(trainer.model.steps_done) == 10
    # Killed after its last evaluation, it has nothing left to do.
    again = trainer_in(tmp_path / "run")
    again._run_step = None
    assert again.train()["global_step"] == 6
