"""Every network of the table is a whole one, and one without BatchNorm trains like the others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import quick_jit

from experiments.parity.recording import RecordedViews
from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.errors import InputError
from jaxmatch.models.build import MODELS, build_model, model_settings
from jaxmatch.models.heads import Linear
from jaxmatch.models.model import Model
from jaxmatch.models.network import make_network
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim
from jaxmatch.step import init_state, make_train_step
from jaxmatch.types import Batch, Examples, Outputs, Spec


def default(name, **settings):
    values = {"name": name, **model_settings(name), **settings}
    return build_model(values, classes=7, heads={"rotation": Linear(4)})


# One of each kind; this transformer has every layer that a named one may have.
DIFFERENT = ("wide_resnet", "resnet18", "vit_base_patch14_reg4_dinov2")


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=() if each in DIFFERENT else pytest.mark.slow) for each in MODELS],
)
def test_a_network_gives_outputs_and_names_its_layers(name):
    model = default(name)

    def run(images):
        variables = model.init(jax.random.key(0), images, train=False)
        return variables, model.apply(variables, images, train=False)

    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)  # patches of 14, 16, 32 fit
    variables, outputs = jax.eval_shape(run, images)
    assert isinstance(outputs, Outputs)
    assert outputs.logits.shape == (2, 7)
    assert outputs.heads["rotation"].shape == (2, 4)
    assert outputs.features.ndim == 2
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {np.dtype("float32")}
    assert set(variables) <= {"params", "batch_stats"}
    assert "classifier" in variables["params"]
    for path in [path for layer in model.layers for path in layer]:
        found = variables["params"]
        for part in path.split("/"):
            if part in found or path != "feature_norm":  # an optional layer
                found = found[part]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet81", {}, "unknown model 'resnet81'; did you mean 'resnet18'?"),
        ("wide_resnet", {"depth": 11}, "model.depth=11 is not 6n + 4"),
        ("wide_resnet", {"padding": "sane"}, "unknown model.padding 'sane'; did you mean 'same'?"),
        ("wide_resnet", {"padding": 1}, "model.padding=1 must be a text"),
        ("resnet18", {"depth": 10}, "model resnet18 has no setting 'depth'"),
        ("resnet18", {"block": "basic"}, "model resnet18 has no setting 'block'"),
    ],
)
def test_what_a_network_does_not_take_is_refused(name, settings, message):
    values = {"name": name, **settings}
    with pytest.raises(InputError) as caught:
        build_model(values, classes=3, heads={})
    assert message in str(caught.value)


class Plain(Model):
    """One dense layer, without BatchNorm."""

    layers = (("hidden",), ("classifier",))

    @nn.compact
    def __call__(self, x, train):
        features = nn.relu(nn.Dense(4, name="hidden")(x.reshape(len(x), -1)))
        return self.read_out(features, train, nn.initializers.lecun_normal())


def test_a_network_without_layers_has_no_rate_for_each():
    with pytest.raises(InputError, match="needs a network that lists its layers"):
        Optim(layer_decay=0.5, schedule="constant").build(4)


@pytest.mark.slow  # parity/ trains such networks
def test_a_network_without_batch_norm_takes_a_step():
    model, algorithm = Plain(classes=3), FixMatch()
    spec = Spec(classes=3, steps=4, labels=(0, 1, 2), unlabeled=6)
    optim = Optim(layer_decay=0.5, schedule="constant")
    with pytest.raises(InputError, match="needs a network that lists its layers"):
        optim.build(4)
    optimizer, augment = optim.build(4, model.layers), RecordedViews()
    images = jax.random.normal(jax.random.key(0), (6, 4, 4, 3))
    batch = Batch(
        Examples((images[:3],), jnp.arange(3), jnp.arange(3)),
        Examples((images, images + 1), None, jnp.arange(6)),
    )
    init = quick_jit(
        lambda key: init_state(key, model, images[:1], algorithm, augment, optimizer, spec)
    )
    state = init(jax.random.key(1))
    step = make_train_step(
        algorithm, make_network(model, 3), augment, optimizer, optim.rate(4), Ema(decay=0.5), spec
    )
    after, metrics = jax.jit(step)(state, batch)
    assert after.stats == after.teacher["batch_stats"] == {}
    assert np.isfinite(metrics["loss/total"])
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, state.params))
    taught = optax.tree.norm(jax.tree.map(jnp.subtract, after.teacher["params"], state.params))
    np.testing.assert_allclose(taught, moved / 2, rtol=1e-5)
