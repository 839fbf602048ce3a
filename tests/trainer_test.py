"""A run ends alike however often it was stopped, and keeps its best model."""

import json
import os
import pathlib
import random
import re
import resource
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
import tiny_bert
import tiny_runs
from tiny_training import Crash
from tiny_training import make_dataset
from tiny_training import weight_metrics

from bert_pruning.compression import costs
from bert_pruning.compression.masks import kept_count
from bert_pruning.compression.pruning import Pruner
from bert_pruning.compression.pruning import wrap
from bert_pruning.compression.sparsity import Sparsity
from bert_pruning.data.pipeline import TrainBatches
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.training.distillation import build_matches
from bert_pruning.training.optimization import WarmupSchedule
from bert_pruning.training.optimization import build_optimizer
from bert_pruning.training.run import Run
from bert_pruning.training.run import read_results
from bert_pruning.training.step import DistillationModel
from bert_pruning.training.summaries import Summaries
from bert_pruning.training.trainer import Interrupted
from bert_pruning.training.trainer import Plan
from bert_pruning.training.trainer import Trainer

CONFIG = tiny_runs.tiny_config()


pytestmark = pytest.mark.usefixtures("eagerly")


def make_model(final=None, distill=False, num_steps=8, **options):
    """A compiled model, new weights and all, as `train` would make it."""
    student = bert.build_model(CONFIG, 2)
    bert.set_weights(student, tiny_bert.random_weights(CONFIG, 0, 2))
    teacher, matches, pruner = None, (), None
    if distill:
        teacher = bert.build_model(CONFIG, 2)
        bert.set_weights(teacher, tiny_bert.random_weights(CONFIG, 1, 2))
        features = ("logits", "hidden", "attention")
        matches = build_matches(features, CONFIG, CONFIG)
    if final is not None:
        options.setdefault("end_step", num_steps)
        sparsity = Sparsity(final=final, **options)
        student = wrap(student, sparsity)
        pruner = Pruner(student, sparsity)
    model = DistillationModel(student, teacher, matches, pruner=pruner, seed=3)
    schedule = WarmupSchedule(1e-2, num_steps, warmup_steps=1)
    model.compile(build_optimizer(student, "adamw", schedule))
    return model


def make_trainer(directory, model=None, evaluate=None, plan=None, **options):
    """A trainer of a new model, on the run in `directory`."""
    values = {
        "num_steps": 8,
        "steps_per_epoch": 5,
        "eval_steps": 4,
        "save_steps": 2,
        "log_steps": 3,
    }
    plan = Plan(**{**values, **(plan or {})})
    model = model or make_model(num_steps=plan.num_steps, **options)
    run = Run(directory)
    run.begin()

    def save_model(model, best):
        path = pathlib.Path(best, "weights.npz")
        np.savez(path, **bert.get_weights(model.student))

    return Trainer(
        model,
        TrainBatches(make_dataset(CONFIG), batch_size=4, seed=3),
        plan,
        run,
        Summaries(run.path("events")),
        evaluate or weight_metrics,
        "eval_accuracy",
        save_model,
    )


def scripted(values):
    """An evaluation that returns (accuracy, loss) pairs one by one."""
    pairs = iter(values)

    def evaluate(model):
        accuracy, loss = next(pairs)
        return {"eval_accuracy": accuracy, "eval_loss": loss}

    return evaluate


def records_of(directory):
    lines = pathlib.Path(directory, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_times(results):
    return {k: v for k, v in results.items() if not k.endswith("_time")}


def assert_same_run(one, other):
    """Two finished trainings: (trainer, results) each."""
    assert without_times(one[1]) == without_times(other[1])
    directories = [trainer.run.directory for trainer, _ in (one, other)]
    assert records_of(directories[0]) == records_of(directories[1])
    weights = [
        bert.get_weights(trainer.model.student) for trainer, _ in (one, other)
    ]
    best = [
        dict(np.load(directory / "checkpoint" / "best" / "weights.npz"))
        for directory in directories
    ]
    for pair in (weights, best):
        for name, array in pair[0].items():
            np.testing.assert_array_equal(array, pair[1][name], err_msg=name)


# === The best model ===


def test_the_best_model_is_the_one_of_the_highest_metric(tmp_path):
    trainer = make_trainer(
        tmp_path,
        plan={"num_steps": 4, "eval_steps": 1},
        evaluate=scripted([(0.5, 1.0), (0.8, 2.0), (0.8, 1.5), (0.7, 0.1)]),
    )
    results = trainer.train()
    assert results["global_step"] == 3
    assert results["eval_accuracy"] == 0.8
    assert results["eval_loss"] == 1.5
    assert [r["step"] for r in records_of(tmp_path)] == [1, 2, 3, 4]
    assert results["loss"] == records_of(tmp_path)[2]["loss"]


def test_the_last_model_is_kept_where_it_is_asked_for(tmp_path):
    trainer = make_trainer(
        tmp_path,
        plan={"num_steps": 4, "eval_steps": 2, "keeps_last": True},
        evaluate=scripted([(0.8, 0.1), (0.7, 0.2)]),
    )
    results = trainer.train()
    assert results["global_step"] == 4
    assert results["eval_accuracy"] == 0.7
    kept = np.load(tmp_path / "checkpoint" / "best" / "weights.npz")
    for name, array in bert.get_weights(trainer.model.student).items():
        np.testing.assert_array_equal(kept[name], array)
    assert [r["eval_accuracy"] for r in records_of(tmp_path)] == [0.8, 0.7]


def test_a_denser_model_is_never_the_best(tmp_path):
    trainer = make_trainer(
        tmp_path,
        plan={"num_steps": 4, "eval_steps": 1},
        evaluate=scripted([(0.9, 1.0), (0.8, 1.0), (0.5, 1.0), (0.4, 1.0)]),
        final=0.75,
        end_step=3,
    )
    results = trainer.train()
    assert results["global_step"] == 3
    assert results["eval_accuracy"] == 0.5
    assert results["sparsity"] == 0.75
    best = np.load(tmp_path / "checkpoint" / "best" / "weights.npz")
    kernels = [best[name] for name in bert.encoder_kernels(CONFIG)]
    assert costs.total(kernels).sparsity == 0.75


def test_the_sparsity_of_a_run_is_over_all_kernels_of_the_encoder(tmp_path):
    trainer = make_trainer(
        tmp_path,
        plan={"num_steps": 2},
        final=0.5,
        targets=("layer_0_query", "pooler"),
    )
    results = trainer.train()
    # One of four square kernels; two more are twice as large.
    assert results["sparsity"] == 0.5 / 8


@pytest.mark.parametrize("options", [{}, {"m_by_n": (2, 4)}])
def test_one_shot_models_are_at_their_target_from_the_start(tmp_path, options):
    trainer = make_trainer(
        tmp_path,
        plan={"num_steps": 2, "eval_steps": 1},
        evaluate=scripted([(0.9, 1.0), (0.8, 1.0)]),
        final=0.5,
        initial=0.5,
        **options,
    )
    results = trainer.train()
    assert results["global_step"] == 1
    assert results["sparsity"] == 0.5


def test_the_last_step_is_evaluated_whatever_the_interval(tmp_path):
    trainer = make_trainer(tmp_path, plan={"eval_steps": 3, "num_steps": 7})
    trainer.train()
    records = records_of(tmp_path)
    assert [record["step"] for record in records] == [3, 6, 7]
    assert [record["epoch"] for record in records] == [0.6, 1.2, 1.4]


def test_every_batch_counts_in_the_loss(tmp_path):
    trainer = make_trainer(tmp_path)
    losses = []
    run_step = trainer._run_step

    def noting(batch):
        losses.append(run_step(batch))
        return losses[-1]

    trainer._run_step = noting
    trainer.train()
    values = [float(loss["loss"]) for loss in losses]
    assert len(values) == 8
    # Since the last line of the log: it has one every third step, and one
    # with each checkpoint.
    expected = [values[3], np.mean(values[6:8])]
    shown = [record["loss"] for record in records_of(tmp_path)]
    assert shown == pytest.approx(expected, rel=1e-6)


# === Sparsity ===


def test_kernels_are_sparse_after_each_step_and_in_each_checkpoint(tmp_path):
    seen = []

    def check(step):
        expected = trainer.model.pruner.sparsity.at(step)
        for wrapper in trainer.model.pruner.wrappers.values():
            kernel = wrapper.layer.kernel.numpy()
            kept = kept_count(kernel.size, expected)
            assert np.count_nonzero(kernel) == kept, (wrapper.name, step)
        seen.append(step)

    def evaluate(model):
        check(int(model.steps_done))
        return {"eval_accuracy": 0.5, "eval_loss": 1.0}

    def stop_after(batch):
        losses = run_step(batch)
        check(int(trainer.model.steps_done) - 1)
        return losses

    trainer = make_trainer(
        tmp_path, evaluate=evaluate, final=0.9, frequency=1, distill=True
    )
    run_step = trainer._run_step
    # Between two steps masks are those of the step before.
    trainer._run_step = stop_after
    save = trainer._snapshots.manager.save

    def check_saved(checkpoint_number):
        path = save(checkpoint_number=checkpoint_number)
        reader = tf.train.load_checkpoint(path)
        expected = trainer.model.pruner.sparsity.at(checkpoint_number)
        stored = [
            reader.get_tensor(name)
            for name, shape in reader.get_variable_to_shape_map().items()
            if name.startswith("student/")
            and "/kernel/" in name
            # Not the pooler's and the classifier's.
            and not np.count_nonzero(reader.get_tensor(name)) == np.prod(shape)
        ]
        assert len(stored) == 6
        for kernel in stored:
            kept = kept_count(kernel.size, expected)
            assert np.count_nonzero(kernel) == kept
        seen.append(f"saved {checkpoint_number}")

    trainer._snapshots.manager.save = check_saved
    trainer.train()
    assert seen == [
        *(0, 1, "saved 2", 2, 3, 4, "saved 4"),
        *(4, 5, "saved 6", 6, 7, 8, "saved 8"),
    ]


def test_a_missed_sparsity_is_no_success(tmp_path):
    trainer = make_trainer(tmp_path, plan={"num_steps": 2}, final=0.5)
    # As if the last mask update had not been made.
    trainer.model.pruner.update = lambda step: False
    with pytest.raises(RuntimeError, match="instead of 0.5000"):
        trainer.train()


# === Stopped and resumed ===


# At its target when first evaluated.
PRUNED = {"final": 0.75, "end_step": 4, "frequency": 1, "distill": True}


def crash_at(trainer, place, call):
    """Makes a call of one of the trainer's functions its last."""
    owner, name = {
        "step": (trainer, "_run_step"),
        "mask update": (trainer.model.pruner, "update"),
        "evaluation": (trainer, "evaluate"),
        "metrics": (trainer.run, "write_metrics"),
        "best": (trainer, "save_model"),
        "saving": (trainer._snapshots.manager, "save"),
    }[place]
    action = getattr(owner, name)
    calls = []

    def crashing(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Crash
        return action(*args, **kwargs)

    setattr(owner, name, crashing)


def test_a_run_that_regrows_weights_resumes_with_their_shadows(tmp_path):
    options = {**PRUNED, "regrowth": "shadow", "update_end_step": 7}
    trainer = make_trainer(tmp_path / "whole", **options)
    whole = trainer, trainer.train()
    for call in (4, 2):
        trainer = make_trainer(tmp_path / "stopped", **options)
        crash_at(trainer, "step", call)
        with pytest.raises(Crash):
            trainer.train()
    trainer = make_trainer(tmp_path / "stopped", **options)
    assert_same_run((trainer, trainer.train()), whole)


def test_a_run_that_stops_anywhere_ends_as_if_it_had_not(tmp_path):
    directory = tmp_path / "uninterrupted"
    trainer = make_trainer(directory, **PRUNED)
    uninterrupted = trainer, trainer.train()

    stopped = tmp_path / "stopped"
    for place, call in (
        # Before there was any checkpoint, then always between steps 2 and 4.
        *(("step", 1), ("step", 4), ("mask update", 2), ("evaluation", 1)),
        # Resuming writes the metrics too.
        *(("metrics", 2), ("best", 1), ("saving", 1)),
    ):
        trainer = make_trainer(stopped, **PRUNED)
        crash_at(trainer, place, call)
        with pytest.raises(Crash):
            trainer.train()
    for number, step in ((signal.SIGTERM, 5), (signal.SIGINT, 7)):
        trainer = make_trainer(stopped, **PRUNED)
        before = signal.getsignal(number)
        interrupt_at(trainer, number, step)
        with pytest.raises(Interrupted, match=f"step {step} of 8.*resumes"):
            trainer.train()
        assert signal.getsignal(number) == before
    trainer = make_trainer(stopped, **PRUNED)
    assert_same_run((trainer, trainer.train()), uninterrupted)
    # Nothing is done twice, and the results are the same.
    again = make_trainer(stopped, **PRUNED)
    again._run_step = None
    assert without_times(again.train()) == without_times(uninterrupted[1])


def test_a_mirrored_run_resumes(tmp_path):
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        trainer = make_trainer(tmp_path / "whole", **PRUNED)
        uninterrupted = trainer, trainer.train()
        trainer = make_trainer(tmp_path / "stopped", **PRUNED)
        crash_at(trainer, "step", 4)
        with pytest.raises(Crash):
            trainer.train()
        trainer = make_trainer(tmp_path / "stopped", **PRUNED)
        assert_same_run((trainer, trainer.train()), uninterrupted)


def test_a_damaged_checkpoint_is_named(tmp_path):
    trainer = make_trainer(tmp_path)
    crash_at(trainer, "step", 4)
    with pytest.raises(Crash):
        trainer.train()
    [data] = tmp_path.glob("checkpoint/ckpt-*.data*")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(UserError, match="ckpt-2, is damaged.*--overwrite"):
        make_trainer(tmp_path).train()


def interrupt_at(trainer, number, step):
    """Sends this process a signal while it takes a step."""
    run_step = trainer._run_step

    def interrupted(batch):
        if int(trainer.model.steps_done) == step - 1:
            os.kill(os.getpid(), number)
        return run_step(batch)

    trainer._run_step = interrupted


def test_a_second_signal_acts_at_once(tmp_path):
    trainer = make_trainer(tmp_path)

    def interrupted(batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not stopped")

    trainer._run_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_masks_are_restored_with_the_weights(tmp_path):
    plan = {"num_steps": 2}
    trainer = make_trainer(tmp_path, plan=plan, final=0.75)
    trainer.train()
    again = make_trainer(tmp_path, plan=plan, final=0.75)
    assert again._restore()[0] == 2
    for name, wrapper in again.model.pruner.wrappers.items():
        theirs = trainer.model.pruner.wrappers[name]
        for ours, before in zip(
            wrapper.pruning_vars[0], theirs.pruning_vars[0], strict=True
        ):
            np.testing.assert_array_equal(ours, before)


# === What goes wrong ===


def poison(model, at_step, in_gradient=False):
    """Makes the loss of one step, or only its gradient, not a number."""
    losses_of = model.losses_of

    @tf.custom_gradient
    def spoil(value):
        def gradient(upstream):
            return upstream * np.nan

        return tf.identity(value), gradient

    def poisoned(batch):
        losses = losses_of(batch)
        if int(model.steps_done) == at_step - 1:
            if in_gradient:
                losses["loss"] = spoil(losses["loss"])
            else:
                losses["loss"] = losses["loss"] * np.nan
        return losses

    model.losses_of = poisoned


@pytest.mark.parametrize("in_gradient", [False, True])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    tmp_path, in_gradient
):
    trainer = make_trainer(tmp_path, plan={"log_steps": 100})
    poison(trainer.model, at_step=6, in_gradient=in_gradient)
    with pytest.raises(UserError) as error:
        trainer.train()
    message = str(error.value)
    assert re.search("not finite (at|after) step 6", message)
    assert f"{tmp_path}/checkpoint/ckpt-4" in message
    assert f"The model of step 4 is {tmp_path}/checkpoint/best." in message
    assert "--learning_rate" in message
    assert records_of(tmp_path)[-1]["step"] == 4
    again = make_trainer(tmp_path)
    assert again._restore()[0] == 4
    for name, array in bert.get_weights(again.model.student).items():
        assert np.isfinite(array).all(), name


def test_the_step_that_failed_is_named_not_the_one_that_noticed(tmp_path):
    trainer = make_trainer(tmp_path, plan={"save_steps": 100, "log_steps": 100})
    poison(trainer.model, at_step=2)
    with pytest.raises(UserError, match="(?s)at step 2 .*No checkpoint"):
        trainer.train()


def test_a_full_disk_keeps_the_former_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path)
    save = trainer._snapshots.manager.save

    def with_little_space(checkpoint_number):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if checkpoint_number == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            return save(checkpoint_number=checkpoint_number)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    trainer._snapshots.manager.save = with_little_space
    with pytest.raises(UserError, match=f"(?s){tmp_path}.*Free some space"):
        trainer.train()
    again = make_trainer(tmp_path)
    assert again._restore()[0] == 2
    assert again.train()["global_step"] > 2


# === Killed, in processes of their own ===


def final_results(directory):
    """What a finished run holds, without what time it took."""
    results = read_results(directory / "eval_results.txt")
    return {
        "results": without_times(results),
        "metrics": (directory / "metrics.jsonl").read_bytes(),
        "model": (directory / "model.safetensors").read_bytes(),
    }


def test_a_run_that_is_killed_again_and_again_ends_bit_by_bit_alike(tmp_path):
    task = {"name": "SST-2", "labels": ["0", "1"]}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    log = tmp_path / "log"
    process = tiny_runs.start_command(
        log,
        "train",
        "--task_name=SST-2",
        f"--data_dir={tiny_runs.write_sst2(tmp_path / 'data')}",
        f"--init_checkpoint={tiny_runs.write_checkpoint(tmp_path / 'init')}",
        "--teacher_checkpoint="
        + tiny_runs.write_checkpoint(tmp_path / "teacher", task, seed=1),
        "--distill=logits,hidden,attention",
        *("--pruning=magnitude", "--sparsity=0.8", "--pruning_end=0.5"),
        f"--output_dir={whole}",
        *tiny_runs.QUICK,
        *("--max_steps=40", "--eval_steps=10", "--save_steps=3"),
    )
    process.join()
    assert process.exitcode == 0, log.read_text()
    # Its own flags give the run again.
    command = ("train", f"--flagfile={whole}/flags.cfg")
    command += (f"--output_dir={killed}",)
    for number, status in (
        *((signal.SIGKILL, -9), (signal.SIGTERM, 130), (signal.SIGKILL, -9)),
    ):
        process = tiny_runs.start_command(log, *command)
        state = killed / "checkpoint" / "checkpoint"
        before = state.read_text() if state.exists() else ""
        while process.is_alive():
            if state.exists() and state.read_text() != before:
                time.sleep(random.uniform(0.0, 0.1))
                break
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.join()
        assert process.exitcode == status, log.read_text()
        assert not (killed / "DONE").exists()
    process = tiny_runs.start_command(log, *command)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert final_results(killed) == final_results(whole)
    assert "resumed" in log.read_text()
    kernels = costs.total(
        load_checkpoint(killed).weights[name]
        for name in bert.encoder_kernels(CONFIG)
    )
    assert kernels.sparsity == pytest.approx(0.8, abs=1e-3)
