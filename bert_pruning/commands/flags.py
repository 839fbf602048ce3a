"""The flags that several commands share.

`commands/` is the only room that reads flags; below it everything is plain
values.
"""

import logging

from absl import flags

from bert_pruning.errors import UserError

FLAGS = flags.FLAGS
LOG = logging.getLogger("bert_pruning")


def define_data_flags():
    """Defines what to read: the task, its files and how they are encoded."""
    flags.DEFINE_string(
        "task_name",
        None,
        "CoLA, SST-2, MRPC, MRPC-MSR, STS-B, QQP, MNLI, QNLI, RTE, WNLI, AX, "
        "or custom.",
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder that holds one folder per task with the official GLUE files, "
        "or the task's own folder, or 'tfds' for TensorFlow Datasets.",
    )
    flags.DEFINE_integer(
        "max_seq_length", 128, "Longest sequence, in tokens.", lower_bound=4
    )
    flags.DEFINE_integer(
        "eval_batch_size", 64, "Examples per evaluation batch.", lower_bound=1
    )
    flags.DEFINE_bool(
        "do_lower_case",
        None,
        "Whether texts are lower-cased; left out, the checkpoint tells.",
    )
    flags.DEFINE_string(
        "cache_dir", None, "Keeps tokenised data here for the next run."
    )
    flags.DEFINE_string("text_a_column", "text_a", "task_name=custom: column.")
    flags.DEFINE_string(
        "text_b_column", None, "task_name=custom: column of the second text."
    )
    flags.DEFINE_string("label_column", "label", "task_name=custom: column.")


def require(*names):
    """Checks that flags were given.

    Raises:
        UserError: naming those that are missing.
    """
    missing = [f"--{name}" for name in names if not FLAGS[name].value]
    if missing:
        raise UserError(f"Missing: {', '.join(missing)}.")


def flags_as_text():
    """Returns the command's flags as a flagfile that gives the run again."""
    lines = []
    for name in sorted(FLAGS):
        flag = FLAGS[name]
        ours = flag.help and _is_ours(name) and name != "overwrite"
        if ours and flag.value is not None:
            lines.append(flag.serialize())
    return "\n".join(line for line in lines if line) + "\n"


def _is_ours(name):
    module = FLAGS.find_module_defining_flag(name)
    return bool(module) and module.startswith("bert_pruning.")


def find_task():
    """Returns the task that the flags name."""
    from bert_pruning.data import tasks

    custom = {}
    if FLAGS.task_name.lower() == "custom":
        custom = {
            "data_dir": FLAGS.data_dir,
            "text_a": FLAGS.text_a_column,
            "text_b": FLAGS.text_b_column,
            "label": FLAGS.label_column,
        }
    return tasks.get_task(FLAGS.task_name, **custom)


def find_tokenizer(checkpoint):
    """Returns the tokenizer of a checkpoint, checked against the flags."""
    from bert_pruning.data.tokenization import BertTokenizer
    from bert_pruning.modeling.checkpoints import resolve_do_lower_case

    return BertTokenizer(
        checkpoint.vocabulary,
        resolve_do_lower_case(checkpoint, FLAGS.do_lower_case),
    )


def read_encoded(task, split, tokenizer):
    """Reads one split and encodes it; says how large it is."""
    from bert_pruning.data import pipeline
    from bert_pruning.data import tasks

    examples = tasks.read_examples(task, FLAGS.data_dir, split)
    dataset = pipeline.encode_examples(
        examples, tokenizer, FLAGS.max_seq_length, FLAGS.cache_dir
    )
    skipped = f", {examples.skipped} rows skipped" if examples.skipped else ""
    LOG.info(
        "%s %s: %d examples, %.1f tokens each%s",
        task.name,
        split,
        len(dataset),
        dataset.lengths.mean(),
        skipped,
    )
    return examples, dataset


def check_length(config):
    """Checks that the model reads sequences as long as the flags say."""
    if FLAGS.max_seq_length > config.max_position_embeddings:
        raise UserError(
            f"--max_seq_length={FLAGS.max_seq_length} is longer than the "
            f"{config.max_position_embeddings} positions of the model."
        )


def restore_classifier(checkpoint, task):
    """Builds the model of a fine-tuned checkpoint for a task.

    Returns:
        A model whose outputs stand in the order of the task's labels.

    Raises:
        UserError: if the checkpoint has no classifier or another task's.
    """
    from bert_pruning.modeling import bert

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
    from bert_pruning.data.tasks import Task

    if checkpoint.task is None or "splits" not in checkpoint.task:
        return None
    return Task.from_dict(checkpoint.task)


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
    return find_task()
