"""What fast tests share: a one-convolution network, its NumPy twin, a toy problem, a built step."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxmatch.augment.views import Views
from jaxmatch.models.batch_norm import BatchNorm
from jaxmatch.models.heads import filled_in
from jaxmatch.models.network import make_network
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim
from jaxmatch.runtime.dispatch import make_call
from jaxmatch.runtime.mesh import make_mesh, replicated, shard_batch
from jaxmatch.step import init_state, make_train_step
from jaxmatch.types import Batch, Examples, Outputs, Spec, Target, TrainState

CLASSES, SIDE = 4, 8
LABELED, UNLABELED = 16, 64  # images in the toy sets
LABELED_BATCH, UNLABELED_BATCH = 8, 24
COLORS = np.array([[180, 90, 90], [90, 180, 90], [90, 90, 180], [140, 140, 90]])
BN_DECAY, BN_EPS, SLOPE = 0.9, 1e-3, 0.1
SPEC = Spec(
    classes=CLASSES,
    steps=100,
    labels=tuple(i % CLASSES for i in range(LABELED)),
    unlabeled=UNLABELED,
    labeled_batch=LABELED_BATCH,
    unlabeled_batch=UNLABELED_BATCH,
)

# Most of a test's time is LLVM optimising what runs only a few times.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class TinyNetwork(nn.Module):
    """Convolution, BatchNorm, leaky ReLU, average, classifier; compiles in a moment."""

    heads: Mapping[str, Any] = nn.FrozenDict()
    param_dtype: Any = jnp.float32
    bn_groups = 1
    random = False

    @nn.compact
    def __call__(self, x, train):
        dtype = {"param_dtype": self.param_dtype}
        # A bias before BatchNorm has no gradient but rounding: nothing to compare between devices.
        x = nn.Conv(6, (3, 3), padding="VALID", use_bias=False, name="conv", **dtype)(x)
        x = BatchNorm(decay=BN_DECAY, epsilon=BN_EPS, name="norm", **dtype)(x, train)
        features = nn.leaky_relu(x, SLOPE).mean((1, 2))
        heads = {
            name: filled_in(head, classes=CLASSES).clone(name=name, parent=self, **dtype)(
                features, train
            )
            for name, head in self.heads.items()
        }
        return Outputs(nn.Dense(CLASSES, name="classifier", **dtype)(features), features, heads)


def numpy_logits(params, images):
    """The TinyNetwork in train mode on one joint batch [b h w c], in NumPy: logits [b C]."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), (1, 2))
    x = np.einsum("bhwcij,ijco->bhwo", windows, params["conv"]["kernel"])
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + BN_EPS)
    x = x * params["norm"]["scale"] + params["norm"]["bias"]
    features = np.where(x > 0, x, SLOPE * x).mean((1, 2))
    return features @ params["classifier"]["kernel"] + params["classifier"]["bias"]


def numpy_cross_entropy(logits, target):
    """H(target, softmax(logits)) of each row; ``target`` are probabilities [b C]."""
    top = logits.max(1, keepdims=True)
    log_sum = top + np.log(np.exp(logits - top).sum(1, keepdims=True))
    return (target * (log_sum - logits)).sum(1)


def numpy_softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def one_hot(label):
    return np.eye(CLASSES)[np.asarray(label)]


@dataclass(frozen=True)
class Noise:
    """A Transform that adds uniform noise of ``scale`` levels either way."""

    scale: float

    def draw(self, key, shape):
        return jax.random.uniform(key, shape, minval=-1)

    def apply(self, images, draws):
        return images + self.scale * draws


def views_of(algorithm):
    """An Augment that serves whatever roles ``algorithm`` asks for: noise, more for strong ones."""
    roles = (*algorithm.labeled, *algorithm.unlabeled)
    return Views(
        transforms={role: Noise(90 if "strong" in role else 20) for role in roles},
        labeled=algorithm.labeled,
        unlabeled=algorithm.unlabeled,
    )


def toy_images(count, seed):
    """Noisy images [count h w 3] uint8 whose colour tells the class [count]."""
    random = np.random.default_rng(seed)
    label = (np.arange(count) % CLASSES).astype(np.int32)
    brightness = random.uniform(0.7, 1.3, (count, 1, 1, 1))
    noise = random.normal(0, 30, (count, SIDE, SIDE, 3))
    images = COLORS[label][:, None, None] * brightness + noise
    return np.clip(images, 0, 255).astype(np.uint8), label


def color_network(variables, views, train=False):
    """A frozen Network that knows the classes of the toy problem by their mean colour."""
    del train
    color = views.mean((1, 2)) + 1
    color = color / jnp.linalg.norm(color, axis=1, keepdims=True)
    return Outputs(color @ variables["kernel"], color, {}), {}


def color_variables():
    return {"kernel": (100 * COLORS / np.linalg.norm(COLORS, axis=1, keepdims=True)).T}


def frozen_roles(algorithm):
    return getattr(algorithm, "frozen", ())


def toy_data(algorithm, seed=0):
    """All examples of the toy problem as a Batch; unlabeled ones carry their true labels."""

    def examples(roles, count, seed):
        if not roles:
            return None
        images, label = toy_images(count, seed)
        return Examples((images,), label, np.arange(count, dtype=np.int32))

    return Batch(
        examples(algorithm.labeled, LABELED, 2 * seed),
        examples(algorithm.unlabeled, UNLABELED, 2 * seed + 1),
        {role: color_variables() for role in frozen_roles(algorithm)} or None,
    )


def toy_views(algorithm, seed=0):
    """One float64 NumPy Batch of views, ready for ``algorithm.loss``."""
    random = np.random.default_rng(seed)

    def views(examples, roles, size):
        if examples is None:
            return None
        images = examples.views[0][:size] / 127.5 - 1
        noisy = tuple(images + random.normal(0, 0.3, images.shape) for _ in roles)
        return Examples(noisy, examples.label[:size], examples.index[:size])

    data = toy_data(algorithm, seed)
    labeled = views(data.labeled, algorithm.labeled, LABELED_BATCH)
    unlabeled = views(data.unlabeled, algorithm.unlabeled, UNLABELED_BATCH)
    frozen = {
        role: tuple(color_network(data.frozen[role], view)[0] for view in unlabeled.views)
        for role in frozen_roles(algorithm)
    }
    return Batch(labeled, unlabeled, jax.device_get(frozen) or None)


def randomized(tree, seed=0, scale=0.5):
    """``tree`` plus noise, so that zero biases and unit scales cannot hide a mistake."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(leaf + random.normal(0, scale, leaf.shape)), tree)


@lru_cache
def initial_state(algorithm, dtype=jnp.float32, seed=0, refreshed=True):
    """The state before the first step; float64 needs ``jax.enable_x64``."""
    model = TinyNetwork(heads=algorithm.heads, param_dtype=dtype)
    images = jnp.zeros((1, SIDE, SIDE, 3), dtype)

    def init(key):
        optimizer = Optim().build(SPEC.steps)
        return init_state(key, model, images, algorithm, views_of(algorithm), optimizer, SPEC)

    state = quick_jit(init)(jax.random.key(seed))
    if not (refreshed and hasattr(algorithm, "refresh")):
        return state

    def embed(variables):
        inputs = jnp.asarray(toy_data(algorithm).unlabeled.views[0] / 127.5 - 1, dtype)
        return model.apply(variables, inputs, False).heads

    return state.replace(memory=algorithm.refresh(state, embed))


def toy_state(algorithm, dtype=jnp.float32, step=0, seed=0, refreshed=True):
    """A state whose student and teacher have random parameters."""
    state = initial_state(algorithm, dtype, refreshed=refreshed)
    params = randomized(state.params, seed)
    teacher = {**state.teacher, "params": randomized(state.params, seed + 1)}
    return state.replace(step=jnp.int32(step), params=params, teacher=teacher)


def linear_network(variables, views, train=True):
    """A Network without BatchNorm: logits = images @ kernel, so views cannot touch each other."""
    del train

    def output(leaf):
        images = leaf.view if isinstance(leaf, Target) else leaf
        flat = images.reshape(len(images), -1)
        return Outputs(flat @ variables["params"]["kernel"], flat, {})

    outputs = jax.tree.map(output, views, is_leaf=lambda leaf: isinstance(leaf, Target))
    return outputs, variables["batch_stats"]


def linear_loss(algorithm, kernel, labeled, unlabeled, step=0, frozen=None):
    """``algorithm.loss`` on flat views with :func:`linear_network`: (value, update)."""
    state = TrainState(
        step=jnp.int32(step),
        key=None,
        params=None,
        stats={},
        teacher=None,
        optimizer=None,
        memory=(),
        policy=(),
    )
    loss = partial(algorithm.loss, linear_network, spec=SPEC)
    return jax.jit(loss)({"kernel": kernel}, state, Batch(labeled, unlabeled, frozen), ())


@dataclass(frozen=True)
class Built:
    """A compiled-on-first-use run of the toy problem."""

    init: Any  # () -> state on the mesh
    call: Any  # jitted (state, data) -> (state, meter); the state is donated
    place: Any  # data -> data on the mesh
    traces: list  # grows each time the step is traced
    mesh: Any


def build(
    algorithm,
    devices=4,
    steps_per_call=5,
    dtype=jnp.float32,
    model=None,
    state=None,
    learning_rate=0.1,
):
    """Build a run as the program does, for ``devices`` of the simulated ones."""
    mesh = make_mesh(devices, LABELED_BATCH, UNLABELED_BATCH)
    model = model or TinyNetwork(heads=algorithm.heads, param_dtype=dtype)
    state = state or initial_state(algorithm, dtype)
    network = make_network(model, mesh.size)
    augment = views_of(algorithm)
    optim = Optim(learning_rate=learning_rate)
    optimizer = optim.build(SPEC.steps)
    rate = optim.rate(SPEC.steps)
    frozen = dict.fromkeys(frozen_roles(algorithm), color_network)
    step = make_train_step(
        algorithm, network, augment, optimizer, rate, Ema(decay=0.9), SPEC, frozen
    )
    traces = []

    def examples_of(data, state):
        traces.append(None)

        def take(examples, size):
            count = examples.index.shape[0]
            index = (state.step * size + jnp.arange(size)) % count
            return shard_batch(jax.tree.map(lambda leaf: leaf[index], examples), mesh)

        return Batch(
            data.labeled and take(data.labeled, LABELED_BATCH),
            data.unlabeled and take(data.unlabeled, UNLABELED_BATCH),
            data.frozen,
        )

    everywhere = replicated(mesh)
    call = quick_jit(
        make_call(step, examples_of, steps_per_call),
        in_shardings=(everywhere, everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
    )
    return Built(
        init=lambda: jax.device_put(jax.tree.map(jnp.copy, state), everywhere),
        call=call,
        place=lambda data: jax.device_put(data, everywhere),
        traces=traces,
        mesh=mesh,
    )


def on_host(state: TrainState):
    """All leaves as NumPy arrays, the key as its data."""
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def assert_close(left, right, tolerance):
    """All leaves of two trees agree to ``tolerance``, relative to the largest value of each."""
    paths = jax.tree_util.tree_leaves_with_path(left)
    for (path, a), b in zip(paths, jax.tree.leaves(right), strict=True):
        scale = max(1e-6, np.abs(b).max(initial=0))
        error = np.abs(np.asarray(a, float) - np.asarray(b, float)).max(initial=0) / scale
        assert error <= tolerance, f"{jax.tree_util.keystr(path)} differs by {error:.1e}"


def assert_bitwise(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)
