"""Asks a served model about texts; needs nothing but Python.

    python docs/serving_client.py --url=http://localhost:8501/v1/models/mrpc \
        --text_a="It rains." --text_b="It is raining."

Any `--name=value` is an input of the signature `serving_default`; a name
that is given several times makes a batch.
"""

import argparse
import http.client
import json
import sys
import urllib.error
import urllib.request


def predict(url, rows, timeout=30.0):
    """Sends rows of inputs to a model of TensorFlow Serving.

    Args:
        url: str. Such as "http://localhost:8501/v1/models/mrpc".
        rows: list of dicts from the name of an input to its text.
        timeout: float. Seconds.

    Returns:
        A list of dicts, or of values where the model has one output.

    Raises:
        RuntimeError: with the server's own words.

    Example:

    ```python
    predict(url, [{"text_a": "It rains.", "text_b": "It is raining."}])
    # [{"label": "1", "score": 0.98, "probabilities": [0.02, 0.98]}]
    ```

    Reference: [REST API](https://www.tensorflow.org/tfx/serving/api_rest).
    """
    if not url.startswith(("http://", "https://")):
        raise RuntimeError(f"--url must begin with http://. Received: {url}")
    request = urllib.request.Request(
        f"{url.rstrip('/')}:predict",
        json.dumps({"instances": rows}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            reply = json.load(response)
    except urllib.error.HTTPError as error:
        raise RuntimeError(
            f"The server refused: {error.read().decode(errors='replace')}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise RuntimeError(
            f"No answer from {url}: {reason}. Was the server started?"
        ) from error
    except ValueError as error:
        raise RuntimeError(
            f"What answers at {url} is not TensorFlow Serving: {error}"
        ) from error
    if "predictions" not in reply:
        raise RuntimeError(f"The server refused: {json.dumps(reply)}")
    return reply["predictions"]


def main(arguments):
    """Predicts what the command line says; prints a line for each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    known, others = parser.parse_known_args(arguments)
    inputs = {}
    for argument in others:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            parser.error(
                f"Inputs are given as --name=text. Received: {argument}"
            )
        inputs.setdefault(name, []).append(value)
    if not inputs or len({len(values) for values in inputs.values()}) > 1:
        parser.error("Give each input equally often, and at least once.")
    names = list(inputs)
    rows = [
        dict(zip(names, values, strict=True))
        for values in zip(*inputs.values(), strict=True)
    ]
    try:
        found = predict(known.url, rows)
    except RuntimeError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    for prediction in found:
        print(json.dumps(prediction))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
