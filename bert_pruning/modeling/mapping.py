"""Maps the weights of a file to ours and back, each exactly once."""

from collections.abc import Mapping

from bert_pruning.errors import UserError
from bert_pruning.modeling.config import BertConfig
from bert_pruning.modeling.names import find_tasks
from bert_pruning.modeling.names import is_harmless_extra
from bert_pruning.modeling.names import weight_table


def match_weights(
    config: BertConfig,
    stored_shapes: Mapping,
    file_format: str,
    path: str,
):
    """Maps every name of a checkpoint to one of ours, exactly once.

    Args:
        config: BertConfig. The shape that the checkpoint claims to have.
        stored_shapes: mapping from name in the file to shape in the file.
        file_format: str. "official", "huggingface" or "keras_hub".
        path: str. The checkpoint, for messages.

    Returns:
        A list of `Weight`, those that the checkpoint holds.

    Raises:
        UserError: if a weight of the encoder or a part of a head is missing,
            a name is unknown or a shape differs. It names the weights.
    """
    tasks = find_tasks(stored_shapes, file_format)
    table = weight_table(config, file_format, tasks)
    groups = {
        row.group for row in table if row.stored_name in stored_shapes
    } | {None}
    rows = [row for row in table if row.group in groups]
    missing = [
        r.stored_name for r in rows if r.stored_name not in stored_shapes
    ]
    known = {row.stored_name for row in rows}
    unknown = [
        name
        for name in stored_shapes
        if name not in known and not is_harmless_extra(name, file_format)
    ]
    if missing or unknown:
        problems = []
        if missing:
            problems.append(f"lacks {_listing(missing)}")
        if unknown:
            problems.append(
                f"has what a BERT of {config.num_layers} layers does not: "
                f"{_listing(unknown)}"
            )
        raise UserError(
            f"The checkpoint {path} {', and '.join(problems)}. Its weights "
            "and its configuration must belong together."
        )
    wrong = [
        f"{row.stored_name} is {list(stored_shapes[row.stored_name])} instead "
        f"of {_shape_text(row.stored_shape)}"
        for row in rows
        if not _same_shape(stored_shapes[row.stored_name], row.stored_shape)
    ]
    if wrong:
        raise UserError(
            f"In the checkpoint {path} the shape of {_listing(wrong)}. Its "
            "weights and its configuration must belong together."
        )
    return rows


def stored_weights(config: BertConfig, weights: Mapping, file_format: str):
    """Returns our weights under the names and in the layout of a format.

    Args:
        config: BertConfig. The shape.
        weights: mapping from canonical name to array.
        file_format: str. "official" or "huggingface".

    Returns:
        A dict from name in the file to float32 array, in the table's order.

    Raises:
        UserError: if a weight is missing, unknown or of the wrong shape.
    """
    table = weight_table(config, file_format, find_tasks(weights))
    by_name = {row.name: row for row in table}
    groups = {by_name[name].group for name in weights if name in by_name}
    missing = [
        row.name
        for row in table
        if row.group in groups | {None} and row.name not in weights
    ]
    unknown = [name for name in weights if name not in by_name]
    wrong = [
        f"{name} is {list(array.shape)} instead of "
        f"{_shape_text(by_name[name].shape)}"
        for name, array in weights.items()
        if name in by_name and not _same_shape(array.shape, by_name[name].shape)
    ]
    for problem, names in (
        ("lacks", missing),
        ("has no place in the file for", unknown),
        ("has a wrong shape:", wrong),
    ):
        if names:
            raise UserError(
                f"The model to be saved {problem} {_listing(names)}."
            )
    return {
        row.stored_name: row.convert(weights[row.name])
        for row in table
        if row.name in weights
    }


def _same_shape(actual, expected):
    return len(actual) == len(expected) and all(
        size is None or int(other) == size
        for other, size in zip(actual, expected, strict=True)
    )


def _shape_text(shape):
    return f"[{', '.join('any' if s is None else str(s) for s in shape)}]"


def _listing(names, limit=5):
    shown = ", ".join(names[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown
