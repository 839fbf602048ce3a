"""What a folder holds, to compare it with what it held."""


def contents(folder):
    """Every file below a folder, with what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
