"""What the flags name, loaded: checkpoint, tokenizer, data and classifier.

Imports TensorFlow, so the commands import it late, after the flags are read.
"""

from absl import flags

from bert_pruning.commands import flags as shared
from bert_pruning.data import pipeline
from bert_pruning.data import tasks
from bert_pruning.data.tokenization import BertTokenizer
from bert_pruning.errors import UserError
from bert_pruning.modeling import bert
from bert_pruning.modeling import checkpoints

FLAGS = flags.FLAGS


def load_checkpoint(path):
    """Loads a checkpoint that reads sequences as long as the flags say."""
    checkpoint = checkpoints.load_checkpoint(path)
    for note in checkpoint.notes:
        shared.LOG.info("%s: %s", path, note)
    shared.check_length(checkpoint.config)
    return checkpoint


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
        task.name,
        split,
        len(dataset),
        dataset.lengths.mean(),
        skipped,
    )
    return examples, dataset


def restore_classifier(checkpoint, task):
    """Builds the model of a fine-tuned checkpoint for a task.

    Returns:
        A model whose outputs stand in the order of the task's labels.

    Raises:
        UserError: if the checkpoint has no classifier or another task's.
    """
    weights = classifier_weights(checkpoint, task)
    model = bert.build_model(checkpoint.config, task.num_outputs)
    bert.set_weights(model, weights, initialized=())
    return model


def classifier_weights(checkpoint, task):
    """Returns a fine-tuned checkpoint's weights, outputs in the task's order.

    Hugging Face checkpoints may number the same labels otherwise; they are
    matched by name.
    """
    if "classifier/kernel" not in checkpoint.weights:
        raise UserError(
            f"{checkpoint.path} has no classifier: it is pre-trained, not "
            f"fine-tuned. Fine-tune it on {task.name} first."
        )
    stored = checkpoint.task or {}
    name = stored.get("name")
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
    labels = stored.get("labels") or ()
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


def stored_task(checkpoint):
    """Returns the task a run was trained on, or None."""
    if checkpoint.task is None or "splits" not in checkpoint.task:
        return None
    return tasks.Task.from_dict(checkpoint.task)


def evaluation_task(checkpoint):
    """Returns the task of the flags, or of the checkpoint where not given."""
    stored = stored_task(checkpoint)
    if FLAGS.task_name is None:
        if stored is None:
            raise UserError(
                f"{checkpoint.path} does not say its task. Add --task_name."
            )
        return stored
    if FLAGS.task_name.lower() == "custom" and stored is not None:
        # Its classes are stored; the training file is needed no more.
        return stored
    return shared.find_task()
