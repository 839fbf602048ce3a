"""The front door: what the commands do, and how they refuse bad input.

Every refusal exits with status 2, names what was received without a
traceback, comes before any long work, and loses nothing that was there.
"""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import tiny_runs
from defined_flags import defined_flags
from folders import contents

from bert_pruning.commands import assembly
from bert_pruning.commands import distillation_flags
from bert_pruning.commands import flags as shared
from bert_pruning.commands import inputs
from bert_pruning.commands import multitask
from bert_pruning.commands import pretraining
from bert_pruning.commands import pruning_flags
from bert_pruning.commands import question_answering
from bert_pruning.compression import costs
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling.checkpoints import load_checkpoint
from bert_pruning.training import distillation
from bert_pruning.training import evaluation
from bert_pruning.training import trainer
from bert_pruning.training.run import read_results

SST2 = {"name": "SST-2", "labels": ["0", "1"]}


pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, checkpoints and a finished sparse run."""
    folder = tmp_path_factory.mktemp("place")
    tiny_runs.write_sst2(folder / "data")
    tiny_runs.write_checkpoint(folder / "init")
    tiny_runs.write_checkpoint(folder / "teacher", SST2, seed=1)
    status, out, err = train(
        folder,
        f"--teacher_checkpoint={folder}/teacher",
        "--distill=logits,hidden,attention",
        *("--pruning=magnitude", "--sparsity=0.75", "--pruning_end=0.5"),
        f"--output_dir={folder}/run",
    )
    assert status == 0, err
    (folder / "out").write_text(out)
    return folder


def train(folder, *flags):
    """Runs `train` with what it needs; later flags override."""
    return tiny_runs.run_command(
        "train",
        "--task_name=SST-2",
        f"--data_dir={folder}/data",
        f"--init_checkpoint={folder}/init",
        *tiny_runs.QUICK,
        *flags,
    )


# === What they do ===


def test_train_leaves_a_finished_sparse_run(place):
    run = place / "run"
    assert {path.name for path in run.iterdir()} == {
        *("DONE", "config.json", "eval_results.txt", "events", "flags.cfg"),
        *("metrics.jsonl", "model.safetensors", "tokenizer_config.json"),
        "vocab.txt",
    }
    results = read_results(run / "eval_results.txt")
    assert results.keys() == {
        *("eval_accuracy", "eval_loss", "eval_time", "global_step"),
        *("loss", "sparsity", "train_time"),
    }
    assert results["sparsity"] == 0.75
    checkpoint = load_checkpoint(run)
    kernels = [
        costs.count(checkpoint.weights[name]).sparsity
        for name in bert.encoder_kernels(checkpoint.config)
    ]
    assert kernels == [0.75] * 6
    assert checkpoint.task["labels"] == ["0", "1"]
    out = (place / "out").read_text()
    assert (run / "eval_results.txt").read_text() in out
    assert f"Run: {run}" in out


def test_metrics_hold_every_evaluation(place):
    lines = (place / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [2, 4]
    assert [record["sparsity"] for record in records] == [0.75, 0.75]
    assert records[0].keys() == {
        *("step", "epoch", "loss", "sparsity", "parameters"),
        *("eval_accuracy", "eval_loss"),
    }


def test_the_flags_of_a_run_are_a_flagfile(place):
    text = (place / "run" / "flags.cfg").read_text()
    lines = text.splitlines()
    assert "--sparsity=0.75" in lines
    assert "--distill=logits,hidden,attention" in lines
    assert "--nojit_compile" in lines
    assert not any("overwrite" in line for line in lines)
    assert all(line.startswith("--") for line in lines)


def test_evaluate_finds_what_train_found(place):
    status, out, err = tiny_runs.run_command(
        *("evaluate", f"--init_checkpoint={place}/run"),
        f"--data_dir={place}/data",
        f"--output_dir={place}/evaluation",
    )
    assert status == 0, err
    found = read_results(place / "evaluation" / "eval_results.txt")
    trained = read_results(place / "run" / "eval_results.txt")
    assert found["eval_accuracy"] == trained["eval_accuracy"]
    assert found["eval_loss"] == pytest.approx(trained["eval_loss"], rel=1e-5)
    assert found["sparsity"] == 0.75
    assert out == (place / "evaluation" / "eval_results.txt").read_text()


def test_predict_writes_a_submission(place):
    status, out, err = tiny_runs.run_command(
        *("predict", f"--init_checkpoint={place}/run"),
        f"--data_dir={place}/data",
        *("--max_seq_length=16", f"--output_dir={place}/submission"),
    )
    assert status == 0, err
    lines = (place / "submission" / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert [line.split("\t")[0] for line in lines[1:]] == list("012345")
    assert {line.split("\t")[1] for line in lines[1:]} <= {"0", "1"}
    assert "SST-2.tsv: 6 predictions" in out


def test_a_regression_on_ones_own_data_learns_from_the_teachers_scores(
    place, tmp_path
):
    data = tmp_path / "data"
    data.mkdir()
    for seed, split in enumerate(("train", "dev")):
        texts, labels = tiny_runs.sentences(8, seed)
        rows = zip(texts, labels + np.arange(8) / 10, strict=True)
        header = ["review", "mean"]
        tiny_runs.write_table(data / f"{split}.tsv", header, rows)
    custom = (
        *("--task_name=custom", f"--data_dir={data}"),
        *("--text_a_column=review", "--label_column=mean"),
    )
    status, out, err = train(
        place, *custom, f"--output_dir={tmp_path}/teacher", "--max_steps=2"
    )
    assert status == 0, err
    assert "eval_spearman" in out
    status, out, err = train(
        place,
        *custom,
        f"--teacher_checkpoint={tmp_path}/teacher",
        *("--distill=logits", f"--output_dir={tmp_path}/student"),
        "--max_steps=2",
    )
    assert status == 0, err
    assert "other data" not in err
    # Another folder with the same columns is another task of one's own.
    shutil.copytree(data, tmp_path / "other")
    status, out, err = train(
        place,
        *(*custom, f"--data_dir={tmp_path}/other", "--distill=logits"),
        f"--init_checkpoint={tmp_path}/teacher",
        f"--teacher_checkpoint={tmp_path}/teacher",
        *(f"--output_dir={tmp_path}/third", "--max_steps=1"),
    )
    assert status == 0, err
    told = "teacher was trained on other data, data (review, mean)."
    assert f"The teacher {tmp_path}/{told}\n" in err
    assert f"{told} A new classifier is trained." in err
    # The run knows its task.
    status, out, err = tiny_runs.run_command(
        *("evaluate", f"--init_checkpoint={tmp_path}/student"),
        *(f"--data_dir={data}", "--max_seq_length=16"),
    )
    assert status == 0, err
    assert "eval_pearson" in out


def test_a_run_of_the_same_task_gives_its_classifier(place, tmp_path):
    options = ("--max_steps=1", "--learning_rate=0")
    for init, expected in (("teacher", True), ("init", False)):
        status, _, err = train(
            place,
            *(f"--init_checkpoint={place}/{init}", *options),
            f"--output_dir={tmp_path}/{init}",
        )
        assert status == 0, err
        assert ("New weights: classifier" not in err) == expected
    kernels = [
        load_checkpoint(path).weights["classifier/kernel"]
        for path in (place / "teacher", tmp_path / "teacher")
    ]
    np.testing.assert_array_equal(*kernels)


def test_overwrite_replaces_a_finished_run(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    status, _, err = train(
        place,
        *(f"--output_dir={tmp_path}/run", "--overwrite", "--max_steps=1"),
    )
    assert status == 0, err
    results = read_results(tmp_path / "run" / "eval_results.txt")
    assert results["sparsity"] == 0.0
    assert results["global_step"] == 1


def test_ctrl_c_exits_with_status_130(place, tmp_path, monkeypatch):
    for stop in (
        trainer.Interrupted("Stopped after step 1"),
        KeyboardInterrupt,
    ):

        def stopped(self, stop=stop):
            raise stop

        monkeypatch.setattr(trainer.Trainer, "train", stopped)
        status, _, err = train(place, f"--output_dir={tmp_path}/run")
        assert status == 130
        assert "Stopped" in err
        assert "Traceback" not in err


def test_precision_and_devices_are_set_by_flags(place, tmp_path, monkeypatch):
    seen = []

    def noting(self):
        seen.append(keras.mixed_precision.global_policy().name)
        seen.append(self._stepper.strategy.num_replicas_in_sync)
        raise trainer.Interrupted("Stopped")

    monkeypatch.setattr(trainer.Trainer, "train", noting)
    train(
        place,
        *(f"--output_dir={tmp_path}/run", "--mixed_precision=float16"),
    )
    assert seen == ["mixed_float16", 1]


def test_help_lists_flags_with_their_defaults():
    status, out, _ = tiny_runs.run_command("--help")
    assert status == 0
    for command in ("train", "evaluate", "predict", "report"):
        assert command in out
        status, text, _ = tiny_runs.run_command(command, "--help")
        assert status == 0
        assert "--init_checkpoint" in text
    assert tiny_runs.run_command()[0] == 2
    status, out, _ = tiny_runs.run_command("train", "--help")
    assert "--train_batch_size [32]\n" in out.replace("'", "")
    for option in ("--helpshort", "--helpfull", "-h"):
        assert tiny_runs.run_command("train", option)[1] == out


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_device_out_of_memory_is_a_mistake_to_mend(
    place, tmp_path, monkeypatch, command
):
    def exhausted(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    monkeypatch.setattr(evaluation.Evaluator, "evaluate", exhausted)
    flags = (f"--output_dir={tmp_path}/run", "--max_seq_length=16")
    if command == "train":
        status, _, err = train(place, *flags)
    else:
        status, _, err = tiny_runs.run_command(
            *(command, f"--init_checkpoint={place}/run"),
            *(f"--data_dir={place}/data", *flags),
        )
    assert status == 2
    assert "out of memory" in err
    assert "lower --eval_batch_size=64" in err
    for name in ("lower --train_batch", "raise --gradient_accumulation_steps"):
        assert (name in err) == (command == "train")


def test_a_full_disk_is_not_taken_for_a_full_device(place, monkeypatch):
    def full(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left")

    monkeypatch.setattr(evaluation.Evaluator, "evaluate", full)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        tiny_runs.run_command(
            *("evaluate", f"--init_checkpoint={place}/run"),
            *(f"--data_dir={place}/data", "--max_seq_length=16"),
        )


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_gpu_memory_grows_in_every_command(place, monkeypatch, command):
    def asked():
        raise UserError("asked for the GPUs")

    monkeypatch.setattr(inputs, "find_gpus", asked)
    _, _, err = tiny_runs.run_command(
        *(command, f"--init_checkpoint={place}/none", "--data_dir=none"),
        *(("--output_dir=none",) if command == "predict" else ()),
    )
    assert "asked for the GPUs" in err
    _, _, err = train(place, f"--output_dir={place}/none")
    assert "asked for the GPUs" in err


# === Bad input ===


@pytest.fixture
def refused(place, tmp_path, monkeypatch):
    """A function that runs `train` on a finished run and expects a refusal."""

    def long_work(*_, **__):
        raise AssertionError("a model was built before the refusal")

    monkeypatch.setattr(bert, "build_model", long_work)
    shutil.copytree(place / "run", tmp_path / "run")

    def refuse(*flags, output_dir=tmp_path / "run", command=None):
        before = contents(tmp_path)
        flags = (f"--output_dir={output_dir}", "--overwrite", *flags)
        if command:
            status, out, err = tiny_runs.run_command(command, *flags)
        else:
            status, out, err = train(place, *flags)
        assert contents(tmp_path) == before
        assert status == 2, (status, err)
        assert err.count("Error: ") == 1
        assert "Traceback" not in err
        return err

    return refuse


def test_a_missing_or_empty_data_folder_is_named(refused, tmp_path):
    assert f"{tmp_path}/none" in refused(f"--data_dir={tmp_path}/none")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path}/empty" in refused(f"--data_dir={tmp_path}/empty")
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file" in refused(f"--data_dir={tmp_path}/file")


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_missing_split_is_named(refused, place, tmp_path, split):
    data = tmp_path / "data"
    shutil.copytree(place / "data", data)
    (data / "SST-2" / f"{split}.tsv").unlink()
    assert f"{split}.tsv" in refused(f"--data_dir={data}")


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("text", ["", "sentence\tlabel\n"])
def test_a_split_without_rows_is_named(refused, place, tmp_path, split, text):
    data = tmp_path / "data"
    shutil.copytree(place / "data", data)
    (data / "SST-2" / f"{split}.tsv").write_text(text)
    assert f"{split}.tsv" in refused(f"--data_dir={data}")


def test_an_unknown_task_is_named(refused):
    error = refused("--task_name=SST-3")
    assert "SST-3" in error
    assert "MRPC" in error


def test_a_task_without_training_data_is_refused(refused):
    assert "MNLI" in refused("--task_name=AX")


def test_an_unknown_flag_is_named(place, tmp_path):
    for flag, named in (
        ("--learning_rat=1", "learning_rat"),
        ("--optimizer=sgd", "sgd"),
        (f"--seed={2**31}", "seed"),
        ("--pruning_frequency=-1", "pruning_frequency"),
        ("--flagfile=none.cfg", "none.cfg"),
    ):
        status, out, err = train(place, flag)
        assert status == 2
        assert err.startswith("Error: ")
        assert named in err
        assert err.endswith("bert_pruning train --help\n")
        assert not out


def test_what_is_no_flag_is_named(refused):
    assert "jit_compile=true" in refused("jit_compile=true")


def test_an_unknown_command_is_named():
    status, _, err = tiny_runs.run_command("tain")
    assert status == 2
    assert "'tain'" in err


def test_missing_flags_are_all_named():
    status, _, err = tiny_runs.run_command("train", "--data_dir=x")
    assert status == 2
    assert "--task_name, --init_checkpoint, --output_dir" in err


@pytest.mark.parametrize(
    "part", ["config.json", "model.safetensors", "vocab.txt"]
)
@pytest.mark.parametrize("flag", ["init_checkpoint", "teacher_checkpoint"])
def test_a_checkpoint_with_a_part_missing_or_truncated_is_named(
    refused, place, tmp_path, part, flag
):
    path = tmp_path / "broken"
    shutil.copytree(place / "teacher", path)
    data = (path / part).read_bytes()
    flags = (f"--{flag}={path}",)
    if flag == "teacher_checkpoint":
        flags += ("--distill=logits",)
    (path / part).write_bytes(data[: len(data) // 2])
    assert str(path) in refused(*flags)
    (path / part).unlink()
    error = refused(*flags)
    assert str(path) in error
    assert part in error


def test_a_missing_checkpoint_is_named(refused, tmp_path):
    assert f"{tmp_path}/none" in refused(f"--init_checkpoint={tmp_path}/none")


def test_a_vocabulary_of_another_size_is_refused(refused, place, tmp_path):
    path = tmp_path / "init"
    shutil.copytree(place / "init", path)
    with open(path / "vocab.txt", "a") as file:
        file.write("more\n")
    size = len(tiny_runs.VOCABULARY)
    error = refused(f"--init_checkpoint={path}")
    assert str(path) in error
    assert f"{size + 1} entries" in error
    assert f"has {size} " in error


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ({"name": "MRPC", "labels": ["0", "1"]}, {}, "MRPC, not on SST-2"),
        ({"name": "MNLI", "labels": list("abc")}, {}, "MNLI, not on SST-2"),
        ({"labels": list("abc")}, {}, "3 outputs, but SST-2 needs 2"),
        ({"labels": []}, {}, "1 outputs, but SST-2 needs 2"),
        (None, {}, "no classifier"),
        (
            SST2,
            {"vocabulary": (*tiny_runs.VOCABULARY[:-1], "other")},
            "different vocabularies",
        ),
        (SST2, {"max_position_embeddings": 8}, "8 positions"),
        (SST2, {"num_heads": 4}, "heads"),
        (SST2, {"hidden_size": 32}, "student 16, teacher 32"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    refused, tmp_path, task, options, message
):
    path = tiny_runs.write_checkpoint(tmp_path / "teacher", task, **options)
    error = refused(
        f"--teacher_checkpoint={path}", "--distill=logits,hidden,attention"
    )
    assert message in error


def test_a_teacher_at_chance_is_warned_about(place, tmp_path, monkeypatch):
    weights = load_checkpoint(place / "teacher").weights
    weights["classifier/kernel"] *= 0
    path = tmp_path / "teacher"
    tiny_runs.save_huggingface(
        path,
        *(tiny_runs.tiny_config(), weights, tiny_runs.VOCABULARY, True, SST2),
    )

    def stopped(self):
        raise trainer.Interrupted("Stopped before training")

    monkeypatch.setattr(trainer.Trainer, "train", stopped)
    _, _, err = train(
        place,
        *(f"--teacher_checkpoint={path}", "--distill=logits"),
        f"--output_dir={tmp_path}/run",
    )
    assert "no better than chance" in err
    assert "eval_accuracy = 0.5000" in err
    assert err.index("chance") < err.index("Stopped before training")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sparsity=1.0"], "--sparsity"),
        (["--sparsity=-0.1"], "-0.1"),
        (["--sparsity=nan"], "--sparsity must be finite"),
        ([], "--sparsity"),
        (["--sparsity=0.5", "--pruning=none"], "--pruning=magnitude"),
        (["--sparsity=0.5", "--initial_sparsity=0.6"], "0.6 and 0.5"),
        (["--sparsity=0.5", "--pruning_frequency=9"], "pruning_frequency=9"),
        (["--sparsity=0.5", "--pruning_end=1.5"], "--pruning_end"),
        (
            ["--sparsity=0.5", "--pruning_begin=0.9", "--pruning_end=0.2"],
            "may not end before it begins",
        ),
        (["--sparsity=0.5", "--sparsity_m_by_n=2:4"], "2:4"),
        (["--sparsity=0.9", "--sparsity_m_by_n=2x4"], "0.9"),
        (["--sparsity=0.5", "--block_size=4"], "--block_size"),
        (["--sparsity=0.5", "--prune_targets=layer_9_*"], "'layer_9_*' fits"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(refused, flags, message):
    assert message in refused("--pruning=magnitude", *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distill=logits"], "--distill needs --teacher_checkpoint"),
        (["--teacher_checkpoint=x"], "--teacher_checkpoint needs --distill"),
        (["--hard_label_weight=0"], "nothing to learn"),
        (["--temperature=2"], "--temperature needs logits"),
        (["--layer_map=0,1"], "--layer_map needs hidden or attention"),
        (["--hidden_weight=2"], "--hidden_weight needs hidden"),
        (["--sparsity=0.5"], "--sparsity needs --pruning=magnitude"),
        (["--pruning_end=0.5"], "--pruning_end needs --pruning=magnitude"),
        (["--sparsity_m_by_n=2x4"], "--sparsity_m_by_n needs --pruning"),
        (["--num_train_epochs=inf"], "--num_train_epochs must be finite"),
        (["--num_train_epochs=nan"], "--num_train_epochs must be finite"),
        (["--learning_rate=nan"], "--learning_rate must be finite"),
        (["--label_column=stars"], "--label_column needs --task_name=custom"),
        (["--regression"], "--regression needs --task_name=custom"),
        (["--task_name=custom", "--label_column="], "--label_column needs the"),
        (["--gradient_accumulation_steps=5"], "5 and 4"),
        (["--max_seq_length=17"], "--max_seq_length=17"),
        (["--do_lower_case=false"], "--do_lower_case=false"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(refused, flags, message):
    assert message in refused(*flags)


def test_no_epochs_are_no_training():
    status, _, err = tiny_runs.run_command(
        *("train", "--task_name=SST-2", "--data_dir=d", "--output_dir=o"),
        *("--init_checkpoint=i", "--num_train_epochs=0"),
    )
    assert status == 2
    assert "--num_train_epochs must be positive. Received: 0.0" in err


def test_a_teachers_features_and_map_are_checked(refused, place):
    teacher = f"--teacher_checkpoint={place}/teacher"
    assert "'logit'" in refused(teacher, "--distill=logit")
    assert "-1" in refused(teacher, "--distill=logits", "--temperature=-1")
    for layer_map in ("0,x", "0,2", "0"):
        error = refused(
            *(teacher, "--distill=logits,hidden", f"--layer_map={layer_map}")
        )
        assert layer_map in error or f"Received: {len(layer_map)}" in error


def test_the_features_are_those_that_have_a_loss():
    assert set(distillation_flags.FEATURES) == set(distillation.LOSSES)


def test_a_classifier_that_nothing_teaches_is_refused(refused, place):
    teacher = f"--teacher_checkpoint={place}/teacher"
    hidden = (teacher, "--distill=hidden,attention")
    assert "neither the teacher nor the labels" in refused(*hidden)
    # Past this check, to the next mistake.
    error = refused(*hidden, "--hard_label_weight=1", "--data_dir=none")
    assert "'none'" in error


@pytest.mark.parametrize("feature", distillation_flags.FEATURES)
def test_a_feature_without_weight_is_refused(refused, place, feature):
    error = refused(
        *(f"--teacher_checkpoint={place}/teacher", f"--{feature}_weight=0"),
        "--distill=logits,hidden,attention",
    )
    assert f"--{feature}_weight=0 leaves nothing of {feature}" in error


def test_pruning_is_checked_before_the_data_are_read(refused):
    none = ("--data_dir=none", "--pruning=magnitude", "--sparsity=0.5")
    assert "'none'" in refused(*none)
    assert "'none'" not in refused(*none, "--prune_targets=layer_9_*")
    for block in ("0x1", "3x1", "1x3"):
        assert "'none'" not in refused(*none, f"--block_size={block}")


def test_the_flags_of_a_dense_run_can_be_given_back(refused, tmp_path):
    # It names every flag, also those that need others.
    with defined_flags("train") as flags:
        flags(["train", "--max_seq_length=16"])
        (tmp_path / "flags.cfg").write_text(shared.flags_as_text())
    error = refused(f"--flagfile={tmp_path}/flags.cfg", "--data_dir=none")
    assert "'none'" in error


def test_a_finished_run_is_not_touched(refused, tmp_path):
    error = refused("--nooverwrite")
    assert f"{tmp_path}/run" in error
    assert "--overwrite" in error


def test_an_unfinished_run_is_not_resumed_with_other_flags(refused, tmp_path):
    (tmp_path / "run" / "DONE").unlink()
    (tmp_path / "run" / "checkpoint").mkdir()
    error = refused("--nooverwrite", "--seed=43")
    assert "--seed: begun with 42, now 43" in error
    assert "--sparsity: begun with 0.75, now not set" in error
    assert "--output_dir" not in error


def test_an_output_directory_that_cannot_be_written_is_named(refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"{path}" in refused(output_dir=path)


def test_the_zeros_of_a_sparse_run_are_kept(place, tmp_path):
    flags = ("--pruning=magnitude", "--sparsity=0.75", "--pruning_end=0.5")
    status, _, err = train(place, *flags, f"--output_dir={tmp_path}/sparse")
    assert status == 0, err
    flags = ("--pruning=lock", "--sparsity=0.7", "--weight_decay=0.1")
    status, _, err = train(
        *(place, *flags, f"--output_dir={tmp_path}/locked"),
        f"--init_checkpoint={tmp_path}/sparse",
    )
    assert status == 0, err
    before = load_checkpoint(str(tmp_path / "sparse"))
    after = load_checkpoint(str(tmp_path / "locked"))
    for name in bert.encoder_kernels(before.config):
        one, other = before.weights[name], after.weights[name]
        np.testing.assert_array_equal(one == 0, other == 0, name)
        assert (one != other).any()
    status, _, err = train(
        *(place, f"--output_dir={tmp_path}/dense", "--pruning=none"),
        f"--init_checkpoint={tmp_path}/sparse",
    )
    assert status == 0
    assert "sparse has zeros in 6 kernels. They will not stay: to keep" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pruning=lock"], "this one is dense"),
        (["--lr_schedule=rewind"], "needs --pruning=magnitude"),
        (["--keep=last", "--patience=1"], "--keep=last would not keep"),
        (
            ["--pruning=magnitude", "--sparsity=0.5", "--patience=1"],
            "Give --pruning_end, such as 0.5",
        ),
        (
            [
                *("--pruning=magnitude", "--sparsity=0.5"),
                "--block_pooling_type=MAX",
            ],
            "needs --block_size",
        ),
        (["--pruning_regrowth=shadow"], "needs --pruning=magnitude"),
        (
            [
                *("--pruning=magnitude", "--sparsity=0.5"),
                *("--lr_schedule=rewind", "--pruning_end=0.9"),
            ],
            "more than the warm-up",
        ),
        (
            [
                *("--pruning=magnitude", "--sparsity=0.5"),
                *("--pruning_update_end=0.2", "--pruning_end=0.5"),
                "--pruning_regrowth=shadow",
            ],
            "--pruning_update_end must not be before",
        ),
    ],
)
def test_ways_to_prune_that_cannot_be_are_refused(
    place, tmp_path, flags, message
):
    run = tmp_path / "run"
    status, _, err = train(place, *flags, f"--output_dir={run}")
    assert status == 2
    assert message in err
    assert not run.exists() or not any(run.iterdir())


def test_patience_may_wait_for_what_is_pruned_at_once(place, tmp_path):
    status, _, err = train(
        *(place, f"--output_dir={tmp_path}/run", "--pruning=magnitude"),
        *("--sparsity=0.5", "--initial_sparsity=0.5", "--patience=1"),
    )
    assert status == 0, err


def test_columns_of_zeros_are_warned_of(tmp_path, caplog):
    path = tiny_runs.write_checkpoint(tmp_path / "model", SST2)
    checkpoint = load_checkpoint(path)
    for name in bert.encoder_kernels(checkpoint.config):
        checkpoint.weights[name][:, ::2] = 0.0
    with defined_flags("train") as flags:
        for final, is_said in (("0.3", True), ("0.6", False)):
            flags(["train", "--pruning=magnitude", f"--sparsity={final}"])
            caplog.clear()
            pruning_flags.check_model(checkpoint)
            said = "kernels that are pruned 0.5000 lie in rows" in caplog.text
            assert said == is_said


def test_flags_that_scores_do_not_read_are_told(caplog):
    with defined_flags("train") as flags, caplog.at_level("INFO"):
        flags(["train", "--temperature=2"])
        distillation_flags.note_regression("STS-B")
        assert "STS-B is a regression" in caplog.text
        assert caplog.text.rstrip().endswith("without --temperature.")
        caplog.clear()
        flags(["train", "--temperature=1"])
        distillation_flags.note_regression("STS-B")
        assert not caplog.text


def test_a_loss_that_diverges_stops_with_the_step(place, tmp_path):
    status, _, err = train(
        place,
        *("--learning_rate=1e38", "--warmup_proportion=0"),
        f"--output_dir={tmp_path}/run",
    )
    assert status == 2
    assert "not finite at step 2" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "DONE").exists()


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_what_cannot_be_scored_is_refused(place, tmp_path, command):
    output_dir = tmp_path / "new"
    common = (f"--data_dir={place}/data", "--max_seq_length=16")
    run = f"--init_checkpoint={place}/run"
    for flags, message in (
        ([f"--init_checkpoint={place}/init"], "--task_name"),
        ([f"--init_checkpoint={place}/init", "--task_name=SST-2"], "fine-tune"),
        ([run, "--task_name=MRPC"], "trained on SST-2, not on MRPC"),
        ([run, "--split=validation"], "'validation'"),
        ([run, f"--data_dir={tmp_path}/none"], f"{tmp_path}/none"),
    ):
        status, _, err = tiny_runs.run_command(
            command, *common, *flags, f"--output_dir={output_dir}"
        )
        assert status == 2, err
        assert message in err
        assert not output_dir.exists() or not any(output_dir.iterdir())


def test_evaluate_refuses_a_run_as_its_output(place, tmp_path):
    begun = tmp_path / "begun"
    shutil.copytree(place / "run", begun)
    (begun / "DONE").unlink()
    (begun / "checkpoint").mkdir()
    for run in (place / "run", begun):
        before = contents(run)
        status, _, err = tiny_runs.run_command(
            *("evaluate", f"--init_checkpoint={place}/run"),
            *(f"--data_dir={place}/data", f"--output_dir={run}"),
        )
        assert status == 2
        assert f"{run} holds a run of train" in err
        assert "--overwrite" not in err
        assert contents(run) == before


@pytest.mark.parametrize(
    ("road", "last_check"),
    [
        (assembly, "_read_data"),
        (multitask, "_build"),
        (pretraining, "_build"),
        (question_answering, "_build"),
    ],
)
def test_all_is_checked_before_anything_is_cleared(road, last_check):
    """The order that the refusals above rest on."""
    source = road.train.__code__.co_names
    assert source.index(last_check) < source.index("begin")


def test_a_kernel_that_is_not_there_clears_nothing(place, tmp_path):
    """Blocks are checked in the classifier's columns, the task's classes."""
    run = tmp_path / "run"
    flags = (f"--output_dir={run}", "--max_steps=1")
    assert train(place, *flags)[0] == 0
    before = contents(run)
    status, _, err = train(
        *(place, *flags, "--overwrite", "--pruning=magnitude"),
        *("--sparsity=0.5", "--prune_targets=classifier", "--block_size=1x3"),
    )
    assert status == 2
    assert "does not divide the kernel of classifier, 16 x 2" in err
    assert contents(run) == before
