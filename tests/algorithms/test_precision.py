"""Products outside the network keep float32 on accelerators, whose default is bfloat16 or TF32."""

import re

import jax
import jax.numpy as jnp
import pytest
from helpers import (
    LABELED_BATCH,
    SPEC,
    TinyNetwork,
    color_network,
    color_variables,
    frozen_roles,
    initial_state,
    toy_data,
)
from test_common import CASES
from tiny_runs import configuration

from jaxmatch.augment.build import build_augment
from jaxmatch.evaluation.probe import _fit, _hits
from jaxmatch.functional.clustering import kmeans
from jaxmatch.models.network import make_network
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim
from jaxmatch.runtime.mesh import make_mesh
from jaxmatch.step import make_train_step

INSIDE = "inside_the_network"
PRODUCT = re.compile(r"= \"?stablehlo\.(dot_general|dot|convolution)\b.*loc\((.*)\)$")


def inside(network):
    """``network`` with a name on all that it and its gradient compute."""

    def call(variables, views, train=True):
        with jax.named_scope(INSIDE):
            return network(variables, views, train=train)

    return call


def products(lowered):
    """Each product of a lowered program: its line, and the place in the source it comes from."""
    text = lowered.as_text(debug_info=True)
    places = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", text, re.MULTILINE))

    def spelled(place):
        return re.sub(r"#loc\d*", lambda found: spelled(places.get(found[0], "")), place)

    found = (PRODUCT.search(line) for line in text.splitlines())
    return [(each[0], spelled(each[2])) for each in found if each]


# With a queue and a graph; fixmatch is below, and -m slow has all methods.
FEW = ("comatch",)


def imprecise(lowered):
    """Where the program has products outside the network that round what they multiply.

    Those of default precision round to bfloat16: factors of at most 8 bits stay what they are.
    """
    return [
        place
        for line, place in products(lowered)
        if INSIDE not in place and line.count("HIGHEST") != 2 and not exact(line)
    ]


def exact(line):
    """Whether both factors of a product have a dtype whose values bfloat16 holds."""
    factors = re.search(r": \(tensor<([^>]*)>, tensor<([^>]*)>\) ->", line)
    return all(each.rpartition("x")[2] in ("bf16", "ui8", "i8", "i1") for each in factors.groups())


def lower(algorithm, **options):
    """The train step of ``algorithm`` with real views, lowered for a TPU."""
    config = configuration("x.npz", **options)
    augment, _ = build_augment(config.augment, config.views, algorithm, mean=(0.5,), std=(0.5,))
    network = inside(make_network(TinyNetwork(heads=algorithm.heads)))
    optim = Optim()
    frozen = dict.fromkeys(frozen_roles(algorithm), inside(color_network))
    step = make_train_step(
        algorithm,
        network,
        augment,
        optim.build(SPEC.steps),
        optim.rate(SPEC.steps),
        Ema(),
        SPEC,
        frozen,
    )
    data = toy_data(algorithm)
    sizes = (LABELED_BATCH, SPEC.unlabeled_batch)
    batch = data._replace(
        **{
            name: jax.tree.map(lambda leaf, size=size: leaf[:size], getattr(data, name))
            for name, size in zip(("labeled", "unlabeled"), sizes, strict=True)
        },
        frozen={role: color_variables() for role in frozen} or None,
    )
    state = initial_state(algorithm).replace(policy=augment.init())
    return jax.jit(step).trace(state, batch).lower(lowering_platforms=("tpu",))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in CASES]
)
def test_products_outside_the_network_are_of_full_precision(name):
    lowered = lower(CASES[name], views__weak__area="(0.5,1.0)", augment="contrast")
    assert any(INSIDE in place for _, place in products(lowered))
    assert imprecise(lowered) == []


@pytest.mark.parametrize(
    "augment", ["randaugment", pytest.param("ctaugment", marks=pytest.mark.slow)]
)
def test_those_of_the_strong_views_too(augment):
    lowered = lower(CASES["fixmatch"], augment=augment)
    assert imprecise(lowered) == []


def test_those_of_probes_and_clusterings_too():
    points, labels = jnp.ones((12, 5)), jnp.arange(12) % 3
    cluster = jax.jit(lambda key, points: kmeans(key, points, 3))
    traced = (
        _hits.trace((points, labels), (points, labels), make_mesh(1), 4, 3, 6),
        _fit.trace(points, labels, 3, 1e-3),
        cluster.trace(jax.random.key(0), points),
    )
    for each in traced:
        lowered = each.lower(lowering_platforms=("tpu",))
        assert products(lowered)
        assert imprecise(lowered) == []


def test_a_product_of_default_precision_is_found():
    def loss(x):
        with jax.named_scope(INSIDE):
            x = jnp.tanh(x @ x)
        return (x @ x).sum()

    x = jnp.ones((4, 4))
    found = jax.jit(jax.grad(loss)).trace(x).lower(lowering_platforms=("tpu",))
    assert len(products(found)) == 5
    assert len(imprecise(found)) == 2
