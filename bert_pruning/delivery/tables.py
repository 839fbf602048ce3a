"""Tables in Markdown."""


def as_markdown(header, rows, num_labels=1):
    """Formats a table, names to the left and figures to the right.

    Args:
        header: sequence of str.
        rows: sequence of sequences of str. What a row lacks is left empty.
        num_labels: int. The columns that hold names, at the left.

    Returns:
        str. Its lines.

    Example:

    >>> print(as_markdown(["model", "MB"], [["whole", "90.9"], ["cut"]]))
    | model | MB |
    |---|---:|
    | whole | 90.9 |
    | cut | |
    """
    width = len(header)
    lines = [
        "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"
        for cells in (
            header,
            *([*row, *[""] * (width - len(row))] for row in rows),
        )
    ]
    rule = "---|" * num_labels + "---:|" * (width - num_labels)
    return "\n".join([lines[0], "|" + rule, *lines[1:]])
