"""Adapts a Flax NNX module to the interface of a Linen module."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from jaxmatch.types import Array, Outputs, PyTree


class NNXModel:
    """The part of :class:`jaxmatch.models.model.Model` that training uses, over an NNX module."""

    bn_groups = 1
    random = False
    layers = ()

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module]):
        """Keep the constructor of the module; see :func:`from_nnx`."""
        self._build = build

    def init(self, key: Array, *_: Any, **__: Any) -> PyTree:
        """The variables {"params", "batch_stats"} of a new module.

        Raises:
            TypeError: if the module has other state.
        """
        _, params, stats, rest = self._split(key)
        if nnx.to_pure_dict(rest):
            raise TypeError(
                "from_nnx takes modules whose only state is nnx.Param and nnx.BatchStat, but this "
                f"module also has {sorted(nnx.to_pure_dict(rest))}; keep that state elsewhere."
            )
        return {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(stats)}

    def apply(
        self, variables: PyTree, images: Array, train: bool, mutable: Any = ()
    ) -> tuple[Outputs, PyTree]:
        """Run the module on ``images``; the second result holds the new statistics."""
        graph, params, stats, rest = nnx.eval_shape(self._split)
        nnx.replace_by_pure_dict(params, variables["params"])
        nnx.replace_by_pure_dict(stats, variables["batch_stats"])
        module = nnx.merge(graph, params, stats, rest)
        module.train() if train else module.eval()
        outputs = module(images)  # pyright: ignore[reportCallIssue]
        if "batch_stats" not in mutable:
            return outputs, {}
        return outputs, {"batch_stats": nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))}

    def _split(self, key: Array | None = None) -> Any:
        seed = 0 if key is None else key
        return nnx.split(self._build(nnx.Rngs(seed)), nnx.Param, nnx.BatchStat, ...)


def from_nnx(build: Callable[[nnx.Rngs], nnx.Module]) -> NNXModel:
    """Adapt an NNX module for :func:`jaxmatch.models.network.make_network`.

    Args:
        build: makes the module from ``nnx.Rngs``. The module maps images [b h w c] to
            :class:`~jaxmatch.types.Outputs`, keeps its state in ``nnx.Param`` and
            ``nnx.BatchStat``, and follows ``train()`` and ``eval()`` as ``nnx.BatchNorm`` does.
    """
    return NNXModel(build)
