"""Parts of a checkpoint: one task of several, or what a structure keeps."""

import dataclasses

from bert_pruning.commands import flags as shared
from bert_pruning.compression import surgery
from bert_pruning.compression.structure import Structure
from bert_pruning.data import tasks
from bert_pruning.errors import UserError


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
    ticket = ticket_of(checkpoint, name)
    if ticket is None:
        return part
    shared.LOG.info("%s: the part that %s uses", checkpoint.path, name)
    return cut(part, ticket)


def ticket_of(checkpoint, name):
    """Returns the structure of one task of a run of several, or None.

    Args:
        checkpoint: Checkpoint.
        name: str. The task's.
    """
    values = checkpoint.tasks[name]["structure"]
    if values is None:
        return None
    return Structure.from_dict(values, checkpoint.path)


def cut(checkpoint, structure):
    """Returns the part of a checkpoint that a structure keeps.

    Raises:
        UserError: if the structure is one of another shape.
    """
    config, weights = surgery.shrink(
        checkpoint.config, checkpoint.weights, structure
    )
    return dataclasses.replace(checkpoint, config=config, weights=weights)


def keep_structure(run, name, structure, path):
    """Writes a structure that a run was given into it.

    Args:
        run: Run. Begun.
        name: str. The file's, in the run.
        structure: Structure.
        path: str. Where it was read.

    Raises:
        UserError: if the run goes on, and was begun with another.
    """
    kept = run.path(name)
    if run.is_resumed and kept.exists():
        begun = Structure.load(str(kept))
        if begun.units != structure.units:
            raise UserError(
                f"{path} is not what it was when {run.directory}, which is "
                f"unfinished, was begun with it. Put that back, from {kept}, "
                "or add --overwrite to start anew."
            )
        return
    with run.writing():
        structure.save(kept)
