"""What the flags name, loaded: checkpoint, tokenizer, data and classifier.

Imports TensorFlow, so the commands import it late, after the flags are read.
"""

import dataclasses

import tensorflow as tf
import tf_keras as keras
from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.commands import parts
from bert_pruning.data import pipeline
from bert_pruning.data import subsets
from bert_pruning.data import tasks
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling import checkpoints

FLAGS = flags.FLAGS


def find_gpus():
    """Returns the GPUs, told to take memory as they need it."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return gpus


def set_precision():
    """Makes the models built from now on compute as the flags say."""
    policy = "float32"
    if FLAGS.mixed_precision != "float32":
        policy = f"mixed_{FLAGS.mixed_precision}"
    keras.mixed_precision.set_global_policy(policy)


def load_checkpoint(path):
    """Loads a checkpoint that reads sequences as long as the flags say."""
    return _prepare(checkpoints.load_checkpoint(path))


def _prepare(checkpoint):
    for note in checkpoint.notes:
        shared.LOG.info("%s: %s", checkpoint.path, note)
    shared.check_length(checkpoint.config)
    if checkpoint.tasks:
        return _of_one_task(checkpoint)
    return checkpoint


def _of_one_task(checkpoint):
    """The part of a run of several tasks for the flags' one.

    For another task, or several, it is the encoder that they share.
    """
    names = ", ".join(checkpoint.tasks)
    if not FLAGS.task_name:
        raise UserError(
            f"{checkpoint.path} was trained on {names}. Say which by "
            "--task_name."
        )
    name = parts.find_part(checkpoint, FLAGS.task_name)
    if name:
        return parts.task_part(checkpoint, name)
    shared.LOG.info(
        "%s was trained on %s; its encoder alone is taken, all of it.",
        checkpoint.path,
        names,
    )
    return parts.shared_encoder(checkpoint)


def load_models(path):
    """Loads a fine-tuned checkpoint for each task that the flags ask for.

    Args:
        path: str. Of a run of several tasks, each task's own part is loaded:
            those of --task_name, or all.

    Returns:
        A list of `Checkpoint`, its `Task`, and its weights, outputs in the
        order of the task's labels.

    Raises:
        UserError: if it was not trained on one of them.
    """
    checkpoint = checkpoints.load_checkpoint(path)
    names = (FLAGS.task_name or ",".join(checkpoint.tasks)).split(",")
    if checkpoint.tasks and len(names) > 1:
        shared.check_length(checkpoint.config)
        shared.refuse_custom_flags()
        if len({name.strip().lower() for name in names}) < len(names):
            raise UserError(
                f"--task_name names a task twice. Received: {FLAGS.task_name}."
            )
        found = [_part_for(checkpoint, name.strip()) for name in names]
    else:
        checkpoint = _prepare(checkpoint)
        found = [(checkpoint, evaluation_task(checkpoint))]
    return [(*each, classifier_weights(*each)) for each in found]


def _part_for(checkpoint, name):
    part = parts.find_part(checkpoint, name)
    if part is None:
        raise UserError(
            f"{checkpoint.path} was trained on {', '.join(checkpoint.tasks)}, "
            f"not on {name}."
        )
    return parts.task_part(checkpoint, part), tasks.get_task(name)


def find_tokenizer(checkpoint):
    """Returns the tokenizer of a checkpoint, checked against the flags."""
    return BertTokenizer(
        checkpoint.vocabulary,
        checkpoints.resolve_do_lower_case(checkpoint, FLAGS.do_lower_case),
    )


def read_encoded(task, split, tokenizer):
    """Reads one split and encodes it; says how large it is."""
    examples = tasks.read_examples(task, FLAGS.data_dir, split)
    dataset = pipeline.encode_examples(
        examples, tokenizer, FLAGS.max_seq_length, FLAGS.cache_dir
    )
    skipped = f", {examples.skipped} rows skipped" if examples.skipped else ""
    shared.LOG.info(
        "%s %s: %d examples, %.1f tokens each%s",
        task.title,
        split,
        len(dataset),
        dataset.lengths.mean(),
        skipped,
    )
    return examples, dataset


def read_train_set(task, tokenizer):
    """Reads the training set, or what the flags take of it, and encodes it."""
    _, dataset = read_encoded(task, "train", tokenizer)
    found = subsets.draw_subset(
        dataset, FLAGS.train_fraction, FLAGS.subset_seed
    )
    if len(found) < len(dataset):
        shared.LOG.info("%s train: %d of them", task.title, len(found))
    return found


def restore_classifier(checkpoint, task):
    """Builds the model of a fine-tuned checkpoint for a task.

    Returns:
        A model whose outputs stand in the order of the task's labels.

    Raises:
        UserError: if the checkpoint has no classifier or another task's.
    """
    weights = classifier_weights(checkpoint, task)
    return build_classifier(checkpoint.config, weights, task)


def build_classifier(config, weights, task):
    """Builds the model of a task with all its weights."""
    model = bert.build_model(config, task.num_outputs)
    bert.set_weights(model, weights, initialized=())
    return model


def classifier_weights(checkpoint, task):
    """Returns a fine-tuned checkpoint's weights, outputs in the task's order.

    Other programs may number the same labels otherwise. They are matched by
    name; of a checkpoint without names the order is assumed, and said.
    """
    if "classifier/kernel" not in checkpoint.weights:
        raise UserError(
            f"{checkpoint.path} has no classifier for {task.name}: it was not "
            f"fine-tuned on it. Train it on {task.name} first."
        )
    name = model_task(checkpoint)
    if name and name != task.model_task:
        raise UserError(
            f"{checkpoint.path} was trained on {name}, not on "
            f"{task.model_task}."
        )
    outputs = checkpoint.weights["classifier/kernel"].shape[1]
    if outputs != task.num_outputs:
        raise UserError(
            f"{checkpoint.path} predicts {outputs} outputs, but {task.name} "
            f"needs {task.num_outputs}. It is the model of another task."
        )
    labels = (checkpoint.task or {}).get("labels")
    if labels is None:
        labels = _assumed_labels(checkpoint, task)
    # Hugging Face checkpoints often spell their labels in capitals.
    order = [
        task.label_id(label)
        if task.label_id(label) is not None
        else task.label_id(label.lower())
        for label in labels
    ]
    if None in order:
        raise UserError(
            f"{checkpoint.path} was trained on the labels "
            f"{', '.join(labels)}; {task.name} has "
            f"{', '.join((*task.labels, *task.label_names))}."
        )
    weights = dict(checkpoint.weights)
    if order != sorted(order):
        columns = [order.index(i) for i in range(outputs)]
        weights["classifier/kernel"] = weights["classifier/kernel"][:, columns]
        weights["classifier/bias"] = weights["classifier/bias"][columns]
    return weights


def load_teacher(checkpoint, task):
    """Loads the teacher that the flags name, for a student and its task.

    Returns:
        Its shape and its weights, outputs in the task's order; None without a
        teacher.

    Raises:
        UserError: if it is no teacher of this student.
    """
    teacher = load_teacher_checkpoint(checkpoint)
    if teacher is None:
        return None
    other = other_data(teacher, task)
    if other:
        shared.LOG.warning(
            "The teacher %s was trained on other data, %s.", teacher.path, other
        )
    return teacher.config, classifier_weights(teacher, task)


def load_teacher_checkpoint(checkpoint):
    """Loads the checkpoint of the teacher that the flags name.

    Returns:
        A `Checkpoint`, or None without a teacher.

    Raises:
        UserError: if it reads other tokens than the student.
    """
    if not FLAGS.teacher_checkpoint:
        return None
    teacher = load_checkpoint(FLAGS.teacher_checkpoint)
    if teacher.vocabulary != checkpoint.vocabulary:
        raise UserError(
            f"The teacher {FLAGS.teacher_checkpoint} and "
            f"{FLAGS.init_checkpoint} have different vocabularies; they would "
            "read different texts."
        )
    return teacher


def _assumed_labels(checkpoint, task):
    labels = task.labels
    if checkpoint.source == "official" and task.tf1_labels:
        labels = task.tf1_labels
    if labels:
        shared.LOG.info(
            "%s does not name its labels; assuming this order: %s",
            checkpoint.path,
            ", ".join(labels),
        )
    return labels


def model_task(checkpoint):
    """Returns the name of the task of a checkpoint's classifier, or None."""
    stored = checkpoint.task or {}
    return stored.get("trained_as") or stored.get("name")


def other_data(checkpoint, task):
    """Says on which data a run was trained, if on others of one's own.

    All tasks of one's own have one name, and two of them may have equal
    labels.

    Returns:
        str. Empty if the data are the same, or nothing is known of them.
    """
    stored = stored_task(checkpoint)
    if stored is None or {stored.name, task.name} != {"custom"}:
        return ""
    theirs, ours = _data_of(stored), _data_of(task)
    if not stored.data_name:  # Runs did not always keep it.
        theirs, ours = theirs[1:], ours[1:]
    return "" if theirs == ours else " ".join(theirs)


def _data_of(task):
    split = task.splits["train"]
    columns = (split.text_a, split.text_b, split.label)
    return (
        task.data_name,
        f"({', '.join(column for column in columns if column)})",
    )


def stored_task(checkpoint):
    """Returns the task a run was trained on, or None."""
    if checkpoint.task is None or "splits" not in checkpoint.task:
        return None
    return tasks.Task.from_dict(checkpoint.task)


def evaluation_task(checkpoint):
    """Returns the task of the flags, or of the checkpoint where not given.

    Of a run and `--task_name=custom`: the run's labels and metrics, so that
    the training file is needed no more, with the columns of the flags.
    """
    stored = stored_task(checkpoint)
    if FLAGS.task_name is None and stored is None:
        raise UserError(
            f"{checkpoint.path} does not say its task. Add --task_name."
        )
    if stored is None:
        return shared.find_task()
    if shared.is_custom() or (
        FLAGS.task_name is None and stored.name == "custom"
    ):
        return _on_own_data(stored)
    if FLAGS.task_name is None:
        shared.refuse_custom_flags()
        return stored
    return shared.find_task()


def _on_own_data(task):
    """A task on a person's own files, with the columns of the flags."""
    if FLAGS.regression not in (None, task.is_regression):
        predicted = "scores" if task.is_regression else "classes"
        raise UserError(
            f"The model predicts {predicted}. Received: "
            f"--{'' if FLAGS.regression else 'no'}regression."
        )
    is_custom = task.name == "custom"
    files = {name: split.file for name, split in task.splits.items()}
    columns = {
        part: getattr(task.splits["train"], part)
        if is_custom and not FLAGS[flag].present
        else FLAGS[flag].value
        for part, flag in shared.COLUMNS.items()
    }
    return dataclasses.replace(
        task,
        name="custom",
        trained_as=task.model_task,
        folder="",
        splits=tasks.custom_splits(**columns, files=files if is_custom else {}),
        skip_malformed=False,
        tfds=(),
    )
