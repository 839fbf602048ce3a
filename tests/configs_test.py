"""Every flagfile can be read, and says how it is used."""

import shlex
from pathlib import Path

import pytest
from defined_flags import defined_flags

from bert_pruning.commands.recipe_file import read_recipe
from bert_pruning.compression.tickets import Level
from bert_pruning.modeling.config import BertConfig

ROOT = Path(__file__).parents[1]
FLAGFILES = sorted((ROOT / "configs").rglob("*.cfg"))
RECIPES = sorted((ROOT / "configs").rglob("*.recipe"))
# Before any task.
PRETRAIN = ROOT / "configs" / "pruneofa" / "pretrain.recipe"


def named(path):
    return str(path.relative_to(ROOT))


def header(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    length = next(i for i, line in enumerate(lines) if line[:1] != "#")
    return [line[1:].strip() for line in lines[:length]]


def commands(path):
    """The commands in a flagfile's header, each as a list of arguments."""
    text = "\n".join(header(path)).replace("\\\n", " ")
    return [
        shlex.split(line)[3:]
        for line in text.splitlines()
        if line.startswith("python -m bert_pruning ")
    ]


def read_stages(path, task, **given):
    """The stages of a recipe for a task, or several with commas between."""
    values = {name: name for name in ("data_dir", "init_checkpoint")}
    values.update(task_name=task, task=task.lower())
    return read_recipe(named(path), {**values, **given}, Path("out"))


def test_there_are_flagfiles_for_each_purpose():
    names = {named(path) for path in FLAGFILES}
    assert names >= {
        "configs/finetune.cfg",
        "configs/sparsebert/mrpc.cfg",
        "configs/sparsebert/qnli.cfg",
        "configs/minilm/prune.cfg",
        "configs/demo/run_all.cfg",
    }


@pytest.mark.parametrize("path", [*FLAGFILES, *RECIPES], ids=named)
def test_a_file_says_its_command_and_time(path):
    flag = "recipe" if path.suffix == ".recipe" else "flagfile"
    found = commands(path)
    assert any(f"--{flag}={named(path)}" in command for command in found)
    assert any(line.startswith("time:") for line in header(path))


@pytest.mark.parametrize("path", FLAGFILES, ids=named)
def test_a_flagfile_and_its_commands_have_flags_that_exist(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command, *arguments in commands(path):
        # Those of a task come with its data.
        arguments = [a for a in arguments if not a.endswith("/task.cfg")]
        with defined_flags(command) as flags:
            assert flags([command, *arguments])[1:] == []


@pytest.mark.parametrize("path", FLAGFILES, ids=named)
def test_a_flagfile_includes_no_other(path):
    # A relative path in it would only be found from one folder.
    assert "\n--flagfile" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "task", "epochs"),
    [("mrpc", "MRPC", 12), ("qnli", "QNLI", 5)],
)
def test_sparsebert_has_its_published_settings(name, task, epochs):
    with defined_flags("train") as flags:
        path = ROOT / "configs" / "sparsebert" / f"{name}.cfg"
        flags(["train", f"--flagfile={path}"])
        assert flags.task_name == task
        assert flags.num_train_epochs == epochs
        assert flags.sparsity == 0.95
        assert flags.learning_rate == 3e-5
        assert flags.lr_schedule == "constant"
        assert flags.optimizer == "bert_adam"
        assert flags.train_batch_size == 32
        assert flags.max_seq_length == 128
        assert flags.eval_steps == 200
        assert flags.distill == ["logits", "hidden", "attention"]


def test_finetuning_has_the_published_settings():
    with defined_flags("train") as flags:
        flags(["train", f"--flagfile={ROOT / 'configs' / 'finetune.cfg'}"])
        assert flags.optimizer == "bert_adam"
        assert flags.lr_schedule == "official"
        assert flags.num_train_epochs == 3.0
        assert flags.warmup_proportion == 0.1
        assert flags.weight_decay == 0.01
        assert flags.clip_norm == 1.0


# Super Tickets' epochs, of base and large.
EPOCHS = {
    "MNLI": (3, 3),
    "QNLI": (3, 5),
    "QQP": (6, 5),
    "SST-2": (6, 4),
    "MRPC": (6, 6),
    "CoLA": (6, 6),
    "RTE": (6, 6),
    "STS-B": (6, 6),
}
DROPOUT = {"MNLI": "0.2", "CoLA": "0.05"}


def check_mtdnn(flags):
    assert flags.optimizer == "adamax"
    assert flags.learning_rate == 5e-5
    assert (flags.lr_schedule, flags.warmup_proportion) == ("linear", 0.1)
    assert (flags.weight_decay, flags.clip_norm) == (0.01, 1.0)
    assert flags.train_batch_size == 32
    assert flags.max_seq_length == 512
    assert flags.keep == "last"
    assert flags.seed == 2018


@pytest.mark.parametrize("task", EPOCHS)
@pytest.mark.parametrize("place", [0, 1])
def test_super_tickets_have_their_published_settings(task, place):
    folder = ROOT / "configs" / "supertickets" / ("base", "large")[place]
    with defined_flags("train") as flags:
        flags(["train", f"--flagfile={folder / task.lower()}.cfg"])
        check_mtdnn(flags)
        assert flags.num_train_epochs == EPOCHS[task][place]
        assert flags.classifier_dropout == [DROPOUT.get(task, "0.1")]


@pytest.mark.parametrize(
    ("size", "config", "left_out"),
    [
        (
            *("base", {"hidden_size": 768, "num_layers": 12, "num_heads": 12}),
            "RTE 14/1 QQP 14/1 QNLI 14/1 MRPC 43/3 SST-2 28/2 STS-B 14/1",
        ),
        (
            *(
                "large",
                {"hidden_size": 1024, "num_layers": 24, "num_heads": 16},
            ),
            "MNLI 38/2 RTE 76/4 QQP 76/4 QNLI 19/1 MRPC 115/6 SST-2 134/7 "
            "CoLA 153/8 STS-B 76/4",
        ),
    ],
)
def test_tickets_are_shared_as_published(size, config, left_out):
    config = BertConfig.uniform(vocab_size=30522, **config)
    path = ROOT / "configs" / "supertickets" / f"sharing_{size}.recipe"
    *_, multitask, sharing = read_stages(path, ",".join(EPOCHS))
    with defined_flags("train") as flags:
        flags(multitask.command[3:])
        assert flags.tickets == []
    with defined_flags("train") as flags:
        flags(sharing.command[3:])
        check_mtdnn(flags)
        assert set(flags.task_name.split(",")) == set(EPOCHS)
        assert flags.num_train_epochs == 5
        assert flags.classifier_dropout == ["0.1", "MNLI:0.2", "CoLA:0.05"]
        assert flags.sampling_temperature == 1.0
        found = [ticket.partition(":") for ticket in flags.tickets]
    for task, _, file in found:
        assert Path(file).parent.name == f"tickets_{task.lower()}_2018"
    levels = [
        Level.parse(Path(file).stem.removeprefix("winning_"), config)
        for _, _, file in found
    ]
    words = [f"{t} {n}" for (t, *_), n in zip(found, levels, strict=True)]
    assert " ".join(words) == left_out


@pytest.mark.parametrize(("part", "epochs"), [(100, 6), (10, 3), (5, 3)])
def test_a_part_of_mnli_has_its_published_settings(part, epochs):
    folder = ROOT / "configs" / "supertickets"
    path = folder / "base" / f"mnli_1_of_{max(part, 10)}.cfg"
    stages = read_stages(
        *(folder / "phases.recipe", "MNLI"),
        part=path.stem.removeprefix("mnli"),
        fraction=str(1 / part),
    )
    assert f"--train_fraction={1 / part}" in stages[5].arguments
    assert stages[5].name == "score"
    with defined_flags("train") as flags:
        flags(stages[0].command[3:])
        assert flags.train_fraction == 1 / part
        assert flags.learning_rate == 1e-4
        assert flags.num_train_epochs == epochs
        assert flags.optimizer == "adamax"


# === Recipes ===


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_the_stages_of_a_recipe_have_flags_that_exist(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [word for command in commands(path) for word in command]
    given = [word.split("=", 2)[1:] for word in words if word[:6] == "--set="]
    tasks = [*EPOCHS, "SQuAD"]
    published = [task for task in tasks if task in " ".join(header(path))]
    if path.name == PRETRAIN.name:
        published = [""]
    assert published
    if "sharing" in path.stem:
        published = [",".join(published)]
    for task in published:
        stages = read_stages(path, task, **dict(given))
        for stage in stages:
            with defined_flags(stage.name) as flags:
                assert flags(stage.command[3:])[1:] == []


def test_sparse_pre_training_has_its_published_settings():
    stages = read_stages(PRETRAIN, "", texts="corpus")
    assert [stage.name for stage in stages] == ["prepare", *["train"] * 3]
    for stage, sparsity in zip(stages[2:], (0.85, 0.9), strict=True):
        with defined_flags("train") as flags:
            flags(stage.command[3:])
            assert flags.sparsity == sparsity
            assert flags.max_steps == 100_000
            assert flags.train_batch_size == 256
            assert flags.warmup_proportion * flags.max_steps == 1_000
            assert flags.lr_schedule == "rewind"
            ramp = flags.pruning_end, flags.pruning_update_end
            assert [share * flags.max_steps for share in ramp] == [5e4, 8e4]
            assert flags.pruning_frequency == 1_000
            assert flags.pruning_regrowth == "shadow"
            weights = flags.logits_weight, flags.hard_label_weight
            assert weights == (0.5, 0.5)
            assert (flags.temperature, flags.logits_loss) == (2.0, "kl")


def flags_of(stages):
    """What `train` reads in each stage, by the stage's folder."""
    found = {}
    for stage in stages:
        if stage.name == "train":
            with defined_flags("train") as flags:
                flags(stage.command[3:])
                found[stage.directory.name] = flags.flag_values_dict()
    return found


@pytest.mark.parametrize("sparsity", [80, 90])
def test_the_zeros_of_pre_training_are_compared_with_those_of_a_task(sparsity):
    folder = ROOT / "configs" / "pruneofa" / "minilm"
    before = flags_of(read_stages(folder / PRETRAIN.name, "", texts="corpus"))
    stages = flags_of(
        read_stages(
            folder / "transfer.recipe", "STS-B", pretraining="P", seed="3"
        )
    )
    assert {flags["seed"] for flags in stages.values()} == {3}
    sparse, locked, alone = (
        before[f"sparse_{sparsity}"],
        stages[f"locked_{sparsity}_3"],
        stages[f"alone_{sparsity}_3"],
    )
    steps = sparse["max_steps"] + locked["max_steps"]
    assert alone["max_steps"] == steps
    for flags in (sparse, alone):
        every = flags["pruning_frequency"] / flags["max_steps"]
        assert every == pytest.approx(0.01, rel=0.05)
    pruned = (
        *("pruning", "sparsity", "pruning_regrowth", "pruning_end"),
        *("pruning_update_end", "lr_schedule", "warmup_proportion"),
    )
    assert [alone[name] for name in pruned] == [sparse[n] for n in pruned]
    taught = (
        *("teacher_checkpoint", "distill", "logits_loss", "temperature"),
        *("logits_weight", "hard_label_weight", "learning_rate"),
        *("train_batch_size", "max_seq_length", "optimizer", "weight_decay"),
    )
    assert [alone[name] for name in taught] == [locked[n] for n in taught]
    assert sparse["learning_rate"] == alone["learning_rate"]
    # In 8 bits they differ in nothing but what they go on with.
    ours, other = (
        {
            name: value
            for name, value in stages[f"{arm}_{sparsity}_3"].items()
            if name not in ("init_checkpoint", "output_dir")
        }
        for arm in ("int8", "alone_int8")
    )
    assert ours == other
    assert (ours["quantize"], ours["pruning"]) == ("int8", "lock")
    dense = stages["teacher_int8_3"]
    assert dense["init_checkpoint"] == dense["teacher_checkpoint"]
    assert (dense["quantize"], dense["pruning"]) == ("int8", "none")


def test_squad_has_its_published_settings():
    path = ROOT / "configs" / "pruneofa" / "squad.recipe"
    stages = flags_of(read_stages(path, "SQuAD", sparse="S"))
    assert list(stages) == ["teacher", "locked", "int8"]
    for flags in stages.values():
        assert flags["task_name"] == "SQuAD"
        assert (flags["max_seq_length"], flags["doc_stride"]) == (384, 128)
        assert flags["train_batch_size"] == 12
    for name, rate, epochs, quantize in (
        ("locked", 1.5e-4, 8, "none"),
        ("int8", 1e-5, 2, "int8"),
    ):
        flags = stages[name]
        assert flags["learning_rate"] == rate
        assert flags["num_train_epochs"] == epochs
        assert flags["quantize"] == quantize
        assert (flags["pruning"], flags["lr_schedule"]) == ("lock", "linear")
        assert flags["weight_decay"] == flags["warmup_proportion"] == 0.0
        assert (flags["temperature"], flags["logits_loss"]) == (2.0, "kl")
        assert flags["hard_label_weight"] is None
        assert flags["seed"] == 5143


# The published settings: schedule, learning rate, epochs, share of the cuts.
ROSITA = {
    "student": {
        "CoLA": ("warm-up", 2e-5, 5),
        "SST-2": ("warm-up", 2e-5, 5),
        "MNLI": ("warm-up", 5e-5, 3),
        "QNLI": ("warm-up", 2e-5, 3),
        "QQP": ("warm-up", 2e-5, 3),
    },
    "depth": {
        "CoLA": ("none", 1e-5, 10, 0.2),
        "SST-2": ("none", 2e-5, 5, 0.5),
        "MNLI": ("none", 2e-5, 2, 0.2),
        "QNLI": ("none", 3e-5, 3, 0.2),
        "QQP": ("none", 2e-5, 2, 0.2),
    },
    "one_step": {
        "CoLA": ("warm-up", 5e-5, 50),
        "SST-2": ("warm-up", 5e-5, 10),
        "MNLI": ("warm-up", 5e-5, 5),
    },
    "width3": {
        "CoLA": ("none", 1e-5, 50, 0.1),
        "SST-2": ("none", 1e-5, 10, 0.1),
        "MNLI": ("linear", 5e-5, 5, 0.1),
    },
    "width4": {
        "CoLA": ("none", 1e-5, 50, 0.01),
        "SST-2": ("none", 1e-5, 10, 0.01),
        "MNLI": ("linear", 5e-5, 5, 0.1),
        "QNLI": ("none", 3e-5, 7, 0.1),
        "QQP": ("none", 3e-5, 5, 0.1),
    },
}


@pytest.mark.parametrize(
    ("stage", "task"),
    [(stage, task) for stage, tasks in ROSITA.items() for task in tasks],
)
def test_rosita_has_its_published_settings(stage, task):
    schedule, rate, epochs, *end = ROSITA[stage][task]
    schedules = {
        "warm-up": ("linear", 0.1),
        "linear": ("linear", 0.0),
        "none": ("constant", 0.0),
    }
    path = ROOT / "configs" / "rosita" / stage / f"{task.lower()}.cfg"
    with defined_flags("train") as flags:
        flags(["train", f"--flagfile={path}"])
        found = (flags.lr_schedule, flags.warmup_proportion)
        assert found == schedules[schedule]
        assert flags.learning_rate == rate
        assert flags.num_train_epochs == epochs
        assert flags.pruning_end == (end or [1.0])[0]
        hidden = stage not in ("student", "depth")
        assert flags.distill == ["logits", "hidden"][: 1 + hidden]
        assert flags.temperature == 1.0
        assert flags.hard_label_weight == 0.0
        assert flags.optimizer == "bert_adam"
        assert flags.weight_decay == 0.01
        first = stage == "student" and task == "CoLA"
        assert flags.eval_steps == (100 if first else 500)
        patient = task == "CoLA" and hidden
        assert flags.patience == (10 if patient else None)
        short = task in ("CoLA", "SST-2")
        assert flags.max_seq_length == (64 if short else 128)
        assert flags.train_batch_size == (32 if short else 64)
        if stage == "depth":
            assert (flags.pruning, flags.num_layers) == ("depth", 8)
        elif stage.startswith("width"):
            assert (flags.pruning, flags.keep_heads) == ("width", 2)
            assert (flags.ffn_hidden_dim, flags.emb_hidden_dim) == (512, 128)
        else:
            assert flags.pruning == "none"
