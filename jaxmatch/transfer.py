"""Starting a run from the encoder of another: its trunk, without classifier and heads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxmatch.errors import InputError
from jaxmatch.types import Algorithm, PyTree, TrainState

PREVIOUS = "stage:"  # begins an ``init_from`` that names a stage in the same run folder


def encoder(variables: Mapping[str, PyTree], algorithm: Algorithm) -> dict[str, PyTree]:
    """The variables of a network without its classifier and the algorithm's heads."""
    heads = {"classifier", *algorithm.heads}
    return {
        kind: {name: value for name, value in tree.items() if name not in heads}
        for kind, tree in variables.items()
    }


def source_folder(init_from: str, folder: Path) -> Path:
    """The run that ``init_from`` of the run in ``folder`` names."""
    if init_from.startswith(PREVIOUS):
        return folder.parent / init_from.removeprefix(PREVIOUS)
    return Path(init_from)


def check_encoder(theirs: PyTree, ours: PyTree, init_from: str) -> None:
    """InputError naming the first tensors that differ, unless both encoders have equal shapes."""
    there, here = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (theirs, ours)
    )
    wrong = [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if wrong:
        raise InputError(
            f"init_from={init_from} has another encoder ({'; '.join(wrong[:3])}"
            f"{f'; and {len(wrong) - 3} more' if len(wrong) > 3 else ''}); give both runs the same "
            "config.model."
        )


def transfer(state: TrainState, trunk: Mapping[str, PyTree]) -> TrainState:
    """``state`` before its first step, with student and teacher starting from ``trunk``.

    Classifier, heads, optimizer and memory stay new; BatchNorm statistics come along (SelfMatch's
    second stage). Leaves keep the dtype and sharding of ``state``'s.
    """

    def replaced(kind: str, tree: Mapping[str, Any]) -> dict[str, Any]:
        # Student and teacher must not share buffers, since the step gives both away.
        return {
            **tree,
            **jax.tree.map(
                lambda new, old: jax.device_put(jnp.array(new, old.dtype, copy=True), old.sharding),
                dict(trunk[kind]),
                {name: tree[name] for name in trunk[kind]},
            ),
        }

    return state.replace(
        params=replaced("params", state.params),
        stats=replaced("batch_stats", state.stats),
        teacher={kind: replaced(kind, tree) for kind, tree in state.teacher.items()},
    )
