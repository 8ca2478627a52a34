"""Data sets that do not fit a device: loader processes decode and crop, the device does the rest.

A :class:`Feed` gives the examples of one step after another. :class:`~.loading.Plan` says what each
step reads, for any number of processes and workers. So a run continues from its step alone: a
checkpoint holds no state of the loader, and a loader that lost a worker starts again.
"""

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from numpy.typing import DTypeLike

from jaxmatch.data import order
from jaxmatch.data.crops import HostCrop
from jaxmatch.data.lazy import LazyImages, left_out
from jaxmatch.data.loading import Plan, Pool
from jaxmatch.data.resident import Resident
from jaxmatch.errors import InputError, JaxmatchError
from jaxmatch.runtime.hosts import gather, leader
from jaxmatch.runtime.mesh import from_processes, over_batch, process_share
from jaxmatch.runtime.root_logger import same_handlers
from jaxmatch.types import Array, Batch, Examples, PyTree, Spec

with same_handlers():  # it imports Orbax, too
    import grain

log = logging.getLogger(__name__)

MOST_WORKERS = 32  # each holds a few hundred megabytes
AHEAD = 2  # steps whose examples are sent to the device before they are needed
RESTARTS = 3  # starts of the loader at one step before the run fails
TELL_EVERY = 1000  # steps between two exchanges of unreadable images by several processes

Crops = Mapping[str, tuple[HostCrop, ...]]


def plan(
    data: Resident,
    key: Array,
    spec: Spec,
    crops: Crops,
    seed: int,
    mesh: Mesh,
    balanced: bool = False,
) -> Plan:
    """The plan of what this process loads at each step.

    Args:
        data: the pools, as LazyImages.
        key: draws the order, as for resident sets.
        spec: has the batch sizes.
        crops: the crops of the view roles of "labeled" and "unlabeled".
        seed: the run's seed.
        mesh: the devices that share the batch.
        balanced: whether labeled examples are drawn equally often from each class.
    """
    sets = {
        "labeled": (data.labeled_images, data.labeled_labels, spec.labeled_batch),
        "unlabeled": (data.unlabeled_images, data.unlabeled_labels, spec.unlabeled_batch),
    }
    pools = {}
    for number, (name, (images, labels, batch)) in enumerate(sets.items()):
        if not batch:
            continue
        assert isinstance(images, LazyImages)
        first, count = process_share(batch, mesh)
        pools[name] = Pool(
            records=images.records,
            rows=images.rows,
            labels=np.asarray(labels),
            words=np.asarray(order.words(jax.random.fold_in(key, number))),
            crops=crops[name],
            batch=batch,
            first=first,
            count=count,
            seeds=(seed, number),
            levels=images.levels,
            balanced=spec.classes if balanced and name == "labeled" else 0,
        )
    return Plan(pools=pools)


class Feed:
    """Gives the examples of step ``first``, then of the next step at each call, over the mesh."""

    def __init__(
        self,
        plan: Plan,
        mesh: Mesh,
        first: int,
        steps: int,
        workers: int,
        strict: bool = False,
        frozen: PyTree = None,
    ):
        """Start the loader.

        Args:
            plan: what each step reads.
            mesh: the devices that share a batch.
            first: the first step.
            steps: the number of steps of the run.
            workers: the number of loader processes; 0 is one for each core.
            strict: an unreadable image is an error.
            frozen: the variables of frozen networks, for ``Batch.frozen``.
        """
        self.plan, self.mesh, self.steps, self.strict = plan, mesh, steps, strict
        self.frozen = frozen
        self.workers = workers or min(len(os.sched_getaffinity(0)), MOST_WORKERS)
        self.next_step = first  # the next step to load
        self.ready: list[Batch] = []
        self.met: dict[str, list[int]] = {name: [] for name in plan.pools}  # rows not readable
        self.named: set[int] = set()
        self.loader = self._start()

    def __call__(self) -> Batch:
        """The examples of the next step.

        Raises:
            InputError: with ``strict``, on all processes, if one of them found an unreadable image.
        """
        while len(self.ready) <= AHEAD and self.next_step < self.steps:
            self.ready.append(self._on_device(self._load()))
            self.next_step += 1
        return self.ready.pop(0)

    def __enter__(self) -> Self:
        """The feed itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers."""
        self.close()

    def close(self) -> None:
        """End the workers."""
        loader: Any = self.loader
        self.loader = iter(())
        if hasattr(loader, "close"):  # grain's; the iterator of a closed feed has none
            loader.close()
        del loader
        gc.collect()  # grain's cycles hold the shared memory of its last elements

    def _start(self) -> Iterator[Any]:
        steps = grain.MapDataset.range(self.next_step, self.steps).map(self.plan.load)
        # One element is a whole step, so a worker sends it to this process as one block.
        each = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        workers = grain.MultiprocessingOptions(num_workers=self.workers)
        with _parsed_flags():
            return iter(each.mp_prefetch(workers, worker_init_fn=_follow_parent))

    def _load(self) -> Mapping[str, Any]:
        for attempt in range(RESTARTS + 1):
            try:
                with _parsed_flags():
                    loaded = next(self.loader)
                # A copy, so that the shared memory is free at once.
                return jax.tree.map(np.array, loaded)
            except InputError:
                raise
            # If a worker dies, grain and multiprocessing raise several kinds of errors.
            except Exception as error:
                self.close()
                if attempt == RESTARTS:
                    raise JaxmatchError(
                        f"the loader failed {attempt + 1} times at step {self.next_step}: {error}; "
                        "the same command continues from the last checkpoint."
                    ) from error
                log.warning("The loader failed at step %d and starts anew.", self.next_step)
                self.loader = self._start()
        raise AssertionError

    def _on_device(self, loaded: Mapping[str, Any]) -> Batch:
        parts = {}
        for name, pool in self.plan.pools.items():
            found = loaded[name]
            self.met[name] += found["unreadable"].tolist()
            if self._tells():
                with jax.transfer_guard("allow"):  # the train step forbids it
                    rows = gather(np.array(self.met[name], np.int64))
                self.met[name] = []
                self._tell(pool, rows)

            def spread(rows: np.ndarray, size: int = pool.batch) -> Array:
                return from_processes(rows, size, self.mesh)

            parts[name] = Examples(
                views=tuple(spread(view) for view in found["views"]),
                label=spread(found["label"]),
                index=spread(found["index"]),
            )
        return Batch(parts.get("labeled"), parts.get("unlabeled"), self.frozen)

    def _tells(self) -> bool:
        """Whether the processes exchange unreadable images at this step; all give the same answer.

        An exchange makes them wait for each other, so they do it rarely.
        """
        often = self.strict or jax.process_count() == 1
        return often or self.next_step % TELL_EVERY == 0 or self.next_step == self.steps - 1

    def _tell(self, pool: Pool, unreadable: np.ndarray) -> None:
        new = {int(row): None for row in unreadable if row not in self.named}
        self.named.update(new)
        if new and self.strict:
            listed = left_out(pool.records, new, pool.levels)
            raise InputError(f"Not readable as images ({listed}).")
        if new and leader():
            listed = left_out(pool.records, new, pool.levels)
            log.warning("Replaced by the next ones, not readable as images (%s).", listed)


def _follow_parent(number: int, workers: int) -> None:
    """Ignore Ctrl-C, which the training process handles, and end when that process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@contextlib.contextmanager
def _parsed_flags() -> Iterator[None]:
    """Let grain read its absl flags in a process that has not parsed its flags."""
    parsed = flags.FLAGS.is_parsed()
    flags.FLAGS.mark_as_parsed()
    try:
        yield
    finally:
        if not parsed:
            flags.FLAGS.unparse_flags()


def shapes(spec: Spec, crops: Crops, mesh: Mesh) -> Batch:
    """Shapes, dtypes and shardings of a step's examples; arguments are those of :func:`plan`."""

    def one(name: str, batch: int) -> Examples | None:
        if not batch:
            return None

        def like(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
            return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=over_batch(mesh))

        views: Any = tuple(like((*crop.size, 3), np.uint8) for crop in crops[name])
        return Examples(views=views, label=like((), np.int32), index=like((), np.int32))

    return Batch(one("labeled", spec.labeled_batch), one("unlabeled", spec.unlabeled_batch))


def places(data: PyTree) -> PyTree:
    """The sharding of each leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, data)
