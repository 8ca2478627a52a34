"""The vocabulary of the library: what a step reads, what a run carries, what an algorithm supplies.

Shapes: ``b`` examples of a global batch, ``h w c`` image height, width and channels, ``C`` classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
from flax import struct

Array = jax.Array
PyTree = Any


class Examples(NamedTuple):
    """Some images of one kind, before (one view) or after (one view a role) augmentation."""

    views: tuple[Array, ...]  # [b h w c] each: uint8 before augmentation, network input after
    label: Array | None = None  # [b] int32, -1 = unknown; of unlabeled images only metrics read it
    index: Array | None = None  # [b] int32 position in its own set (memory banks)


class Batch(NamedTuple):
    """The examples of one step; ``labeled`` is None for label-free methods, and vice versa."""

    # Typed loosely, since an algorithm knows which of the two it asked for.
    labeled: Any  # Examples | None
    unlabeled: Any  # Examples | None
    # Of the trained networks that the algorithm declares, by role: their variables before
    # augmentation, after it the Outputs on each unlabeled view, in eval mode.
    frozen: Any = None  # Mapping[str, PyTree] | Mapping[str, tuple[Outputs, ...]] | None


class TrainState(struct.PyTreeNode):
    """All that a run carries from step to step, so all that a checkpoint holds."""

    step: Array  # [] int32, optimizer steps done
    key: Array  # [] typed PRNG key, the root: never split, only folded with the step
    params: PyTree
    stats: PyTree  # BatchNorm running statistics
    teacher: PyTree  # EMA {"params", "batch_stats"}; evaluated by default
    optimizer: PyTree
    memory: PyTree  # the algorithm's own: banks, queues, alignment history, thresholds
    policy: PyTree  # the augmentation's own: CTAugment's bins

    def student(self, params: PyTree | None = None) -> PyTree:
        """The student's variables, with ``params`` in place of its own where given."""
        return {
            "params": self.params if params is None else params,
            "batch_stats": self.stats,
        }


class Ratio(NamedTuple):
    """A metric that is a mean over a varying number of items: summed apart, divided when logged."""

    total: Array  # []
    count: Array  # []


class Update(NamedTuple):
    """What a loss hands back besides its value."""

    stats: PyTree
    metrics: dict[str, Array | Ratio]
    memory: PyTree = ()
    teacher_stats: PyTree = None  # where ``Spec.teacher_trains``: the teacher's own statistics


class Outputs(NamedTuple):
    """What a network says of a batch of images."""

    logits: Array  # [b C] at least float32
    features: Array  # [b d] pooled
    heads: Mapping[str, Array]  # the algorithm's extra heads, each [b ...]


@struct.dataclass
class Target:
    """Marks a view that only serves as a target: no gradient is taken through its outputs.

    Under ``forward="joint"`` the mark changes nothing (gradients still pass through the joint
    BatchNorm statistics); ``"split"`` and ``"separate"`` give such views a pass of their own.
    """

    view: Array  # [b h w c]


class Network(Protocol):
    """Images in any tree, :class:`Outputs` in the same tree, one joint BatchNorm batch."""

    def __call__(
        self, variables: PyTree, views: PyTree, train: bool = True
    ) -> tuple[PyTree, PyTree]:
        """Return (outputs, new BatchNorm statistics); in eval mode the statistics pass through."""
        ...


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The facts of a run that an algorithm may size its memory and its ramps by."""

    classes: int
    steps: int  # of the whole run
    labels: tuple[int, ...] = ()  # true label of each labeled example, in index order
    unlabeled: int = 0  # number of unlabeled examples
    labeled_batch: int = 0
    unlabeled_batch: int = 0
    # The teacher normalises by batch statistics and keeps running ones of its own, which the loss
    # hands back (``ema.statistics="own"``); otherwise it runs in eval mode.
    teacher_trains: bool = False


NO_HEADS: Mapping[str, Any] = MappingProxyType({})


def no_memory(self: Any, key: Array, spec: Spec) -> PyTree:
    """The ``init`` of an algorithm that carries nothing from step to step."""
    del self, key, spec
    return ()


def no_draws(self: Any, key: Array, batch: Batch) -> PyTree:
    """The ``draw`` of an algorithm whose loss is deterministic."""
    del self, key, batch
    return ()


class Algorithm(Protocol):
    """One method. Implementations are frozen dataclasses; their fields are ``config.algorithm``.

    A method may also have ``project(params) -> params``, which every step applies to what the
    optimizer made, before the teacher follows (SwAV keeps its prototypes at length 1).
    And it may have ``frozen``, the roles of trained networks that ``config.frozen`` names runs for
    and whose outputs it finds in ``batch.frozen`` (distillation).

    A method that looks at all images between steps (PCL's clusters) has the fields
    ``refresh_steps`` and ``start_step``, and ``refresh(state, embed) -> memory``, called outside
    ``jax.jit`` wherever from ``start_step`` on a multiple of ``refresh_steps`` steps are done and
    others follow. ``embed(variables)`` gives what each head says of each unlabeled image, not
    augmented and in index order, in eval mode: arrays [n ...] by name.
    """

    @property
    def labeled(self) -> tuple[str, ...]:
        """The view roles of labeled examples, in order; a repeated role is an independent draw."""
        ...

    @property
    def unlabeled(self) -> tuple[str, ...]:
        """The view roles of unlabeled examples."""
        ...

    @property
    def heads(self) -> Mapping[str, Any]:
        """Extra heads on the pooled features, by name (see ``models/heads.py``)."""
        ...

    @property
    def evaluated(self) -> str:
        """Which network the method reports: "teacher" or "student"."""
        ...

    def init(self, key: Array, spec: Spec) -> PyTree:
        """The method's own memory before the first step."""
        ...

    def draw(self, key: Array, batch: Batch) -> PyTree:
        """All randomness of the loss, as a value."""
        ...

    def loss(
        self,
        network: Network,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        draws: PyTree,
        spec: Spec,
    ) -> tuple[Array, Update]:
        """The loss without weight decay, differentiated with respect to ``params``."""
        ...


class Augment(Protocol):
    """Turns the images of a batch into the views that an algorithm asked for."""

    def init(self) -> PyTree:
        """The policy's state before the first step."""
        ...

    def apply(self, policy: PyTree, key: Array, examples: Batch) -> tuple[Batch, PyTree]:
        """Return the batch of views and a record for :meth:`update`."""
        ...

    def update(self, policy: PyTree, record: PyTree, predict: Callable[[Array], Array]) -> PyTree:
        """Learn from the step; ``predict`` maps views to the new teacher's probabilities."""
        ...


class Transform(Protocol):
    """One view of images: randomness drawn as a value, then applied."""

    def draw(self, key: Array, shape: tuple[int, ...]) -> PyTree:
        """All randomness for images of ``shape`` [b h w c]; leaves lead with ``b``."""
        ...

    def apply(self, images: Array, draws: PyTree) -> Array:
        """Levels 0..255 [b h w c] of any dtype in, float32 levels 0..255 out."""
        ...
