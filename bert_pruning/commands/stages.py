"""A stage: one command, one process, one run directory.

    stage = Stage("MRPC", Path("runs/mrpc"), ("--task_name=MRPC", ...))
    error = stage.run()

A process of its own gives every stage a fresh memory and lets the others go
on when one fails. What it prints is passed on as it comes, and kept in a log
beside the run directory.
"""

import codecs
import contextlib
import dataclasses
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of a command.

    Args:
        title: str. What a person calls it.
        directory: path. Its output directory.
        arguments: tuple of str. Its flags, but `--output_dir`.
        name: str. The command.
    """

    title: str
    directory: Path
    arguments: tuple[str, ...]
    name: str = "train"

    @property
    def is_done(self) -> bool:
        return (self.directory / "DONE").exists()

    @property
    def log(self) -> Path:
        """Beside the directory, which belongs to the run alone."""
        return self.directory.with_name(f"{self.directory.name}.log")

    @property
    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "bert_pruning", self.name),
            *(*self.arguments, f"--output_dir={self.directory}"),
        ]

    def run(self) -> str:
        """Runs the stage to its end; a stage begun before is resumed.

        Returns:
            What went wrong, in a line; empty if nothing did.

        Raises:
            KeyboardInterrupt: the stage was asked to stop, and did.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab+") as log:
            start = log.seek(0, os.SEEK_END)
            log.write(f"$ {shlex.join(self.command)}\n".encode())
            status = _run_process(self.command, log)
            log.seek(start)
            text = log.read().decode(errors="replace")
        return _describe_failure(status, text) if status else ""


def stop_on_signals():
    """Makes SIGTERM and SIGHUP stop this process as Ctrl-C does.

    So the stage that runs is told to save its state, too.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _run_process(command, log):
    """Passes a process's output on and into a log; returns its status."""
    reader, writer = _open_channel()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
        # Ctrl-C reaches this process alone, which passes it on once.
        start_new_session=True,
    ) as process:
        os.close(writer)
        try:
            _copy_output(reader, log)
        except BaseException:
            # The stage saves its state and stops.
            process.send_signal(signal.SIGINT)
            try:
                _copy_output(reader, log)
            except BaseException:
                process.kill()
            raise
        finally:
            os.close(reader)
    return process.returncode


def _open_channel():
    """A pipe, or a terminal if there is one, for a live progress bar."""
    if not sys.stderr.isatty():
        return os.pipe()
    reader, writer = pty.openpty()
    with contextlib.suppress(OSError, ValueError):
        size = termios.tcgetwinsize(sys.stderr.fileno())
        termios.tcsetwinsize(writer, size)
    return reader, writer


def _copy_output(reader, log):
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    line = b""
    while chunk := _read(reader):
        sys.stdout.write(decode(chunk))
        sys.stdout.flush()
        *lines, line = (line + chunk).split(b"\n")
        log.writelines(_without_progress(line) + b"\n" for line in lines)
        log.flush()
    if line:
        log.write(_without_progress(line) + b"\n")


def _read(reader):
    try:
        return os.read(reader, 1 << 16)
    except OSError:
        # So a terminal says that nobody writes to it any more.
        return b""


def _without_progress(line):
    """What a terminal would show of a line that overwrites itself."""
    return line.rstrip(b"\r").rsplit(b"\r", 1)[-1]


def _describe_failure(status, text):
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error: ")]
    return (errors or lines)[-1].removeprefix("Error: ")
