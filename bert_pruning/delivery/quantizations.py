"""How the formats of `export` keep numbers.

Imports no TensorFlow: flags are made of it.
"""

from bert_pruning.errors import UserError

# "none": as they are in the model.
QUANTIZATIONS = ("none", "float16", "dynamic_int8", "int8")

# By the name that --format takes.
OF_FORMAT = {
    "tflite": QUANTIZATIONS,
    "saved_model": ("none",),
    "huggingface": ("none", "float16"),
    "compressed_tensors": ("none", "float16", "int8"),
    "official": ("none",),
}


def check(name: str, quantization: str) -> None:
    """Checks that a format has numbers of such a kind.

    Args:
        name: str. Of the format.
        quantization: str. One of `QUANTIZATIONS`.

    Raises:
        UserError: if not.
    """
    known = OF_FORMAT[name]
    if quantization not in known:
        raise UserError(
            f"--format={name} has --quantization={' or '.join(known)}. "
            f"Received: {quantization}."
        )
