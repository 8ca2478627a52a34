"""Recorded Vision Transformers pass, and fail when the library is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.parity import functions_vit, usb
from experiments.parity.__main__ import main
from experiments.parity.rows import TOLERANCE, Case, Comparison
from experiments.parity.tensors import VIT, to_torch
from jaxmatch.models import transformer
from jaxmatch.models.build import build_model, model_settings
from jaxmatch.models.transformer import drop_rates
from jaxmatch.models.vit import ViT

GOLDEN = Path(__file__).parents[1] / "golden"
NETWORKS = (
    "net_vit_timm_dinov2_reg4_avg",
    "net_vit_timm_clip_gelu",
    "net_vit_timm_avg_nofcnorm",
    "net_vit_usb_layerscale_noqkvbias",
    "fn_vit_drop_path",
    "fn_lora",
)
TRAJECTORIES = {
    "vit_fullysupervised_adamw_layerdecay_avg": "library",
    "vit_simmatch_ema_teacher": "override: alignment.align, SimMatch.forward",
}


# Others of their kind stay.
SLOW = (
    "net_vit_timm_clip_gelu",
    "net_vit_timm_avg_nofcnorm",
    "net_vit_usb_layerscale_noqkvbias",
    "vit_simmatch_ema_teacher",
)


def replay(name, capsys):
    """The exit code, and the quantities that fail."""
    code = main([str(GOLDEN / f"{name}.npz")])
    lines = capsys.readouterr().out.splitlines()
    return code, {line.split()[1] for line in lines if " FAIL " in line}, lines


@pytest.mark.parametrize(
    ("name", "source"),
    [
        pytest.param(*each, marks=pytest.mark.slow if each[0] in SLOW else ())
        for each in (*((name, "library") for name in NETWORKS), *TRAJECTORIES.items())
    ],
)
def test_the_library_equals_the_reference(name, source, capsys):
    code, failed, lines = replay(name, capsys)
    assert (code, failed) == (0, set()), lines
    assert all(f" ok   {source}" in line for line in lines[:-1])
    assert lines[-1].endswith("failed 0, unknown 0 quantities")
    tolerances = {line.split(" tolerance ")[1].split()[0] for line in lines[:-1]}
    assert ("1e-09" if name in TRAJECTORIES else "1e-12") in tolerances
    assert tolerances <= {"1e-12", "1e-09", "1e-08", "1e-07"}


SIZES = json.loads((GOLDEN / "net_vit_usb_param_counts.json").read_text())["nets"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_usbs_networks_have_its_sizes_and_rates(name):
    theirs = SIZES[name]
    side = theirs["img_size"]
    settings = {"name": name, **model_settings(name)}
    model = build_model(settings, classes=100, heads={})
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.int8(0), leaf.shape), shapes)
    found = {name: list(value.shape) for name, value in to_torch(empty, naming=VIT).items()}
    assert theirs["param_shapes_stem_block0_head"].items() <= found.items()
    assert sum(map(np.prod, found.values())) == theirs["n_params"]["100"]
    rates = drop_rates(model.drop_path, model.depth)
    assert list(rates) == theirs["drop_path_rates"]
    assert len(model.layers) == theirs["n_layer_ids"]
    facts = {
        "depth": model.depth,
        "num_heads": model.heads,
        "embed_dim": model.width,
        "patch_size": model.patch,
        "global_pool": model.pool,
        "norm_eps": model.norm_eps,
        "qkv_bias": model.qkv_bias,
        "layer_scale": bool(model.layer_scale),
    }
    assert facts.items() <= theirs.items()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("net_vit_timm_clip_gelu", "norm_eps", 1e-6),
        ("net_vit_timm_clip_gelu", "activation", "relu"),
        ("net_vit_timm_dinov2_reg4_avg", "no_embed_class", False),
        ("net_vit_timm_dinov2_reg4_avg", "drop_path_rate", 0.1),
        ("net_vit_timm_avg_nofcnorm", "fc_norm", True),
        ("net_vit_usb_layerscale_noqkvbias", "qkv_norm", True),
    ],
)
def test_a_case_of_another_network_does_not_pass(name, setting, value, tmp_path):
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    meta["network"][setting] = value
    np.savez(tmp_path / "case.npz", **{**arrays, "meta": json.dumps(meta)})
    assert main([str(tmp_path / "case.npz")]) in (1, 2)


@pytest.mark.slow
def test_the_approximate_gelu_fails(monkeypatch, capsys):
    monkeypatch.setitem(transformer.ACTIVATIONS, "gelu", nn.gelu)
    code, failed, _ = replay("net_vit_timm_avg_nofcnorm", capsys)
    assert code == 1
    assert {"out/eval_logits", "out/tokens", "grad", "grad_in/x"} <= failed
    assert not failed & {"check", "n_params", "layer_id_of_param"}


@pytest.mark.slow
def test_kept_branches_that_are_not_scaled_fail(monkeypatch, capsys):
    def wrong(branch, keep, rate):
        return jnp.where(keep.reshape(-1, *(1,) * (branch.ndim - 1)), branch, 0)

    monkeypatch.setattr(transformer, "drop_path", wrong)
    monkeypatch.setattr(functions_vit, "drop_path", wrong)
    code, failed, _ = replay("fn_vit_drop_path", capsys)
    assert code == 1
    assert {"out/y", "out/net/train_logits", "grad/net"} <= failed
    assert not failed & {"out/net/eval_logits", "out/linear/float32"}


@pytest.mark.slow
def test_a_norm_in_the_wrong_layer_fails(monkeypatch, capsys):
    layers = ViT.layers.fget

    def wrong(model):
        *stem, block, last = layers(model)
        return (*stem, (*block, *last[:-1]), last[-1:])

    monkeypatch.setattr(ViT, "layers", property(wrong))
    code, failed, _ = replay("vit_fullysupervised_adamw_layerdecay_avg", capsys)
    assert code == 1
    assert {"lr_scale_of_param", "final/parameters"} <= failed


def test_rows_and_columns_beyond_a_patch_of_usb_are_not_seen(tmp_path, capsys):
    name = "net_vit_usb_layerscale_noqkvbias"
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    beyond = [(0, 0), (0, 0), (0, 1), (0, 1)]
    arrays["in/x"] = np.pad(arrays["in/x"], beyond, constant_values=0.5)
    arrays["grad_in/x"] = np.pad(arrays["grad_in/x"], beyond)
    np.savez(tmp_path / f"{name}.npz", **arrays)
    assert main([str(tmp_path)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("optim", [{"name": "sgd", "momentum": 0.9, "nesterov": True}, {}])
def test_rates_and_decays_of_a_case_are_those_of_any_optimizer(optim):
    case = Case(GOLDEN / "vit_fullysupervised_adamw_layerdecay_avg.npz")
    setup = usb.read(case)
    comparison = Comparison(case, TOLERANCE)
    changed = replace(setup, optim=replace(setup.optim, **optim))
    with jax.enable_x64(True):
        usb.compare_rates(comparison, case, changed)
    rows = [row for row in comparison.rows() if row.quantity.startswith("lr_scale_of_param")]
    assert [row.passed for row in rows] == [True, True]


@pytest.mark.slow
def test_tokens_that_do_not_decay_under_simmatch_fail(monkeypatch, capsys):
    monkeypatch.setattr(usb, "DECAYS", dict.fromkeys(usb.DECAYS, "kernels"))
    code, failed, _ = replay("vit_simmatch_ema_teacher", capsys)
    assert code == 1
    assert {"lr_scale_of_param", "final/parameters"} & failed
