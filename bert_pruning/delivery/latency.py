"""How long models take for one batch, on this machine.

    for found in measure_latencies(["runs/mrpc", "exported/mrpc"], settings):
        ...

Each model runs in a process of its own, so that the threads of one do not
disturb another; and they take turns, so that a slow moment of the machine is
one of all.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import time

import numpy as np

from bert_pruning.delivery import runners
from bert_pruning.errors import UserError

_WARM_UP = 3

# Turns of each model in a setting.
_TURNS = 4

# Seconds that a process has to end by itself.
_PATIENCE = 10

# Words that any vocabulary of English has whole.
_WORDS = "the of and in to a was is for on as with by he that at from his it an"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        batch_size: int. Sequences.
        length: int. Tokens of each, none of them padding.
        with_tokenization: bool. Whether it begins with texts, not with ids.
    """

    batch_size: int
    length: int
    with_tokenization: bool = False

    @property
    def title(self):
        """Names it."""
        return f"batch {self.batch_size} of {self.length} tokens"


def make_settings(batch_sizes, lengths, with_tokenization=False):
    """Returns a `Setting` for each batch size of each length."""
    return [
        Setting(batch_size, length, with_tokenization)
        for length in lengths
        for batch_size in batch_sizes
    ]


@dataclasses.dataclass(frozen=True)
class Latency:
    """What was measured.

    Args:
        setting: Setting.
        milliseconds: float. The median time of a batch.
        milliseconds_95: float. 95 % of the batches took no longer.
    """

    setting: Setting
    milliseconds: float
    milliseconds_95: float

    @property
    def examples_per_second(self):
        """Sequences per second."""
        return 1000 * self.setting.batch_size / self.milliseconds

    def to_dict(self):
        """Returns plain values, for JSON."""
        return {
            **dataclasses.asdict(self.setting),
            "milliseconds": self.milliseconds,
            "milliseconds_95": self.milliseconds_95,
            "examples_per_second": self.examples_per_second,
        }


@dataclasses.dataclass(frozen=True)
class Measured:
    """All that was measured of a model.

    Args:
        name: str. As `runners` has it.
        num_bytes: int. Of its file.
        latencies: tuple of Latency. One for each setting.
    """

    name: str
    num_bytes: int
    latencies: tuple[Latency, ...]


def measure_latencies(names, settings, num_threads=None, rounds=20):
    """Measures models side by side.

    Args:
        names: list of str. See `runners`.
        settings: list of Setting.
        num_threads: int or None. None: as many as the machine has cores.
        rounds: int. Batches of each model and setting, after some that do not
            count.

    Returns:
        A list of Measured.

    Raises:
        UserError: if a model cannot be loaded or run.
    """
    num_threads = num_threads or os.cpu_count()
    times = {}
    with contextlib.ExitStack() as stack:
        # One after the other: loading is as much work as running.
        workers = [
            stack.enter_context(_Worker(name, num_threads)) for name in names
        ]
        for setting in settings:
            for turn in range(_TURNS):
                share = len(range(turn, rounds, _TURNS))
                for number, worker in enumerate(workers):
                    times.setdefault((number, setting), []).extend(
                        worker.measure(setting, share) if share else ()
                    )
        sizes = [worker.num_bytes for worker in workers]
    return [
        Measured(
            name,
            size,
            tuple(_summary(each, times[number, each]) for each in settings),
        )
        for number, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]


def _summary(setting, seconds):
    found = 1000 * np.array(seconds)
    return Latency(
        setting, float(np.median(found)), float(np.quantile(found, 0.95))
    )


class _Worker:
    """A process that has loaded a model and runs it when it is told."""

    def __init__(self, name, num_threads):
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, name, num_threads), daemon=True
        )
        self._process.start()
        theirs.close()
        self.num_bytes = None

    def __enter__(self):
        try:
            self.num_bytes = self._receive()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._connection.close()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.terminate()

    def measure(self, setting, rounds):
        self._connection.send((setting, rounds))
        return self._receive()

    def _receive(self):
        try:
            found = self._connection.recv()
        except EOFError:
            found = "it was stopped; is there enough memory?"
        if isinstance(found, str):
            raise UserError(f"{self._name} cannot be measured: {found}")
        return found


def _serve(connection, name, num_threads):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(num_threads)
    os.environ["TF_NUM_INTEROP_THREADS"] = str(num_threads)
    try:
        runner = runners.Runner(name, num_threads)
        connection.send(runner.num_bytes)
        while True:
            connection.send(_measure(runner, *connection.recv()))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:
        connection.send(str(error) or type(error).__name__)


def _measure(runner, setting, rounds):
    run, data = runner.ids, _make_ids(setting)
    if setting.with_tokenization:
        run, data = runner.texts, _make_texts(setting)
    seconds = []
    for number in range(_WARM_UP + rounds):
        started = time.perf_counter()
        run(data)
        if number >= _WARM_UP:
            seconds.append(time.perf_counter() - started)
    return seconds


def _make_ids(setting):
    # Ids that every vocabulary has; which they are costs nothing.
    shape = (setting.batch_size, setting.length)
    ids = np.random.default_rng(0).integers(1, 20, shape).astype(np.int32)
    return [ids, np.ones_like(ids), np.zeros_like(ids)]


def _make_texts(setting):
    words = np.random.default_rng(0).choice(
        _WORDS.split(), (setting.batch_size, setting.length - 2)
    )
    return [" ".join(row) for row in words]
