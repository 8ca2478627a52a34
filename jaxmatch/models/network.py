"""A network of trees of views, in joint passes, from a model of one batch."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from operator import itemgetter
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxmatch.errors import InputError
from jaxmatch.functional.alike import split_alike
from jaxmatch.functional.mixup import check_same_size
from jaxmatch.settings import check_value
from jaxmatch.types import Array, Network, PyTree, Target

Forward = Literal["joint", "split", "separate"]
Precision = Literal["default", "high", "highest"]


class ModelLike(Protocol):
    """The part of :class:`jaxmatch.models.model.Model` that a network calls."""

    @property
    def bn_groups(self) -> int:
        """Number of BatchNorm batches in a training pass."""
        ...

    @property
    def random(self) -> bool:
        """Whether a training pass takes the draws of a method ``draw(key, count)`` as ``draws``."""
        ...

    def apply(self, variables: PyTree, *arguments: Any, **options: Any) -> Any:
        """Linen's ``apply``: the outputs, and changed collections where some are mutable."""
        ...

    def draw(self, key: Array, count: int) -> Array:
        """The randomness of a training pass over ``count`` images, [count ...]."""
        ...


def make_network(
    model: ModelLike,
    shards: int = 1,
    forward: Forward = "joint",
    microbatches: int = 1,
    unroll: bool = False,
    precision: Precision = "default",
) -> Network:
    """Wrap a model as a network that algorithms call.

    The randomness of a training pass is a value: the model draws an entry for each image, of each
    view by itself, and the entry stays beside its image. So the draws depend neither on the devices
    nor on passes, groups and microbatches.

    Args:
        model: a Linen module, or the result of :func:`jaxmatch.models.from_nnx.from_nnx`. It maps
            images [b h w c] to :class:`~jaxmatch.types.Outputs`. In train mode a
            ``model.bn_groups`` of G > 1 makes G BatchNorm batches of a pass, heads included: group
            g has the g-th of G contiguous parts of every view, whatever the number of devices.
            Running statistics take the mean over the groups. G must divide each view.
        shards: number of devices that the batch axis is split over. Views are concatenated within
            each device's share, since a plain concatenation would move images between devices.
            Groups move none either if one of ``shards`` and G divides the other.
        forward: how the views of a training step share BatchNorm statistics. "joint" is one pass
            over all views. "split" is one pass over the views that carry gradient, then one without
            gradient over those marked :class:`~jaxmatch.types.Target`. "separate" is a pass for
            each view, targets last. Each pass updates the running statistics once.
        microbatches: N > 1 runs a training pass in N parts one after the other, and computes each
            part again for its gradient, so only one part's activations are in memory. The loss
            still sees the whole batch. Part m has the examples m, m + N, m + 2N, ... of every view,
            or such groups of them. Without groups each part is a BatchNorm batch, and running
            statistics take the mean over the parts. N must divide the groups, or without groups
            each device's share of each view.
        unroll: do not loop over the parts. XLA:CPU computes convolutions inside a loop over ten
            times slower. Without the loop it chooses the order of the parts itself, so they save
            little memory there.
        precision: of float32 convolutions and products of the network and of their gradients, as
            in ``jax.default_matmul_precision``. On a TPU "default" is one pass in bfloat16, "high"
            three and "highest" six, which is float32. On a GPU "default" is TF32. CPUs always
            compute in float32. "default" leaves the setting of the process as it is.

    Raises:
        InputError: on an unknown ``forward`` or ``precision``.
    """
    check_value("precision", precision, Precision)
    check_value("forward", forward, Forward)
    groups = model.bn_groups
    parts = math.lcm(shards, groups)

    def network(
        variables: PyTree,
        views: PyTree,
        train: bool = True,
        key: Array | None = None,
        places: Array | None = None,
    ) -> tuple[PyTree, PyTree]:
        if train and model.random and key is None:
            raise InputError(
                "this network draws random numbers in training (model.drop_path), so it needs a "
                "key: call make_train_step with random=True, or the network with key=."
            )
        # Operations take their precision and their gradients' precision while they are traced.
        with nullcontext() if precision == "default" else jax.default_matmul_precision(precision):
            return passes(variables, views, train, key, places)

    def passes(
        variables: PyTree, views: PyTree, train: bool, key: Array | None, places: Array | None
    ) -> tuple[PyTree, PyTree]:
        leaves, tree = jax.tree.flatten(views, is_leaf=lambda leaf: isinstance(leaf, Target))
        outputs: list[Any] = [None] * len(leaves)
        params, stats = variables["params"], variables["batch_stats"]
        joint = not train or places is not None
        for members, constant in _passes(leaves, "joint" if joint else forward):
            images = [
                leaf.view if isinstance(leaf, Target) else leaf
                for leaf in (leaves[member] for member in members)
            ]
            check_same_size(images)
            used = jax.lax.stop_gradient(params) if constant else params
            apply = partial(
                _apply,
                model,
                {"params": used, "batch_stats": stats},
                train=train,
                mutable=["batch_stats"] if train else [],
            )
            together = {"images": _concatenate(images, parts)}
            if train and model.random:
                assert key is not None
                draws = [
                    model.draw(jax.random.fold_in(key, member), len(leaf))
                    for member, leaf in zip(members, images, strict=True)
                ]
                together["draws"] = _concatenate(draws, parts)
            if not train:
                joined, updated = apply(together)
            elif places is None:
                joined, updated = _in_parts(apply, together, groups, microbatches, unroll)
            else:
                rows = _rows_of(places, images, parts)
                # Without the hint every device would compute the whole batch.
                together = {name: split_alike(x, x[rows])[1] for name, x in together.items()}
                joined, updated = _in_parts(apply, together, groups, microbatches, unroll)
                joined = jax.tree.map(itemgetter(jnp.argsort(rows)), joined)
            stats = updated.get("batch_stats", stats)
            for member, part in zip(members, _split(joined, images, parts), strict=True):
                outputs[member] = part
        return jax.tree.unflatten(tree, outputs), stats

    return network


def _apply(
    model: ModelLike, variables: PyTree, batch: Mapping[str, Array], **options: Any
) -> tuple[PyTree, PyTree]:
    """Apply the model to the images of a batch, with their draws where it takes some."""
    if "draws" in batch:
        options["draws"] = batch["draws"]
    return model.apply(variables, batch["images"], **options)


def _passes(leaves: Sequence[Any], forward: str) -> list[tuple[list[int], bool]]:
    """For each pass the positions of its views, and whether it is without gradient."""
    everyone = list(range(len(leaves)))
    if forward == "joint":
        return [(everyone, False)]
    targets = [member for member in everyone if isinstance(leaves[member], Target)]
    others = [member for member in everyone if member not in targets]
    if forward == "split":
        return [(group, group is targets) for group in (others, targets) if group]
    return [([member], member in targets) for member in others + targets]


def _in_parts(
    apply: Callable[[PyTree], tuple[PyTree, PyTree]],
    batch: PyTree,
    groups: int,
    parts: int,
    unroll: bool,
) -> tuple[PyTree, PyTree]:
    """Apply to the groups of a batch as :func:`_by_groups`, in ``parts`` one after the other."""
    if parts == 1:
        return _by_groups(apply, batch, groups)
    # Every part takes its share of every device's images (or groups), so no image moves.
    units = groups if groups > 1 else len(jax.tree.leaves(batch)[0])

    def divide(leaf: Array) -> Array:
        split = leaf.reshape(units // parts, parts, -1, *leaf.shape[1:])
        return split.swapaxes(0, 1).reshape(parts, -1, *leaf.shape[1:])

    def join(leaf: Array) -> Array:
        split = leaf.reshape(parts, units // parts, -1, *leaf.shape[2:])
        return split.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])

    @jax.checkpoint
    def one(batch: PyTree) -> tuple[PyTree, PyTree]:
        return _by_groups(apply, batch, max(1, groups // parts))

    divided = jax.tree.map(divide, batch)
    _, (outputs, updated) = jax.lax.scan(
        lambda _, part: ((), one(part)), (), divided, unroll=parts if unroll else 1
    )
    return jax.tree.map(join, outputs), jax.tree.map(lambda leaf: leaf.mean(0), updated)


def _by_groups(
    apply: Callable[[PyTree], tuple[PyTree, PyTree]], batch: PyTree, groups: int
) -> tuple[PyTree, PyTree]:
    """Apply to each contiguous part of a batch; join the outputs, average the statistics."""
    if groups == 1:
        return apply(batch)
    split = jax.tree.map(lambda leaf: leaf.reshape(groups, -1, *leaf.shape[1:]), batch)
    outputs, updated = jax.vmap(apply)(split)
    joined = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outputs)
    return joined, jax.tree.map(lambda leaf: leaf.mean(0), updated)


def _concatenate(images: Sequence[Array], parts: int) -> Array:
    """Join views so that each of ``parts`` contiguous parts of the result has a part of each."""
    if len(images) == 1:
        return images[0]
    local = [image.reshape(parts, -1, *image.shape[1:]) for image in images]
    joined = jnp.concatenate(local, axis=1)
    return joined.reshape(-1, *joined.shape[2:])


def _rows_of(places: Array, images: Sequence[Array], parts: int) -> Array:
    """The row of :func:`_concatenate` of ``images`` that ``places`` puts at each place, [n]."""
    ends = np.cumsum([len(image) for image in images])
    numbers = [jnp.arange(end - len(x), end) for end, x in zip(ends, images, strict=True)]
    return jnp.argsort(_concatenate(numbers, parts))[places]


def _split(joined: PyTree, images: Sequence[Array], parts: int) -> list[PyTree]:
    """Undo :func:`_concatenate` of ``images`` for outputs of the joined views."""
    if len(images) == 1:
        return [joined]
    sizes = [image.shape[0] // parts for image in images]
    ends = [sum(sizes[: position + 1]) for position in range(len(sizes))]

    def view(end: int, size: int) -> PyTree:
        def cut(leaf: Array) -> Array:
            local = leaf.reshape(parts, -1, *leaf.shape[1:])[:, end - size : end]
            return local.reshape(-1, *leaf.shape[1:])

        return jax.tree.map(cut, joined)

    return [view(end, size) for end, size in zip(ends, sizes, strict=True)]
