"""The program of a configuration over devices that are only described, lowered but not compiled."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.scaling.program import facts
from jaxmatch.config.flags import from_flags
from jaxmatch.config.presets import IMAGENET_IMAGES, TENTH
from jaxmatch.data.facts import Facts
from jaxmatch.program import Program
from jaxmatch.random import stream
from jaxmatch.runtime.dispatch import scanned
from jaxmatch.runtime.mesh import over_batch, replicated
from jaxmatch.types import Array, Batch, PyTree, TrainState

SIDES = {"tfds:stl10": 96, "tfds:imagenet2012": 224}
CLASSES = {"tfds:cifar100": 100, "tfds:imagenet2012": 1000}
POOLS = {"tfds:svhn_cropped": 73_257, "tfds:stl10": 105_000, "tfds:imagenet2012": IMAGENET_IMAGES}
SVHN_EXTRA = 531_131


def facts_of(config: Any) -> Facts:
    """Sizes of the data set that a configuration names, which need not be on this machine."""
    data = config.data
    pool = POOLS.get(data.name, 50_000) + (SVHN_EXTRA if data.extra else 0)
    named = {"none": 0, "all": TENTH if "imagenet" in data.name else pool}
    labels = named[data.labels] if data.labels in named else int(data.labels)
    return facts(
        side=SIDES.get(data.name, 32),
        classes=CLASSES.get(data.name, 10),
        labels=labels,
        unlabeled=pool if data.include_labeled else pool - labels,
    )


def lower(
    name: str, overrides: Sequence[str], devices: Sequence[Any], what: str = "step"
) -> tuple[Any, int, list[int]]:
    """The lowered program, the steps that it takes, and the batch.

    ``what``: "step", "augment" or "feed"; see :mod:`experiments.tpu.__main__`.
    """
    config, _ = from_flags(name, list(overrides))
    program = Program.build(config, facts_of(config), devices).with_stand_ins()
    mesh, spec = program.mesh, program.spec
    batch = [spec.labeled_batch, spec.unlabeled_batch]
    everywhere = replicated(mesh)

    def feed(data: Any, state: TrainState) -> Batch:
        return program.examples(data, state)

    def views(policy: PyTree, step: Array, examples: Batch) -> PyTree:
        key = stream(jax.random.fold_in(jax.random.key(config.seed), step), "augment")
        return program.augment.apply(policy, key, examples)

    if what == "feed":
        call = jax.jit(feed, in_shardings=(everywhere, program.shardings))
        return call.trace(program.data, program.state).lower(), 1, batch
    if what == "augment":
        examples = jax.eval_shape(feed, program.data, program.state)._replace(frozen=None)
        split = jax.tree.map(lambda _: over_batch(mesh), examples)
        call = jax.jit(views, in_shardings=(everywhere, everywhere, split))
        step = jax.ShapeDtypeStruct((), jnp.int32)
        return call.trace(program.state.policy, step, examples).lower(), 1, batch
    streamed = True if config.data.stream else None
    return program.trace().lower(), scanned(config.steps_per_call, mesh, streamed), batch
