"""Estimate the device memory of a step from its trace, before it is compiled.

A compiler keeps an array in memory from the operation that makes it to the last one that reads it.
An array that is cheap to make again is not kept: its operation is fused into its readers, and the
operands of the operation are kept instead. The estimate follows the operations of one device's part
of the step in order. Convolutions, products, sums, gathers and sorts make arrays. A chain of
elementwise operations makes an array only if its operands are larger than its result. The largest
number of bytes that live at once estimates what the compiler calls temporary memory.

The constants were fitted to the TPU compiler's numbers for the recipes in ``experiments/tpu``; the
table there shows the errors of the estimate. A program for a CPU needs more than the estimate, up
to twice as much, since XLA fuses less there.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.sharding import AxisType, Mesh
from jax.stages import Compiled

from jaxmatch.data import streaming
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.program import Program
from jaxmatch.runtime.dispatch import make_call, on_cpu
from jaxmatch.runtime.mesh import memory_limit
from jaxmatch.types import PyTree

log = logging.getLogger(__name__)

# Operations whose results a compiler computes again in each operation that reads them.
ELEMENTWISE = """
    abs add add_any and asin atan atan2 bitcast_convert_type broadcast_in_dim ceil clamp
    convert_element_type copy copy_p cos cosh cbrt div eq erf erf_inv exp exp2 expand_dims expm1
    floor ge gt integer_pow iota is_finite le lgamma log log1p logistic lt max min mul ne neg
    nextafter not optimization_barrier or pad population_count pow real reduce_precision rem reshape
    reshard rev round rsqrt select_n sharding_constraint shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh slice split sqrt square squeeze stop_gradient sub tan tanh
    transpose xor random_wrap random_unwrap random_fold_in random_split random_clone
    channel_scale channel_spread dynamic_slice
"""
FUSED = frozenset(ELEMENTWISE.split())
# The names of the parameter that holds the jaxpr of a called function.
CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
LOOPS = ("scan", "while")
# The result of a fused chain is an array if its operands are larger than this multiple of it.
GROWTH = 1.5
LANES, SUBLANES = 128, 8  # of a TPU's registers, which hold 32-bit words
# Of a TPU: bytes of arrays that stay in on-chip memory, and bytes of code for each operation.
ON_CHIP, CODE = 64 * 2**20, 8_000
MOST = 0.75  # a step that takes more of a device's memory than this share gets a warning
SURE = 1.15  # a step is refused if its estimate is this multiple of a device's memory


@dataclass
class Buffer:
    """An array in memory, from the operation ``made`` to its last reader, operation ``read``."""

    bytes: int
    made: int
    read: int


@dataclass(frozen=True)
class Value:
    """A variable of the trace.

    Attributes:
        sources: the buffers that it is computed from; only its own buffer if it has one.
        made: the operation that computes it.
        platform: the branch that it chooses, if it is the index of a platform.
    """

    sources: frozenset[int] = frozenset()
    made: int = 0
    platform: int | None = None


@dataclass
class Trace:
    """The operations of a step in order, and the arrays that they make.

    Attributes:
        platform: of the devices; it chooses the branches of operations, and "tpu" pads arrays to
            tiles.
        buffers: all arrays.
        extra: bytes that live only inside an operation, by operation.
        time: the number of the current operation.
    """

    platform: str
    buffers: list[Buffer] = field(default_factory=list)
    extra: dict[int, int] = field(default_factory=dict)
    time: int = 0

    def run(self, jaxpr: Jaxpr, arguments: Sequence[Value]) -> list[Value]:
        """Follow the operations of ``jaxpr`` from its arguments; return its results."""
        known: dict[Var, Value] = dict(zip(jaxpr.invars, arguments, strict=True))

        def value(atom: Var | Literal) -> Value:
            return Value() if isinstance(atom, Literal) else known.get(atom, Value())

        for operation in jaxpr.eqns:
            found = self.results(operation, list(map(value, operation.invars)))
            known.update(zip(operation.outvars, found, strict=True))
        return list(map(value, jaxpr.outvars))

    def results(self, operation: JaxprEqn, operands: list[Value]) -> list[Value]:
        """The results of one operation."""
        name, params = operation.primitive.name, operation.params
        self.time += 1
        if name == "platform_index":
            return [Value(platform=_branch(params["platforms"], self.platform))]
        if name == "cond":
            chosen = operands[0].platform
            if chosen is not None:
                return self.run(params["branches"][chosen].jaxpr, operands[1:])
            self.extra[self.time] = max(self.inside(each) for each in params["branches"])
            return self.arrays(operation, operands)
        if name in LOOPS:
            bodies = [each for each in params.values() if isinstance(each, ClosedJaxpr)]
            self.extra[self.time] = max(map(self.inside, bodies))
            return self.arrays(operation, operands)
        for key in CALLS:
            if isinstance(called := params.get(key), (Jaxpr, ClosedJaxpr)):
                jaxpr = called if isinstance(called, Jaxpr) else called.jaxpr
                return self.run(jaxpr, operands)
        if name in FUSED:
            sources = frozenset().union(*(operand.sources for operand in operands))
            return [self.fused(variable, sources) for variable in operation.outvars]
        return self.arrays(operation, operands)

    def fused(self, variable: Var, sources: frozenset[int]) -> Value:
        """The result of an elementwise operation: an array only if its operands are larger."""
        size = self.bytes(variable)
        if sum(self.buffers[source].bytes for source in sources) <= GROWTH * size:
            return Value(sources, self.time)
        self.extend(sources, self.time)  # the result may overwrite an operand
        return self.new(size)

    def arrays(self, operation: JaxprEqn, operands: Iterable[Value]) -> list[Value]:
        """The results of an operation that makes arrays."""
        for operand in operands:
            self.extend(operand.sources, self.time + 1)  # no result may overwrite an operand
        return [self.new(self.bytes(variable)) for variable in operation.outvars]

    def extend(self, sources: Iterable[int], time: int) -> None:
        """Keep buffers at least until ``time``."""
        for source in sources:
            self.buffers[source].read = max(self.buffers[source].read, time)

    def new(self, size: int) -> Value:
        """A new buffer of ``size`` bytes."""
        self.buffers.append(Buffer(size, self.time, self.time))
        return Value(frozenset((len(self.buffers) - 1,)), self.time)

    def bytes(self, variable: Var) -> int:
        """Bytes of a variable as an array; a token has none."""
        aval: Any = variable.aval
        return array_bytes(aval.shape, aval.dtype, self.platform) if hasattr(aval, "dtype") else 0

    def inside(self, closed: ClosedJaxpr) -> int:
        """The largest number of bytes that live at once in the body of a loop or a branch."""
        return follow(closed.jaxpr, self.platform).most()

    def most(self) -> int:
        """The largest number of bytes that live at once."""
        change = [0] * (self.time + 3)
        for each in self.buffers:
            change[each.made] += each.bytes
            change[max(each.read, each.made + 1)] -= each.bytes
        live, found = 0, 0
        for time, more in enumerate(change):
            live += more
            found = max(found, live + self.extra.get(time, 0))
        return found


def follow(jaxpr: Jaxpr, platform: str) -> Trace:
    """The temporary arrays of ``jaxpr``; its arguments and results do not count."""
    trace = Trace(platform)
    results = trace.run(jaxpr, [Value()] * len(jaxpr.invars))
    for result in results:
        for source in result.sources:
            found = trace.buffers[source]
            if found.made == result.made and len(result.sources) == 1:
                found.bytes = 0  # it is a result
            else:
                found.read = max(found.read, result.made)
    return trace


def array_bytes(shape: Sequence[int], dtype: Any, platform: str) -> int:
    """Bytes of an array in memory; typed keys count 0.

    A TPU stores two of the axes in tiles of 8 x 128 words. It chooses those with least padding.
    """
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return 0
    width = dtype.itemsize
    size = math.prod(shape) * width
    if platform != "tpu" or not size:
        return size
    sides = sorted(side for side in shape if side > 1) or [1]
    best = None
    for lane in range(len(sides)):
        for sublane in range(len(sides)):
            if lane == sublane and len(sides) > 1:
                continue
            rest = math.prod(side for at, side in enumerate(sides) if at not in (lane, sublane))
            rows = sides[sublane] if len(sides) > 1 else 1
            tile = min(SUBLANES * (4 // width or 1), 1 << (rows - 1).bit_length())
            padded = rest * _up(rows, tile) * _up(sides[lane], LANES)
            best = padded if best is None else min(best, padded)
    return (best or 1) * width


def _up(size: int, unit: int) -> int:
    """``size`` rounded up to a multiple of ``unit``."""
    return -(-size // unit) * unit


def _branch(platforms: Sequence[Sequence[str] | None], platform: str) -> int:
    """The branch of a platform; ``platforms`` has the names for each branch, None as default."""
    names = {"gpu": ("gpu", "cuda", "rocm")}.get(platform, (platform,))
    for number, known in enumerate(platforms):
        if known is None or any(name in known for name in names):
            return number
    return len(platforms) - 1


def share(program: Program) -> Program:
    """The program of one device, for its part of the batch."""
    config, spec, size = program.config, program.spec, program.mesh.size
    if size == 1:
        return program
    # Of one process: make_mesh would give every process of a run a device.
    mesh = Mesh(program.mesh.devices.reshape(-1)[:1], ("data",), axis_types=(AxisType.Auto,))
    model = program.model
    if model.bn_groups > 1:
        model = replace(model, bn_groups=1)
    labeled, unlabeled = spec.labeled_batch // size, spec.unlabeled_batch // size
    # With groups, microbatches are groups of all devices, and a device may have fewer images.
    parts = math.gcd(config.microbatches, labeled, unlabeled)
    return replace(
        program,
        mesh=mesh,
        model=model,
        network=make_network(model, 1, config.forward, parts, on_cpu(mesh), config.precision),
        spec=replace(spec, labeled_batch=labeled, unlabeled_batch=unlabeled),
    )


def estimate(program: Program, frozen: PyTree = None) -> dict[str, int]:
    """Bytes on each device: of the "state", the "data", a step's temporary "arrays" and its "code".

    A loop over steps keeps a second state. Gradients that devices exchange are held twice.

    Args:
        program: of all devices.
        frozen: the variables of the frozen networks by role, or their shapes; by default the
            student's shapes.
    """
    mesh, local = program.mesh, share(program)
    platform = mesh.devices.flat[0].platform

    def held(tree: PyTree, shardings: PyTree = None) -> int:
        shapes = [leaf.shape for leaf in jax.tree.leaves(tree)]
        if shardings is not None:
            places = jax.tree.leaves(shardings)
            shapes = [one.shard_shape(shape) for one, shape in zip(places, shapes, strict=True)]
        leaves = zip(jax.tree.leaves(tree), shapes, strict=True)
        return sum(array_bytes(shape, leaf.dtype, platform) for leaf, shape in leaves)

    data = program.data if not frozen else program.data._replace(frozen=frozen)
    if program.config.data.stream:
        data = streaming.shapes(local.spec, local.crops, local.mesh)._replace(frozen=data.frozen)
    call = make_call(local.step, local.examples, 1)
    trace = follow(jax.jit(call).trace(program.state, data).jaxpr.jaxpr, platform)
    state = held(program.state, program.shardings)
    arrays = trace.most() - (ON_CHIP if platform == "tpu" else 0)
    exchanged = 2 * held(program.state.params) if mesh.size > 1 else 0
    loop = program.scanned() > 1
    return {
        "state": state,
        "data": held(data),
        "arrays": max(arrays, exchanged) + (state if loop else 0),
        "code": CODE * trace.time if platform == "tpu" else 0,
    }


def check_step(program: Program, beside: int = 0, seeds: int = 1, frozen: PyTree = None) -> None:
    """Refuse, before it is compiled, a step that clearly does not fit into a device's memory.

    The compiler decides near the limit. Nothing is refused if the device does not report its
    memory.

    Args:
        program: of the run.
        beside: bytes of held-out images that each device holds during the step.
        seeds: the number of runs that a device computes at once.
        frozen: as of :func:`estimate`.

    Raises:
        InputError: if the step does not fit; the message lists the estimated bytes.
    """
    mesh = program.mesh
    limit = memory_limit(mesh)
    if limit is None:
        return
    found = estimate(program, frozen) | ({"held-out images": beside} if beside else {})
    found |= {name: seeds * found[name] for name in ("state", "arrays")}
    if sum(found.values()) > SURE * limit:
        listed = ", ".join(f"{name} {size:,}" for name, size in found.items() if size)
        raise InputError(
            f"a device has {limit:,} bytes, but a step needs about {sum(found.values()):,} "
            f"({listed}); use more devices, dtype=bfloat16, microbatches or a smaller batch."
        )


def program_bytes(executable: Compiled) -> int:
    """Bytes on each device of a compiled program's arguments, results and temporary arrays."""
    found = executable.memory_analysis()
    if found is None:
        return 0
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
        + found.generated_code_size_in_bytes
    )


def check_compiled(mesh: Mesh, needed: int) -> None:
    """Refuse a compiled program that the memory cannot hold; warn if it takes most of it.

    Args:
        mesh: the devices.
        needed: bytes on each device.

    Raises:
        InputError: if it does not fit.
    """
    limit = memory_limit(mesh)
    if limit is None:
        return
    remedy = "use a smaller data.image_size, data.batch_size or size, microbatches, or remat=True"
    if needed > limit:
        raise InputError(
            f"a step needs {needed:,} bytes of memory, but there are {limit:,}; {remedy}."
        )
    if needed > MOST * limit:
        log.warning(
            "a step needs %.1f of %.1f GB of memory, so the system may end the run; %s.",
            needed / 1e9,
            limit / 1e9,
            remedy,
        )
