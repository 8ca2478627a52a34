"""Tiny real runs through the whole program: 8x8 images, one convolution."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import on_host, toy_images

from jaxmatch import load, train
from jaxmatch.config.flags import from_flags
from jaxmatch.config.own import Circumstances, settle, with_usual_input
from jaxmatch.runtime.dispatch import Meter
from jaxmatch.training import ending, run
from jaxmatch.types import Ratio

LABELS = 16
WITHOUT_THRESHOLD = (
    "supervised",
    "simclr",
    "pcl",
    "distillation",
    "simclr_v2",
    "temporal_ensembling",
    "remixmatch",
    "freematch",
    "softmatch",
    "dash",
)
STEPS, PERIOD = 20, 5
SUMMARY = {  # the least that is a summary
    "evaluated": "teacher",
    "steps": STEPS,
    "images_seen": {"labeled": 0, "unlabeled": 0},
    "forward_images": 0,
    "seconds": 0.0,
}
OVERRIDES = {
    "model.depth": 4,
    "model.width": 1,
    "model.conv_bias": "none",  # before BatchNorm its gradient is only rounding
    "steps": STEPS,
    "steps_per_call": PERIOD,
    "log_every": PERIOD,
    "eval_every": PERIOD,
    "save_every": PERIOD,
    "keep": STEPS // PERIOD,
    "data.batch_size": 8,
    "data.ratio": 2,
    "algorithm.threshold": 0.4,
}


def write_data(path, **changed):
    """An npz source with four colours as classes: 64 training and 24 test images."""
    x_train, y_train = toy_images(64, 0)
    x_test, y_test = toy_images(24, 1)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    np.savez(path, **(arrays | changed))
    return path


def arguments(data, *, method="fixmatch", chosen=f",labels={LABELS}", **overrides):
    """``--config`` and overrides of a run; keywords write the dot as two underscores."""
    values = OVERRIDES | {key.replace("__", "."): value for key, value in overrides.items()}
    if method in WITHOUT_THRESHOLD:
        values.pop("algorithm.threshold")
    name = data if isinstance(data, str) else f"npz:{data}"
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    return [f"--config={method}:{name}{chosen}", *flags]


def configuration(data, **options):
    config, *overrides = arguments(data, **options)
    return from_flags(config.removeprefix("--config="), overrides)[0]


def settled_configuration(data, **options):
    """The configuration with a value for each setting that own images leave open."""
    config, _ = settle(configuration(data, **options), Circumstances(side=8, one_side=True))
    return with_usual_input(config)


def train_tiny(data, workdir, **options):
    return train(configuration(data, **options), workdir)


@contextlib.contextmanager
def without_extras():
    """Runs draw no curves and measure no baselines, which take longer than their steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "plot", lambda *_: None)
        patch.setattr(ending, "write_baselines", lambda *_: None)
        yield


@jax.jit
def _moved(state, by):
    """A state whose networks differ a little from those of ``state``, and from each other."""

    def move(tree, by):
        return jax.tree.map(
            lambda leaf: leaf + by * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), tree
        )

    params, teacher = move(state.params, by), move(state.teacher, by / 2)
    return state.replace(step=state.step + 1, params=params, teacher=teacher)


@contextlib.contextmanager
def without_learning():
    """Steps move the parameters by about the learning rate, whatever the images are.

    For tests that need the folder of a run and no learning: the step of a method takes most of the
    time to compile.
    """

    def compile_nothing(self):
        names = ("loss/total", "loss/supervised", "optim/gradient_norm", "optim/learning_rate")
        meter = Meter({name: Ratio(1.0, 1.0) for name in names}, -1, 0)
        return lambda state, feed: (_moved(state, self.config.optim.learning_rate), meter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Run, "compile", compile_nothing)
        yield


def state_of(workdir, step=None):
    """Everything that a run's checkpoint holds."""
    return on_host(load(workdir, step).state)


def snapshot(folder):
    """Content and time of every file, to show that nothing was touched."""
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in Path(folder).rglob("*")
    }


def without_seconds(lines):
    return [{key: value for key, value in line.items() if key != "time/seconds"} for line in lines]


def start_program(words, devices=None, before="", **environment):
    """The command line in a process of its own.

    It sees ``devices`` CPU devices, by default as many as the tests. ``before`` is run first.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices or jax.device_count()),
        **environment,
    }
    program = f"{before}\nfrom jaxmatch.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        env=environment,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
