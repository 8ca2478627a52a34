"""Vision Transformers in files of other code bases: what is read, adapted and refused."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_bitwise, assert_close, quick_jit
from safetensors.numpy import save_file

from experiments.parity.networks_formula import formula_weights
from experiments.parity.networks_vit import build_vit
from jaxmatch.errors import InputError
from jaxmatch.models.build import build_model
from jaxmatch.models.vit import ViT
from jaxmatch.models.wide_resnet import WideResNet
from jaxmatch.weights.files import write_weights
from jaxmatch.weights.positions import resize_positions
from jaxmatch.weights.transfer import read_encoder, read_vit_file
from jaxmatch.weights.vit_formats import from_clip, from_google, from_timm
from jaxmatch.weights.vit_init import read_vit
from jaxmatch.weights.vit_names import to_timm

GOLDEN = Path(__file__).parents[1] / "golden"
NETWORKS = sorted(path.stem for path in GOLDEN.glob("net_vit_*.npz"))
SIDE = 8
TINY = ViT(classes=5, patch=2, width=8, depth=2, heads=2)
DINO = TINY.clone(registers=3, class_position=False, layer_scale=1e-5)
CLIP = TINY.clone(pre_norm=True, norm_eps=1e-5, depth=3)
NO_FIT = "no setting of this library fits"


def shapes(model, side=SIDE, channels=3):
    images = jnp.zeros((1, *np.broadcast_to(side, 2), channels))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, False))["params"]


def filled(model, side=SIDE):
    """Tensors of ``model`` by timm's names, each number its own."""
    count = iter(range(0, 10**9, 10**4))
    return to_timm(
        jax.tree.map(
            lambda leaf: (next(count) + np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape),
            shapes(model, side),
        )
    )


@pytest.fixture
def read(tmp_path):
    """Writes tensors to a file and reads them for a network: parameters by timm's names, report."""

    def run(tensors, model, side=SIDE, *, channels=3, beginning=None, suffix="safetensors", **more):
        path = tmp_path / f"w.{suffix}"
        path.unlink(missing_ok=True)
        write_weights(path, tensors)
        name = str(path) if beginning is None else f"{path}#{beginning}"
        options = {"classifier": True, "rules": "timm", **more}
        image = tuple(np.broadcast_to(side, 2))
        params = shapes(model, side, channels)
        loaded = read_vit_file(name, params, image=image, **options)
        return to_timm(loaded.variables["params"]), " | ".join(loaded.report)

    return run


# The files of other code bases, made of timm's tensors.


def clip(tensors, prefix="visual."):
    pairs = {
        "patch_embed.proj": "conv1",
        "norm_pre": "ln_pre",
        "blocks.": "transformer.resblocks.",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    found = {}
    for name, value in tensors.items():
        for ours, theirs in pairs.items():
            name = name.replace(ours, theirs)
        found[prefix + name.replace("norm.", "ln_post.")] = value
    found[f"{prefix}class_embedding"] = found.pop(f"{prefix}cls_token")[0, 0]
    found[f"{prefix}positional_embedding"] = found.pop(f"{prefix}pos_embed")[0]
    found[f"{prefix}proj"] = found.pop(f"{prefix}head.weight").T
    del found[f"{prefix}head.bias"]
    text = {
        "positional_embedding": np.zeros((77, 8), np.float32),
        "transformer.resblocks.0.ln_1.weight": np.zeros(8, np.float32),
        "logit_scale": np.zeros((), np.float32),
    }
    return {**found, **(text if prefix else {})}


def dinov2(tensors):
    """As DINOv2 stores it: the class token without the position that it always gets."""
    row = np.arange(8, dtype=np.float32).reshape(1, 1, 8)
    found = {**tensors, "mask_token": np.zeros((1, 8), np.float32)}
    found["register_tokens"] = found.pop("reg_token")
    found["cls_token"] = tensors["cls_token"] - row
    found["pos_embed"] = np.concatenate([row, tensors["pos_embed"]], 1)
    return {name: value for name, value in found.items() if not name.startswith("head.")}


def mae(tensors):
    others = ("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.x.bias")
    return {**tensors, **{name: np.zeros((1, 3), np.float32) for name in others}}


def google(tensors, heads=2, attention="MultiHeadDotProductAttention_1", norm=2, prefix=""):
    found = {
        "embedding/kernel": tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": tensors["patch_embed.proj.bias"],
        "cls": tensors["cls_token"],
        "Transformer/posembed_input/pos_embedding": tensors["pos_embed"],
        "Transformer/encoder_norm/scale": tensors["norm.weight"],
        "Transformer/encoder_norm/bias": tensors["norm.bias"],
        "head/kernel": tensors["head.weight"].T,
        "head/bias": tensors["head.bias"],
    }
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    for number in range(depth):
        block = {
            name.split(".", 2)[2]: value
            for name, value in tensors.items()
            if name.startswith(f"blocks.{number}.")
        }
        width = len(block["norm1.weight"])
        start = f"Transformer/encoderblock_{number}"
        for layer, at in ((1, 0), (2, norm)):
            found[f"{start}/LayerNorm_{at}/scale"] = block[f"norm{layer}.weight"]
            found[f"{start}/LayerNorm_{at}/bias"] = block[f"norm{layer}.bias"]
            dense = f"{start}/MlpBlock_3/Dense_{layer - 1}"
            found[f"{dense}/kernel"] = block[f"mlp.fc{layer}.weight"].T
            found[f"{dense}/bias"] = block[f"mlp.fc{layer}.bias"]
        for part, each in enumerate(("query", "key", "value")):
            rows = slice(part * width, (part + 1) * width)
            kernel = block["attn.qkv.weight"][rows].T.reshape(width, heads, -1)
            found[f"{start}/{attention}/{each}/kernel"] = kernel
            found[f"{start}/{attention}/{each}/bias"] = block["attn.qkv.bias"][rows].reshape(
                heads, -1
            )
        found[f"{start}/{attention}/out/kernel"] = block["attn.proj.weight"].T.reshape(
            heads, -1, width
        )
        found[f"{start}/{attention}/out/bias"] = block["attn.proj.bias"]
    return {prefix + name: value for name, value in found.items()}


def under(prefix):
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("suffix", ["safetensors", pytest.param("npz", marks=pytest.mark.slow)])
def test_a_file_computes_what_the_reference_does(name, suffix, tmp_path):
    with np.load(GOLDEN / f"{name}.npz") as file:
        meta = json.loads(str(file["meta"]))
        images, logits = file["in/x"].transpose(0, 2, 3, 1), file["out/eval_logits"]
    tensors = {
        name: formula_weights(name, tuple(shape), meta["salt"]).astype(np.float32)
        for name, shape in meta["param_shapes"].items()
    }
    write_weights(tmp_path / f"w.{suffix}", tensors)
    model = build_vit(meta["network"], meta["num_classes"], "float32")
    loaded = read_vit_file(
        str(tmp_path / f"w.{suffix}"),
        shapes(model, images.shape[1:3]),
        image=images.shape[1:3],
        classifier=True,
        rules="timm",
    )
    assert_bitwise(to_timm(loaded.variables["params"]), tensors)
    found = quick_jit(lambda variables, x: model.apply(variables, x, False).logits)(
        {"params": loaded.variables["params"]}, jnp.asarray(images, jnp.float32)
    )
    assert_close(found, logits, 1e-6 * np.abs(logits).max())


@pytest.mark.parametrize(
    ("model", "written", "named"),
    [
        (TINY, lambda tensors: tensors, "timm"),
        (TINY, under("backbone."), "timm"),
        (TINY, under("module."), "timm"),
        (TINY, under("visual.trunk."), "timm"),
        (TINY, mae, "timm"),
        (DINO, lambda tensors: tensors, "timm"),
        (CLIP, clip, "CLIP"),
        (CLIP, lambda tensors: clip(tensors, ""), "CLIP"),
        (CLIP, lambda tensors: under("module.")(clip(tensors)), "CLIP"),
        (TINY, google, "Google"),
        (TINY, lambda tensors: google(tensors, 4, norm=1, prefix="params/"), "Google"),
        (TINY, lambda t: google(t, 2, "MultiHeadDotProductAttention_0", 1), "Google"),
    ],
)
def test_each_format_gives_the_same_tensors(model, written, named, read):
    tensors = filled(model)
    if model is CLIP:  # CLIP has a projection without a bias
        tensors["head.bias"] = np.zeros_like(tensors["head.bias"])
    found, report = read(written(tensors), model)
    assert_bitwise(found, tensors)
    assert f"by the names of {named}" in report
    assert "the classifier is the file's, of 5 classes" in report


def test_dinov2_adds_the_position_of_the_class_token_before_the_registers(read):
    tensors = filled(DINO)
    found, report = read(dinov2(tensors), DINO)
    assert_bitwise(
        found, {name: value for name, value in tensors.items() if not name.startswith("head.")}
    )
    assert "the classifier is new: the file has none" in report
    assert "left out 1 other tensors of the file (mask_token)" in report


def test_layer_scales_have_deits_names_too(read):
    tensors = filled(TINY.clone(layer_scale=0.1))
    renamed = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for name, value in tensors.items()
    }
    assert_bitwise(read(renamed, TINY.clone(layer_scale=0.1))[0], tensors)


def test_half_precision_becomes_the_networks_dtype(read):
    tensors = {name: np.float16(value / 1e6) for name, value in filled(DINO).items()}
    found, _ = read(dinov2(tensors), DINO)
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("classes", "options", "kept"),
    [
        (5, {}, True),
        (4, {}, False),
        (5, {"classifier": False}, False),
        (5, {"rules": "usb"}, False),
    ],
)
def test_a_classifier_is_kept_if_it_has_as_many_classes(classes, options, kept, read):
    tensors = filled(TINY)
    found, report = read(tensors, TINY.clone(classes=classes), **options)
    assert ("head.weight" in found) == ("head.bias" in found) == kept
    assert ("the classifier is new" in report) == (not kept)
    assert_bitwise({n: v for n, v in tensors.items() if not n.startswith("head.") or kept}, found)


AVERAGE = TINY.clone(pool="average")


@pytest.mark.parametrize(
    ("theirs", "ours", "rules", "new"),
    [
        (AVERAGE, AVERAGE, "timm", False),
        (AVERAGE, AVERAGE, "usb", True),
        (TINY, AVERAGE, "timm", True),
        (TINY, AVERAGE.clone(fc_norm=False), "timm", False),
    ],
)
def test_the_norm_of_an_average_is_new_where_there_is_none(theirs, ours, rules, new, read):
    tensors = filled(theirs)
    found, report = read(tensors, ours, rules=rules)
    assert ("fc_norm, the norm of the average, is new" in report) == new
    assert ("fc_norm.weight" in found) == (theirs is AVERAGE and not new)
    assert ("norm.weight" in found) == (not ours.fc_norm)
    assert_bitwise({name: tensors[name] for name in found}, found)


@pytest.mark.parametrize("model", [TINY, DINO, CLIP])
@pytest.mark.parametrize("rules", ["timm", "usb"])
@pytest.mark.parametrize("side", [pytest.param(6, marks=pytest.mark.slow), 12])
def test_positions_are_resized_to_the_runs_images(model, rules, side, read):
    tensors = filled(model)
    found, report = read(tensors, model, side, rules=rules)
    prefix = 1 if model.class_position else 0
    new = side // model.patch
    expected = resize_positions(tensors["pos_embed"], (new, new), prefix=prefix, rule=rules)
    assert_bitwise(found["pos_embed"], expected)
    assert f"from 4 x 4 to {new} x {new} patches by {'USB' if rules == 'usb' else 'timm'}" in report


def test_googles_positions_are_resized_as_timm_does(read):
    tensors = filled(TINY)
    found, report = read(google(tensors), TINY, 12, suffix="npz")
    expected = resize_positions(tensors["pos_embed"], (6, 6), prefix=1, rule="bilinear")
    assert_bitwise(found["pos_embed"], expected)
    assert "timm's rule for .npz files" in report


def test_oblong_images_have_their_own_grid(read):
    tensors = filled(TINY)
    found, report = read(tensors, TINY, (8, 12))
    expected = resize_positions(tensors["pos_embed"], (4, 6), prefix=1, rule="timm")
    assert_bitwise(found["pos_embed"], expected)
    assert "from 4 x 4 to 4 x 6" in report
    oblong = filled(TINY, (4, 16))
    assert_bitwise(read(oblong, TINY, (4, 16))[0], oblong)
    with pytest.raises(InputError, match="USB resizes position embeddings of square grids only"):
        read(tensors, TINY, (8, 12), rules="usb")


def test_gray_images_take_the_sum_of_the_kernel(read):
    tensors = filled(TINY)
    found, report = read(tensors, TINY, channels=1)
    kernel = tensors["patch_embed.proj.weight"].sum(1, keepdims=True)
    assert_bitwise(found["patch_embed.proj.weight"], kernel)
    assert "summed the patches' kernel over the channels" in report


def test_one_of_several_networks_is_chosen(read):
    student, teacher = filled(TINY), {name: value + 1 for name, value in filled(TINY).items()}
    both = {**under("student.")(student), **under("teacher.backbone.")(teacher)}
    with pytest.raises(
        InputError,
        match=r"begin with 'student\.', 'teacher\.backbone\.'; .*init_from=FILE#BEGINNING",
    ):
        read(both, TINY)
    for beginning in ("teacher.backbone.", "teacher.backbone"):
        assert_bitwise(read(both, TINY, beginning=beginning)[0], teacher)
    with pytest.raises(InputError, match=r"no Vision Transformer whose names begin with 'ema\.'"):
        read(both, TINY, beginning="ema.")


def test_one_of_several_networks_of_google_is_chosen(read):
    student, teacher = filled(TINY), {name: value + 1 for name, value in filled(TINY).items()}
    both = google(student, prefix="params/") | google(teacher, prefix="opt/target/")
    with pytest.raises(InputError, match="begin with 'opt/target/', 'params/'"):
        read(both, TINY)
    for beginning, expected in (("params/", student), ("params", student)):
        assert_bitwise(read(both, TINY, beginning=beginning)[0], expected)
    for beginning in ("opt/target/", "opt/target"):
        assert_bitwise(read(both, TINY, beginning=beginning)[0], teacher)


@pytest.mark.parametrize(
    "tensors",
    [
        {"embedding/kernel": np.zeros(3), "embedding/bias": np.zeros(3)},
        {"embedding/kernel": np.zeros((3, 4)), "embedding/bias": np.zeros(3)},
        {"conv1.weight": np.zeros((8, 3, 4, 4)), "class_embedding": np.zeros(())},
    ],
)
def test_tensors_of_other_ranks_are_refused(tensors, read):
    with pytest.raises(InputError, match=r"have not the shapes of a Vision Transformer of"):
        read(tensors, TINY)


@pytest.mark.parametrize(
    ("model", "written"),
    [(TINY, lambda tensors: tensors), (TINY, google), (CLIP, lambda tensors: clip(tensors, ""))],
)
def test_other_tensors_beside_a_network_at_the_root_are_left_out(model, written, read):
    tensors = filled(model)
    if model is CLIP:
        tensors["head.bias"] = np.zeros_like(tensors["head.bias"])
    others = {
        "epoch": np.array(3),
        "logit_scale": np.zeros(()),
        "queue": np.zeros((2, 3)),
        "total_ops": np.zeros(1),
        "optimizer.state.0.exp_avg": np.zeros(3),
        "exp_avg.blocks.0.norm1.weight": np.zeros(8),
        "rot_classifier.weight": np.zeros((4, 8)),
        "contrastive_head.weight": np.zeros((4, 8)),
    }
    found, report = read({**written(tensors), **others}, model)
    assert_bitwise(found, tensors)
    assert "left out 8 other tensors of the file (contrastive_head, epoch, exp_avg, " in report


def test_a_network_at_the_root_is_chosen_beside_its_copy(read):
    student, teacher = filled(TINY), {name: value + 1 for name, value in filled(TINY).items()}
    both = {**student, **under("ema.")(teacher)}
    with pytest.raises(InputError, match=r"begin with '', 'ema\.'; .*FILE# is the one without a"):
        read(both, TINY)
    found, report = read(both, TINY, beginning="")
    assert_bitwise(found, student)
    assert f"left out {len(teacher)} other tensors of the file (ema)" in report
    assert_bitwise(read(both, TINY, beginning="ema.")[0], teacher)
    wrapped = {**student, **under("module.")(teacher)}
    assert_bitwise(read(wrapped, TINY, beginning="")[0], student)


@pytest.mark.parametrize(
    "names", [("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), "qkv"]
)
def test_queries_keys_and_values_apart_are_joined(names, read):
    tensors, apart = filled(TINY), {}
    for name, value in tensors.items():
        parts = np.split(value, 3) if ".qkv." in name else ()
        apart |= {name.replace("qkv", part): x for part, x in zip(names, parts, strict=False)}
        apart |= {} if len(parts) else {name: value}
    assert_bitwise(read(apart, TINY)[0], tensors)
    del apart[f"blocks.1.attn.{names[2]}.bias"]
    with pytest.raises(InputError, match=f"{names[1]}.bias' is .*; {NO_FIT}"):
        read(apart, TINY)


def test_blocks_in_chunks_are_those_of_all_chunks(read):
    tensors = filled(TINY.clone(depth=4))
    in_chunks = {
        re.sub(
            r"^blocks\.(\d)\.", lambda found: f"blocks.{int(found[1]) // 2}.{found[1]}.", name
        ): x
        for name, x in tensors.items()
    }
    assert "blocks.1.3.norm1.bias" in in_chunks
    assert_bitwise(read(in_chunks, TINY.clone(depth=4))[0], tensors)


def test_a_tensor_of_an_unknown_type_is_refused_where_it_is_needed(tmp_path):
    tensors = {name: np.ascontiguousarray(value) for name, value in filled(TINY).items()}
    options = {"image": (SIDE, SIDE), "classifier": True, "rules": "timm"}
    path = tmp_path / "w.safetensors"
    save_file({**tensors, "aside": np.zeros(2, "c8")}, path)
    loaded = read_vit_file(str(path), shapes(TINY), **options)
    assert_bitwise(to_timm(loaded.variables["params"]), tensors)
    save_file({**tensors, "cls_token": np.zeros((1, 1, 8), "c8")}, path)
    with pytest.raises(InputError, match="tensor 'cls_token' is of type C64, which is not read"):
        read_vit_file(str(path), shapes(TINY), **options)


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (TINY.clone(depth=3), TINY, "'blocks.2.attn.proj.weight'.*; set --config.model.depth=3"),
        (TINY, TINY.clone(depth=3), "'blocks.2..*missing there.*set --config.model.depth=2"),
        (TINY.clone(patch=4), TINY, "8, 3, 4, 4.*set --config.model.patch=4"),
        (TINY.clone(width=16), TINY, "model.width=16 --config.model.heads=1"),
        (TINY.clone(mlp_ratio=2.0), TINY, "set --config.model.mlp_ratio=2.0"),
        (TINY.clone(qkv_bias=False), TINY, "set --config.model.qkv_bias=False"),
        (TINY.clone(layer_scale=1.0), TINY, "set --config.model.layer_scale=1e-05"),
        (CLIP.clone(depth=2), TINY, "set --config.model.pre_norm=True"),
        (TINY.clone(registers=3), TINY, "set --config.model.registers=3"),
        (DINO, TINY.clone(layer_scale=1.0), "model.registers=3 --config.model.class_position=Fal"),
        (TINY, DINO, "'reg_token' is missing there"),
        (DINO.clone(class_position=True), DINO, "set --config.model.class_position=True"),
        (DINO, DINO.clone(class_position=True), "set --config.model.class_position=False"),
        (AVERAGE, TINY, "'fc_norm.weight' is .* missing here; set --config.model.pool=average"),
    ],
)
def test_another_network_is_refused_with_its_first_tensor_and_the_remedy(
    theirs, ours, expected, read
):
    pattern = "init_from=.*: it holds another network: .*" + expected
    with pytest.raises(InputError, match=pattern):
        read(filled(theirs), ours)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("vit_tiny_patch2_32", 32),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [
                ("vit_base_patch14_reg4_dinov2", 518),
                ("vit_small_patch16_224", 224),
                ("vit_base_patch16_224", 224),
                ("vit_base_patch16_96", 96),
                ("vit_small_patch14_dinov2", 518),
                ("vit_base_patch32_clip_224", 224),
            ]
        ),
    ],
)
def test_a_known_network_is_refused_with_its_name(name, side):
    params = shapes(build_model({"name": name}, classes=3, heads={}), side)
    zeros = to_timm(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), params))
    ours = shapes(ViT(classes=3, patch=8, width=8, heads=2), 16)
    with pytest.raises(
        InputError, match=f"set --config.model.name={name} and no other model.patch"
    ):
        read_vit(zeros, ours, image=(16, 16))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"dist_token": np.zeros((1, 1, 8))},
            f"'dist_token' is .* there and missing here; {NO_FIT}",
        ),
        ({"attn_pool.kv.weight": np.zeros((16, 8)), "cls_token": None}, f"'attn_pool.*; {NO_FIT}"),
        ({"cls_token": None}, f"'cls_token' is missing there and .* here; {NO_FIT}"),
        ({"pos_embed": None}, f"'pos_embed' is missing there and .* here; {NO_FIT}"),
        ({"blocks.0.attn.qkv.weight": None}, f"qkv.weight' is missing there and .*; {NO_FIT}"),
        ({"rope.freqs": np.zeros(4)}, f"'rope.freqs' is .* there and missing here; {NO_FIT}"),
        (
            {"blocks.0.mlp.fc1.weight": np.zeros((48, 8)), "blocks.0.mlp.fc1.bias": np.zeros(48)},
            rf"'blocks.0.mlp.fc1.weight' is \(48, 8\) there and \(32, 8\) here; {NO_FIT}",
        ),
        ({"norm_pre.weight": np.zeros(8), "norm_pre.bias": np.zeros(8)}, f"norm_pre.*; {NO_FIT}"),
        ({"patch_embed.proj.weight": np.zeros((8, 12))}, "no patch kernel of four dimensions"),
        ({"patch_embed.proj.weight": None}, "holds no Vision Transformer; its first tensor is"),
        ({"patch_embed.proj.weight": np.zeros((8, 4, 2, 2))}, r"\(8, 4, 2, 2\) there"),
        (
            {"pos_embed": np.zeros((1, 25, 8))},
            "has other rows; set .*position=False, or .* 25 rows are 1 tokens and 4 x 6 or 6 x 4",
        ),
        (
            {"pos_embed": np.zeros((1, 23, 8))},
            "embedding of 23 rows is none of 1 .*; images of 2 x 11 or 11 x 2 patches fit it",
        ),
        ({"blocks.0.attn.q_norm.weight": np.zeros(4)}, f"q_norm.*; {NO_FIT}"),
        ({"blocks": np.zeros((2, 2))}, f"'blocks' is .* there and missing here; {NO_FIT}"),
        ({"norm.weight": np.zeros(8, np.int8)}, "'norm.weight' is of type int8; quantized"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change, expected, read):
    tensors = {**filled(TINY), **change}
    with pytest.raises(InputError, match=expected) as caught:
        read({name: value for name, value in tensors.items() if value is not None}, TINY)
    assert not str(caught.value).endswith("..")


def test_the_remedy_says_that_no_file_tells_the_heads(read):
    with pytest.raises(InputError, match=r"model.heads=1 \(no file tells the heads: 64 channels"):
        read(filled(TINY.clone(width=16)), TINY)


def test_the_remedy_for_an_average_is_complete(read):
    with pytest.raises(InputError, match=r"model.pool=average --config.model.fc_norm=True"):
        read(filled(AVERAGE), AVERAGE.clone(fc_norm=False))


def test_a_perceptron_of_any_width_has_a_ratio(read):
    # 122 / 56 * 56 is less than 122 by rounding.
    model = ViT(classes=5, patch=2, width=56, depth=1, heads=1, mlp_ratio=2.18)
    tensors = filled(model)
    with pytest.raises(
        InputError, match=r"set --config\.model\.mlp_ratio=2\.178571428571429"
    ) as caught:
        read(tensors, model.clone(mlp_ratio=4.0))
    ratio = float(str(caught.value).rpartition("=")[2].removesuffix("."))
    assert_bitwise(read(tensors, model.clone(mlp_ratio=ratio))[0], tensors)


def test_the_names_of_transformers_are_said_not_to_be_read(read):
    names = ("embeddings.patch_embeddings.projection.weight", "embeddings.cls_token")
    with pytest.raises(InputError, match="the library transformers, which are not read"):
        read({name: np.zeros((1, 1, 8)) for name in names}, TINY)
    names = ("vision_model.embeddings.class_embedding",)
    with pytest.raises(InputError, match="the library transformers, which are not read"):
        read({name: np.zeros(8) for name in names}, TINY)


def test_networks_of_other_kinds_are_refused(read, tmp_path):
    with pytest.raises(InputError, match=r"no Vision Transformer; its first tensor is 'bn1\.bias'"):
        read({"conv1.weight": np.zeros((8, 3, 3, 3)), "bn1.bias": np.zeros(8)}, TINY)
    write_weights(tmp_path / "vit.npz", filled(TINY))
    variables = jax.eval_shape(
        lambda: WideResNet(classes=5, depth=10, width=0.25).init(
            jax.random.key(0), jnp.zeros((1, 8, 8, 3)), False
        )
    )
    with pytest.raises(InputError, match="is a Vision Transformer, which this network is not"):
        read_encoder(str(tmp_path / "vit.npz"), variables)


@pytest.mark.parametrize("translate", [from_timm, from_clip])
def test_a_translation_changes_no_value_of_timms_tensors(translate):
    tensors = filled(TINY)
    assert_bitwise(translate(tensors), tensors)


def test_a_missing_tensor_of_google_is_named(read):
    tensors = google(filled(TINY))
    del tensors["embedding/bias"]
    with pytest.raises(InputError, match="it has no tensor 'embedding/bias'"):
        read(tensors, TINY)
    assert from_google(google(filled(TINY))).keys() == filled(TINY).keys()


@pytest.mark.parametrize(
    "part", ["LayerNorm_0", "MlpBlock_3", "MultiHeadDotProductAttention_1", ""]
)
@pytest.mark.parametrize("blocks", ["01", "0"])
def test_a_missing_tensor_of_google_is_named_with_its_block(part, blocks, read):
    pattern = re.compile(f"Transformer/encoderblock_[{blocks}]/{part}")
    tensors = {name: x for name, x in google(filled(TINY)).items() if not pattern.match(name)}
    kind = part.partition("_")[0]
    expected = f"no tensor 'Transformer/encoderblock_0/{kind}"
    if not part and blocks == "01":
        expected = "blocks.0.*is missing there"
    with pytest.raises(InputError, match=expected):
        read(tensors, TINY)
