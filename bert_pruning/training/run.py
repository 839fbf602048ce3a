"""A run: the directory that one command writes and the next one reads.

A finished run is a Hugging Face checkpoint with its flags, metrics and
TensorBoard events beside it:

    config.json  model.safetensors  vocab.txt  tokenizer_config.json
    flags.cfg  metrics.jsonl  eval_results.txt  events/  DONE

While it trains, `checkpoint/` holds what a killed run resumes from, and
`checkpoint/best/` the model to be kept so far, the best or the last, itself a
checkpoint.
"""

import contextlib
import json
import os
import pathlib
import shutil

from bert_pruning.errors import UserError
from bert_pruning.outputs import check_writable

# What does not change the trained weights may differ when a run resumes.
RESUMABLE_FLAGS = frozenset(
    {
        "beam",
        "cache_dir",
        "eval_batch_size",
        "log_steps",
        "output_dir",
        "overwrite",
        "save_steps",
    }
)


# Of a run that trained nothing: how texts are cut for what it was made from.
TEXTS_FILE = "texts.cfg"

# Files of a run that have a number or a level in their names.
_FAMILIES = (
    "train_aug-*-of-*",
    "train-*-of-*.tfrecord*",
    "dev-*-of-*.tfrecord*",
    "winning_*.json",
    "losing_*.json",
    "random_*.json",
    "ticket_*.json",
)


class Run:
    """A run directory: new, to be resumed, or refused.

    Making a `Run` checks that it can be written and changes nothing that is
    there; `begin` does.

    Args:
        directory: str. Where the run is written.
        flags: str. The command's flags as a flagfile's text.
        overwrite: bool. Start anew over a run that is already there.
        files: sequence of str. Files of the run that may be a person's own;
            where nothing says that a run wrote them, they stay.

    Raises:
        UserError: if the run is finished, was begun with other flags, would
            replace what no run has written, or the directory cannot be
            written.

    Example:

    ```python
    run = Run("runs/mrpc", flags="--learning_rate=5e-5\\n")
    run.is_resumed  # False
    run.begin()
    ```
    """

    def __init__(
        self, directory, flags="", overwrite=False, files=("config.json",)
    ):
        self.directory = pathlib.Path(directory)
        self._flags = flags
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(
                f"--output_dir must be a directory. Received: {directory}, "
                "which is a file."
            )
        if self.path("DONE").exists() and not overwrite:
            raise UserError(
                f"{directory} holds a finished run. Choose another "
                "--output_dir, or add --overwrite to replace it."
            )
        begun = self.path("flags.cfg")
        own = [name for name in files if self.path(name).exists()]
        if own and not begun.exists():
            raise UserError(
                f"{directory} holds {', '.join(own)} of no run, which would be "
                "replaced. Choose another --output_dir."
            )
        check_writable(self.directory)
        self.is_resumed = not overwrite and is_begun(self.directory)
        if self.is_resumed:
            _check_same_flags(directory, begun.read_text(), flags)

    def begin(self):
        """Clears what is to be overwritten and writes `flags.cfg`."""
        with self.writing():
            if self.path("flags.cfg").exists() and not self.is_resumed:
                self._clear()
            shutil.rmtree(self.path("discarded"), ignore_errors=True)
            self.write_text("flags.cfg", self._flags)

    def path(self, *parts):
        """Returns the path of a file in the run's directory."""
        return self.directory.joinpath(*parts)

    @contextlib.contextmanager
    def writing(self):
        """Turns a failed write into an error that says what to do."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"Cannot write to {self.directory}: {error.strerror or error}"
                ". Free some space or choose another --output_dir; what was "
                "there is unchanged, and the same command, without "
                "--overwrite, resumes the run."
            ) from error

    def write_text(self, name, text):
        """Writes a file whole or not at all."""
        with self.writing():
            path = self.path(name)
            temporary = path.with_name(f".{path.name}.tmp")
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)

    def write_metrics(self, records):
        """Writes `metrics.jsonl`, one JSON object per evaluation."""
        lines = [json.dumps(record) + "\n" for record in records]
        self.write_text("metrics.jsonl", "".join(lines))

    def write_results(self, results):
        """Writes `eval_results.txt`, sorted `key = value` lines."""
        lines = [f"{key} = {results[key]}\n" for key in sorted(results)]
        self.write_text("eval_results.txt", "".join(lines))

    def save_best(self, save):
        """Replaces `checkpoint/best` by what `save(directory)` writes."""
        with self.writing():
            best = self.path("checkpoint", "best")
            fresh = self.path("checkpoint", "best.new")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            save(str(fresh))
            shutil.rmtree(best, ignore_errors=True)
            os.replace(fresh, best)

    def finish(self, results):
        """Puts the kept model in place and marks the run as done."""
        with self.writing():
            for source in sorted(self.path("checkpoint", "best").iterdir()):
                temporary = self.path(f".{source.name}.tmp")
                shutil.copyfile(source, temporary)
                os.replace(temporary, self.path(source.name))
            self.write_results(results)
            self.write_text("DONE", "")
            # As large as three models, and of no more use.
            shutil.rmtree(self.path("checkpoint"), ignore_errors=True)

    def complete(self):
        """Marks the run as done; of a command that trains nothing."""
        with self.writing():
            self.write_text("DONE", "")
            shutil.rmtree(self.path("checkpoint"), ignore_errors=True)

    def _clear(self):
        # A kill in between must leave neither half a finished run, nor half a
        # checkpoint to resume from, nor the old model as the new run's.
        self.path("DONE").unlink(missing_ok=True)
        if self.path("checkpoint").exists():
            shutil.rmtree(self.path("discarded"), ignore_errors=True)
            os.replace(self.path("checkpoint"), self.path("discarded"))
        for name in ("events", "saved_model"):
            shutil.rmtree(self.path(name), ignore_errors=True)
        for name in (
            *("config.json", "model.safetensors", "tokenizer_config.json"),
            *("vocab.txt", "metrics.jsonl", "eval_results.txt", "flags.cfg"),
            *("scores.npz", "structure.json", "augment.json", TEXTS_FILE),
            *("prepare.json", "model.tflite", "export.json", "README.md"),
            *("bert_config.json", "bert_model.ckpt.index"),
            *("bert_model.ckpt.data-00000-of-00001",),
            *("phases.csv", "phases.md", "phases.png", "tickets.json"),
            *("union.json", "complement.json"),
        ):
            self.path(name).unlink(missing_ok=True)
        for pattern in _FAMILIES:
            for path in self.directory.glob(pattern):
                path.unlink()


def read_results(path):
    """Reads a file of `key = value` lines into a dict of floats.

    Raises:
        UserError: if the file cannot be read.
    """
    results = {}
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"Cannot read the results {path}: {error.strerror}."
        ) from error
    for line in text.splitlines():
        key, _, value = line.partition(" = ")
        results[key] = float(value)
    return results


def is_begun(directory):
    """Whether a directory holds a run that the same command would resume."""
    directory = pathlib.Path(directory)
    has_flags = (directory / "flags.cfg").exists()
    return has_flags and (directory / "checkpoint").is_dir()


def parse_flags(text):
    """Reads a `flags.cfg` into a dict of texts."""
    flags = {}
    for line in text.splitlines():
        if line.startswith("--"):
            name, has_value, value = line[2:].partition("=")
            if not has_value:
                value = "false" if name.startswith("no") else "true"
                name = name.removeprefix("no")
            flags[name] = value
    return flags


def _check_same_flags(directory, begun, flags):
    ours, theirs = parse_flags(flags), parse_flags(begun)
    differing = [
        f"--{name}: begun with {theirs.get(name, 'not set')}, "
        f"now {ours.get(name, 'not set')}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name) and name not in RESUMABLE_FLAGS
    ]
    if differing:
        raise UserError(
            f"{directory} holds an unfinished run with other flags "
            f"({'; '.join(differing)}). Give the same flags to resume it, or "
            "add --overwrite to start anew."
        )
