"""Parts of a checkpoint: one task of several, or what a structure keeps."""

import dataclasses

from bert_pruning.commands import flags as shared
from bert_pruning.compression import surgery
from bert_pruning.compression.structure import Structure
from bert_pruning.data import tasks


def find_part(checkpoint, name):
    """Returns the task of a run of several that a name means, or None.

    Models of one task may serve another: AX is answered by MNLI's.
    """
    if "," in name or name.lower() in shared.SPECIAL_TASKS:
        return None
    task = tasks.get_task(name)
    names = (task.name, task.model_task)
    return next((n for n in names if n in checkpoint.tasks), None)


def shared_encoder(checkpoint):
    """Returns a run of several tasks without their classifiers."""
    weights = {
        name: array
        for name, array in checkpoint.weights.items()
        if not name.startswith("classifier_")
    }
    return dataclasses.replace(checkpoint, weights=weights, tasks={})


def task_part(checkpoint, name):
    """Returns the model of one task of a run of several, cut to its ticket.

    Args:
        checkpoint: Checkpoint.
        name: str. The task's.
    """
    about = checkpoint.tasks[name]
    part = shared_encoder(checkpoint)
    classifier = {
        f"classifier/{kind}": checkpoint.weights[f"classifier_{name}/{kind}"]
        for kind in ("kernel", "bias")
    }
    part = dataclasses.replace(
        part, weights={**part.weights, **classifier}, task=about["task"]
    )
    if about["structure"] is None:
        return part
    return cut(part, Structure.from_dict(about["structure"], checkpoint.path))


def cut(checkpoint, structure):
    """Returns the part of a checkpoint that a structure keeps.

    Raises:
        UserError: if the structure is one of another shape.
    """
    config, weights = surgery.shrink(
        checkpoint.config, checkpoint.weights, structure
    )
    return dataclasses.replace(checkpoint, config=config, weights=weights)
