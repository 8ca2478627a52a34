"""timm's own networks: their files compute the same here, and timm reads what is exported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick_jit
from safetensors.numpy import load_file, save_file

from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.algorithms.simclr import SimCLR
from jaxmatch.models.build import build_model
from jaxmatch.models.network import make_network
from jaxmatch.weights.export import export
from jaxmatch.weights.trained import Trained
from jaxmatch.weights.transfer import read_vit_file

CLASSES = 5
# timm's entry point, its options, our name and settings.
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4}
OURS = {"width": 32, "depth": 2, "heads": 4}
NETWORKS = [
    ("vit_small_patch16_224", {}, {}),
    ("vit_small_patch16_224", {"global_pool": "avg"}, {"pool": "average"}),
    (
        "vit_small_patch16_224",
        {"global_pool": "avg", "fc_norm": False},
        {"pool": "average", "fc_norm": False},
    ),
    ("vit_small_patch14_dinov2", {}, {}),
    ("vit_small_patch14_reg4_dinov2", {}, {}),
    ("vit_base_patch32_clip_224", {}, {}),
    ("vit_base_patch32_clip_quickgelu_224", {}, {}),
]


@pytest.mark.parametrize(("name", "options", "settings"), NETWORKS, ids=str)
@pytest.mark.parametrize("grids", [(4, 4), (4, 3)])
@pytest.mark.parametrize("method", [FixMatch, SimCLR])
def test_timm_and_this_network_are_one(name, options, settings, grids, method, tmp_path):
    timm = pytest.importorskip("timm")
    torch = pytest.importorskip("torch")
    filtered = timm.models.vision_transformer.checkpoint_filter_fn
    model = build_model({"name": name, **OURS, **settings}, classes=CLASSES, heads={})
    there, here = (grid * model.patch for grid in grids)

    def theirs(side, classes=CLASSES):
        options_of_side = {"img_size": side, "num_classes": classes, **SMALL, **options}
        return timm.create_model(name, pretrained=False, **options_of_side).eval()

    source, expected = theirs(there), theirs(here)
    random = np.random.default_rng(0)
    tensors = {
        key: value.numpy() + random.normal(size=value.shape, scale=0.1).astype(np.float32)
        for key, value in source.state_dict().items()
    }
    save_file(tensors, tmp_path / "timm.safetensors")
    as_torch = {key: torch.from_numpy(value) for key, value in tensors.items()}
    expected.load_state_dict(filtered(as_torch, expected), strict=True)

    images = random.normal(size=(2, here, here, 3)).astype(np.float32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images, False))["params"]
    loaded = read_vit_file(
        str(tmp_path / "timm.safetensors"),
        params,
        image=(here, here),
        classifier=True,
        rules="timm",
    )
    found = quick_jit(lambda variables, x: model.apply(variables, x, False))(
        {"params": loaded.variables["params"]}, jnp.asarray(images)
    )
    with torch.no_grad():
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        features = expected.forward_head(expected.forward_features(x), pre_logits=True).numpy()
        logits = expected(x).numpy()
    np.testing.assert_allclose(found.features, features, atol=1e-4)
    np.testing.assert_allclose(found.logits, logits, atol=1e-4)

    algorithm = method()
    trained = Trained(
        variables=loaded.variables,
        algorithm=algorithm,
        network=make_network(model),
        classes=tuple("abcde"),
        image_shape=(here, here, 3),
        mean=(0.5,),
        std=(0.5,),
    )
    assert export(tmp_path / "ours.safetensors", trained).startswith("timm names")
    written = load_file(tmp_path / "ours.safetensors")
    again = theirs(here, CLASSES if algorithm.labeled else 0)
    again.load_state_dict(
        {key: torch.from_numpy(value.copy()) for key, value in written.items()}, strict=True
    )
    with torch.no_grad():
        found = again(x).numpy()
    np.testing.assert_allclose(found, logits if algorithm.labeled else features, atol=1e-4)
