"""Importing and calling the library leaves the process as it was; the command line sets it up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import arguments

ROOT = Path(__file__).parents[2]
OURS = ("NPROC", "JAX_COMPILATION_CACHE_DIR")  # set by the tests
# Third parties may change the process where they are imported, so they come first.
LIBRARY = """
import ctypes, json, logging, os, signal, sys, warnings
import grain.python, jax, matplotlib.figure, orbax.checkpoint, rich, tensorboardX
import ml_collections.config_flags, optax, safetensors.numpy, tensorflow_datasets
import scipy.optimize, scipy.sparse, scipy.special, sklearn
from absl import flags

class CDLL(ctypes.CDLL):
    def __init__(self, name, *rest, **options):
        assert name is not None, "the C library was opened"
        super().__init__(name, *rest, **options)

ctypes.CDLL = CDLL
flags.FLAGS["grain_py_debug_mode"]
logging.root.handlers.clear()  # Orbax has added one where it was imported

def process():
    return {
        "environment": dict(os.environ),
        "jax": {name: str(value) for name, value in jax.config.values.items()},
        "loggers": {
            name: [str(log.filters), str(log.handlers), log.level, log.propagate, log.disabled]
            for name in ("", "absl", "jax", "orbax")
            for log in [logging.getLogger(name)]
        },
        "disable": logging.root.manager.disable,
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "warnings": str(warnings.filters),
        "flags": flags.FLAGS.is_parsed(),
        "streams": [str(sys.stdout), str(sys.stderr), str(sys.excepthook)],
        "path": list(sys.path),
        "folder": os.getcwd(),
    }

before = process()
import jaxmatch
from jaxmatch.cli import main as cli, sweep
from jaxmatch.config import flags as config
from jaxmatch.report import describe, page as report
from jaxmatch.record import run_data
from jaxmatch.training import together
calls, folder, argument, *overrides = sys.argv[1:]
chosen, _ = config.from_flags(argument, overrides)
exec(calls)
after = process()
changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
print(json.dumps(changed))
"""


DESCRIBE = "describe.describe(chosen)"
TRAIN = """
jaxmatch.train(chosen, folder)
run = jaxmatch.load(folder)
run.predict(run_data.load_new(run.config).source.test_images)
together.train([(chosen, folder)])  # complete already
"""


@pytest.mark.slow
@pytest.mark.parametrize("calls", [DESCRIBE, TRAIN])
def test_the_library_changes_nothing_of_the_process(data, tmp_path, calls):
    config, *overrides = arguments(data, steps=5, method="supervised", devices=2)
    words = [calls, str(tmp_path / "run"), config.removeprefix("--config="), *overrides]
    plain = {name: value for name, value in os.environ.items() if name not in OURS}
    found = subprocess.run(
        [sys.executable, "-c", LIBRARY, *words],
        env={**plain, "JAX_NUM_CPU_DEVICES": "2"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "{}"


IMPORTS = """
import logging
import jaxmatch.data.streaming, jaxmatch.runtime.checkpoint, jaxmatch.training.train
print(logging.root.handlers)
"""


def test_messages_have_no_prefix():
    # With a handler of absl's they would begin with WARNING:jaxmatch.
    found = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout == "[]\n", found.stderr


COMMAND = """
import logging, os, sys
from jaxmatch.cli import main as cli
sys.argv = ["jaxmatch", "report", "nowhere"]
try:
    cli.main()
except SystemExit as end:
    assert end.code == 2
import jax
log = logging.getLogger("absl")
seen = []

class Seen(logging.Handler):
    def emit(self, record):
        seen.append(record)

log.addHandler(Seen())
for path in ("/site/orbax/x.py", "/site/other.py"):
    log.handle(logging.LogRecord("absl", logging.ERROR, path, 1, "", (), None))
print(os.environ["NPROC"], jax.config.jax_compilation_cache_dir, [each.pathname for each in seen])
"""


@pytest.mark.slow
def test_the_command_line_sets_the_process_up(tmp_path):
    plain = {name: value for name, value in os.environ.items() if name not in OURS}
    found = subprocess.run(
        [sys.executable, "-c", COMMAND],
        env={**plain, "JAX_NUM_CPU_DEVICES": "2", "XDG_CACHE_HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    threads, cache, *seen = found.stdout.splitlines()[-1].split(maxsplit=2)
    assert int(threads) >= 8
    assert cache.startswith(str(tmp_path / "jaxmatch"))
    assert seen == ["['/site/other.py']"]
