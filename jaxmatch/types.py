"""The contract: what a step reads, what a run carries, what a method defines.

Shapes: ``b`` examples of a global batch, ``h w c`` image height, width and channels, ``C`` classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import linen as nn
from flax import struct

Array = jax.Array
PyTree = Any
Heads = Mapping[str, nn.Module]
Embed = Callable[[PyTree], Mapping[str, np.ndarray]]


NOT_GIVEN: Any = None
# Modules of a network: its classifier, and the head that ABC's method has in the place of it.
CLASSIFIER, ORDINARY = "classifier", "ordinary"
STRANGER = -2  # the label of an unlabeled image that is known to be of none of the classes


class Examples(NamedTuple):
    """Images of one kind, with one view before augmentation and one view for each role after it.

    ``label`` and ``index`` are None where nothing reads them.
    """

    views: tuple[Array, ...]  # [b h w c] each: uint8 before augmentation, network input after
    # [b] int32, -1 = unknown, STRANGER = of no class; of unlabeled images only metrics read it, and
    # it is -1 for those that are labeled examples, too
    label: Array = NOT_GIVEN
    # [b] int32 position in its own set, for memory banks
    index: Array = NOT_GIVEN  # pyright: ignore[reportIncompatibleMethodOverride]


class Batch(NamedTuple):
    """The examples of one step.

    ``labeled`` is None for a method that reads no labels, ``unlabeled`` for one that reads only
    labeled images.
    """

    labeled: Examples | None
    unlabeled: Examples | None
    # By role of the frozen networks: before augmentation their variables, after it a tuple with
    # their Outputs on each unlabeled view, in eval mode.
    frozen: Mapping[str, PyTree] | None = None

    @property
    def views(self) -> tuple[Array, ...]:
        """All views: those of labeled images, then those of unlabeled ones."""
        return tuple(view for each in self[:2] if each is not None for view in each.views)


class TrainState(struct.PyTreeNode):
    """Everything that a run carries from step to step, and that a checkpoint holds."""

    step: Array  # [] int32, optimizer steps done
    key: Array  # [] typed PRNG key, the root: never split, only folded with the step
    params: PyTree  # of the student
    stats: PyTree  # running BatchNorm statistics of the student
    teacher: PyTree  # EMA {"params", "batch_stats"}; evaluated by default
    optimizer: PyTree
    memory: PyTree  # of the method: banks, queues, alignment history, thresholds
    policy: PyTree  # of the augmentation: CTAugment's bins

    def student(self, params: PyTree | None = None) -> PyTree:
        """The student's variables, with ``params`` in place of its own where given."""
        return {
            "params": self.params if params is None else params,
            "batch_stats": self.stats,
        }


class Ratio(NamedTuple):
    """A mean over a number of items that varies: both are summed, and divided when logged."""

    total: Array  # []
    count: Array  # [] # pyright: ignore[reportIncompatibleMethodOverride]


class Update(NamedTuple):
    """The results of a loss beside its value."""

    stats: PyTree
    metrics: dict[str, Array | Ratio]
    memory: PyTree = ()
    teacher_stats: PyTree = None  # the teacher's own, as Inputs.teacher gives them


class Outputs(NamedTuple):
    """The outputs of a network on a batch of images."""

    logits: Array  # [b C] at least float32
    features: Array  # [b d] pooled
    heads: Mapping[str, Array]  # of the method's own heads, each [b ...]


@struct.dataclass
class Target:
    """Marks a view that serves as a target only: no gradient is taken through its outputs.

    ``forward="split"`` and ``"separate"`` give such views a pass of their own. ``"joint"`` ignores
    the mark: gradients still pass through the joint BatchNorm statistics.
    """

    view: Array  # [b h w c]


class Network(Protocol):
    """A function from a tree of images to the same tree of :class:`Outputs`.

    All images of a call are one BatchNorm batch.
    """

    def __call__(
        self,
        variables: PyTree,
        views: PyTree,
        train: bool = True,
        key: Array | None = None,
        places: Array | None = None,
    ) -> tuple[PyTree, PyTree]:
        """Return (outputs, new BatchNorm statistics); in eval mode the statistics pass through.

        ``key`` is for networks that draw random numbers in train mode. Methods leave it out: the
        step gives each of their calls its own (:func:`jaxmatch.step.with_keys`). ``places`` [n]
        int32 is a permutation of the images of all views, in their order: that image i is at place
        p, if ``places[p]`` is i, tells which BatchNorm group it is in. In train mode these views
        are one BatchNorm batch. The outputs keep the order of the views.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Constants of a run: sizes for memories and schedules."""

    classes: int
    steps: int  # of the whole run
    labels: tuple[int, ...] = ()  # true label of each labeled example, in index order
    unlabeled: int = 0  # number of unlabeled examples
    labeled_batch: int = 0
    unlabeled_batch: int = 0
    # The teacher normalises by batch statistics and has running statistics of its own
    # (``ema.statistics="own"``); otherwise it runs in eval mode.
    teacher_trains: bool = False


class Inputs(NamedTuple):
    """Everything that a loss reads."""

    network: Network
    params: PyTree  # the student's; the loss is differentiated with respect to them
    state: TrainState  # before the step
    batch: Batch
    draws: PyTree  # what the method's ``draw`` returned
    spec: Spec

    @property
    def labeled(self) -> Examples:
        """The labeled examples; only for methods with labeled views."""
        assert self.batch.labeled is not None
        return self.batch.labeled

    @property
    def unlabeled(self) -> Examples:
        """The unlabeled examples; only for methods with unlabeled views."""
        assert self.batch.unlabeled is not None
        return self.batch.unlabeled

    @property
    def frozen(self) -> Mapping[str, PyTree]:
        """Outputs of the frozen networks on each unlabeled view, a tuple by role."""
        assert self.batch.frozen is not None
        return self.batch.frozen

    @property
    def step(self) -> Array:
        """The number [] of steps before this one, int32."""
        return self.state.step

    @property
    def memory(self) -> PyTree:
        """The method's memory before this step."""
        return self.state.memory

    def student(self, views: PyTree, stats: PyTree = None) -> tuple[PyTree, PyTree]:
        """Outputs of the student on ``views``, in train mode, and its new BatchNorm statistics.

        ``stats`` are the statistics to start from, by default those of the state.
        """
        stats = self.state.stats if stats is None else stats
        return self.network({"params": self.params, "batch_stats": stats}, views)

    def constant_student(self, views: PyTree) -> PyTree:
        """Outputs of the student through which no gradient reaches its parameters, in train mode.

        The new statistics are dropped.
        """
        return self.network(jax.lax.stop_gradient(self.state.student(self.params)), views)[0]

    def teacher(
        self, views: PyTree, train: bool | None = None, places: Array | None = None
    ) -> tuple[PyTree, PyTree]:
        """Outputs of the teacher on ``views``, and its new statistics if it has its own, else None.

        No gradient passes through the outputs. In train mode they are normalised by the statistics
        of ``views``; by default a teacher with statistics of its own is in train mode. ``places``
        are those of :class:`Network`.
        """
        own = self.spec.teacher_trains
        train = own if train is None else train
        options = {} if places is None else {"places": places}
        called = self.network(self.state.teacher, views, train=train, **options)
        outputs, stats = jax.lax.stop_gradient(called)
        return outputs, stats if own else None


class Algorithm:
    """The base of the methods, with defaults for all members but :meth:`objective`.

    A method is a frozen dataclass (:func:`jaxmatch.settings.section`); its fields are the settings
    ``config.algorithm``. It names the views that it needs and defines :meth:`objective`.

    Attributes:
        labeled: roles of the views of labeled examples, in order. A role that occurs twice gives
            two independent views.
        unlabeled: roles of the views of unlabeled examples.
        heads: further heads on the pooled features, by name (:mod:`jaxmatch.models.heads`).
        evaluated: the network that the method reports, "teacher" or "student".
        frozen: roles of the trained networks that ``config.frozen`` names runs for; their outputs
            are in ``batch.frozen``.
        refresh_steps: the steps between two calls of :meth:`refresh`; 0 for none.
        start_step: the first step that :meth:`refresh` may precede.
    """

    labeled: tuple[str, ...] = ()
    unlabeled: tuple[str, ...] = ()
    heads: Heads = MappingProxyType({})
    evaluated: str = "teacher"
    frozen: tuple[str, ...] = ()
    refresh_steps: int = 0
    start_step: int = 0

    def init(self, key: Array, spec: Spec) -> PyTree:
        """The memory before the first step."""
        return ()

    def draw(self, key: Array, batch: Batch) -> PyTree:
        """All randomness of the loss, as a value; ``batch`` holds the views."""
        return ()

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """The loss [] without weight decay, and what the step updates."""
        raise NotImplementedError(f"{type(self).__name__} defines no objective.")

    def loss(
        self,
        network: Network,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        draws: PyTree,
        spec: Spec,
    ) -> tuple[Array, Update]:
        """:meth:`objective` of these :class:`Inputs`; the step differentiates it by ``params``."""
        return self.objective(Inputs(network, params, state, batch, draws, spec))

    def strangeness(self, outputs: Outputs) -> Array | None:
        """How unlike the classes images are, [b], larger for stranger ones, by the method's heads.

        None: the method has no such heads.
        """
        return None

    def project(self, params: PyTree) -> PyTree:
        """Parameters in place of those that the optimizer made, before the EMA follows."""
        return params

    def refresh(self, state: TrainState, embed: Embed) -> PyTree:
        """The memory after a look at all unlabeled images.

        The run calls it between two steps, outside of ``jax.jit``, from ``start_step`` on, whenever
        the number of steps done is a multiple of ``refresh_steps``.

        Args:
            state: the state between the two steps.
            embed: function from variables to the outputs of each head, by name, on all unlabeled
                images without augmentation in eval mode: arrays [n ...] in index order.
        """
        return state.memory


@runtime_checkable
class Rows(Protocol):
    """Marks a memory whose arrays all have a row for each example: devices may share the rows.

    ``config.memory_placement="sharded"`` splits the rows of every such memory over the devices,
    "auto" those of the large ones with ``split_if_large``.
    """

    split_if_large: bool


class Augment(Protocol):
    """Makes the views that a method needs from the images of a batch."""

    def init(self) -> PyTree:
        """The policy's state before the first step."""
        ...

    def apply(self, policy: PyTree, key: Array, examples: Batch) -> tuple[Batch, PyTree]:
        """Return the batch of views and a record for :meth:`update`."""
        ...

    def update(self, policy: PyTree, record: PyTree, predict: Callable[[Array], Array]) -> PyTree:
        """The policy after a step; ``predict`` maps views to probabilities of the new teacher."""
        ...


class Transform(Protocol):
    """A random view of images: :meth:`draw` makes the randomness, :meth:`apply` uses it."""

    def draw(self, key: Array, shape: tuple[int, ...]) -> PyTree:
        """All randomness for images of ``shape`` [b h w c]; leaves lead with ``b``."""
        ...

    def apply(self, images: Array, draws: PyTree) -> Array:
        """Levels 0..255 [b h w c] of any dtype in, float32 levels 0..255 out."""
        ...
