r"""Scores how much each head, neuron and layer of a model matters.

    python -m bert_pruning score --init_checkpoint=runs/mrpc --data_dir=glue \
        --output_dir=scores/mrpc

Writes `scores.npz`, which `shrink` reads. Taylor scores and sensitivities take
one pass over the training set; the task is the run's own.
"""

from absl import flags

from bert_pruning.commands import distillation_flags
from bert_pruning.commands import flags as shared
from bert_pruning.errors import UserError

FLAGS = flags.FLAGS

# They need no data.
_FROM_WEIGHTS = ("magnitude", "random")
_OF_DATA = (
    "teacher_checkpoint",
    "distill",
    "hard_label_weight",
    "train_fraction",
)


def define_flags():
    """Defines the flags of `score`."""
    shared.define_data_flags()
    shared.define_subset_flags()
    distillation_flags.define()
    flags.DEFINE_string("init_checkpoint", None, "The model.")
    flags.DEFINE_string("output_dir", None, "Receives scores.npz.")
    flags.DEFINE_bool("overwrite", False, "Replace what is in --output_dir.")
    flags.DEFINE_enum(
        "method",
        "taylor",
        ["taylor", "sensitivity", *_FROM_WEIGHTS],
        "taylor: weight times gradient, by batch. sensitivity: gradient of a "
        "gate on each unit, by example. magnitude: the weights alone. random: "
        "chance, what the others have to beat.",
    )
    flags.DEFINE_enum(
        "sum_over",
        "examples",
        ["examples", "tokens"],
        "method=sensitivity: a gate for each example, or, as the code of Super "
        "Tickets has it, for each token.",
    )
    flags.DEFINE_integer("train_batch_size", 32, "Examples per batch.", 1)
    flags.DEFINE_integer(
        "seed", 42, "Of data order, dropout and random scores.", 0, 2**31 - 1
    )


def main():
    """Scores by the flags; returns the exit status."""
    check_flags()

    from bert_pruning.commands import inputs
    from bert_pruning.compression import importance
    from bert_pruning.training.run import Run

    run = Run(FLAGS.output_dir, shared.flags_as_text(), FLAGS.overwrite)
    checkpoint = inputs.load_checkpoint(FLAGS.init_checkpoint)
    config, weights = checkpoint.config, checkpoint.weights
    about = {
        "method": FLAGS.method,
        "checkpoint": checkpoint.path,
        "fingerprint": importance.fingerprint(weights),
        "seed": str(FLAGS.seed),
    }
    if FLAGS.method == "magnitude":
        run.begin()
        scores = importance.magnitude_scores(config, weights, about)
    elif FLAGS.method == "random":
        run.begin()
        scores = importance.random_scores(config, FLAGS.seed, about)
    else:
        scores = _score_on_data(checkpoint, about, run)
    with run.writing():
        scores.save(run.path("scores.npz"))
    run.complete()
    for layer, value in enumerate(scores.layers):
        heads = " ".join(f"{score:.3g}" for score in scores.heads[layer])
        print(f"layer {layer}: {value:.4g}, of which heads {heads}")
    print(f"Scores: {run.path('scores.npz')}")
    return 0


def splits_read():
    """Returns which splits of a task of GLUE are read."""
    return () if FLAGS.method in _FROM_WEIGHTS else ("train",)


def check_flags():
    """Finds what contradicts itself before anything is loaded."""
    shared.require("init_checkpoint", "output_dir")
    shared.follow_run(FLAGS.init_checkpoint)
    if shared.is_special() and FLAGS.method not in _FROM_WEIGHTS:
        raise UserError(
            f"--method={FLAGS.method} scores on labelled texts. Received: "
            f"--task_name={FLAGS.task_name}. Give --method=magnitude."
        )
    shared.check_training_tasks("score on")
    if "," in (FLAGS.task_name or ""):
        raise UserError(
            "One task is scored at a time. Received: "
            f"--task_name={FLAGS.task_name}."
        )
    if FLAGS.method not in _FROM_WEIGHTS:
        shared.require("data_dir")
    shared.check_finite()
    shared.check_subset()
    shared.check_separate(
        FLAGS.output_dir, "init_checkpoint", "teacher_checkpoint"
    )
    distillation_flags.check()
    if FLAGS.method in _FROM_WEIGHTS:
        shared.refuse_flags(_OF_DATA, f"--method={FLAGS.method}")
    if shared.is_changed("sum_over") and FLAGS.method != "sensitivity":
        raise UserError("--sum_over needs --method=sensitivity.")


def _score_on_data(checkpoint, about, run):
    from bert_pruning.commands import inputs
    from bert_pruning.data.pipeline import TrainBatches
    from bert_pruning.training.scoring import METHODS
    from bert_pruning.training.step import DistillationModel

    inputs.find_gpus()
    task = inputs.evaluation_task(checkpoint)
    shared.check_trainable(task, "score on")
    student = inputs.restore_classifier(checkpoint, task)
    teacher, matches = None, ()
    loaded = inputs.load_teacher(checkpoint, task)
    if loaded is not None:
        matches = distillation_flags.build_matches(checkpoint.config, loaded[0])
        teacher = inputs.build_classifier(*loaded, task)
    tokenizer = inputs.find_tokenizer(checkpoint)
    dataset = inputs.read_train_set(task, tokenizer)
    batches = TrainBatches(
        dataset, FLAGS.train_batch_size, FLAGS.seed, drop_remainder=False
    )
    run.begin()
    model = DistillationModel(
        student,
        teacher,
        matches,
        label_weight=distillation_flags.label_weight(),
        seed=FLAGS.seed,
    )
    about = {
        **about,
        "task": task.title,
        "examples": str(len(dataset)),
        "batch_size": str(FLAGS.train_batch_size),
        "max_seq_length": str(FLAGS.max_seq_length),
        "data_dir": FLAGS.data_dir,
        "distill": ",".join(FLAGS.distill),
    }
    if teacher is not None:
        about["teacher"] = FLAGS.teacher_checkpoint
    options = {}
    if FLAGS.method == "sensitivity":
        options["sum_over"] = about["sum_over"] = FLAGS.sum_over
    return METHODS[FLAGS.method](
        model, checkpoint.config, batches, about, **options
    )
