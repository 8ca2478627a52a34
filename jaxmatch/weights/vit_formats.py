"""Files of pretrained Vision Transformers, each translated to timm's names and layout.

- timm itself (:mod:`jaxmatch.weights.vit_names`); USB's, MAE's
  (https://github.com/facebookresearch/mae) and DINOv2's
  (https://github.com/facebookresearch/dinov2) networks have its names, but for DINOv2's
  ``register_tokens``;
- OpenAI's CLIP (https://github.com/openai/CLIP) and OpenCLIP
  (https://github.com/mlfoundations/open_clip);
- Google's JAX code (https://github.com/google-research/vision_transformer and big_vision), whose
  ``.npz`` files begin names with slashes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxmatch.errors import InputError
from jaxmatch.weights.files import check_read

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class VitFile:
    """The tensors of one network.

    Attributes:
        tensors: by timm's names, in its layout.
        format: whose names the file has, for people.
        prefix: of the network in the file.
        left_out: names in the file that belong to other networks or parts, such as a decoder.
        rule: the key of :data:`~jaxmatch.weights.positions.RULES` by which timm resizes the file's
            position embedding.
    """

    tensors: Tensors
    format: str
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    rule: str = "timm"


@dataclass(frozen=True, kw_only=True)
class Format:
    """One code base's names.

    Attributes:
        name: of the code base.
        anchor: a tensor that each of its networks has.
        parts: first parts of the names of its networks, of other architectures too. Tensors of
            other names belong to no network.
        translate: from the tensors of a network to those of timm.
        rule: as in :class:`VitFile`.
        slash: what separates the parts of a name.
    """

    name: str
    anchor: str
    parts: frozenset[str]
    translate: Callable[[Tensors], Tensors]
    rule: str = "timm"
    slash: str = "."


def from_timm(tensors: Tensors) -> Tensors:
    """timm's, USB's, MAE's or DINOv2's tensors, also with the layers of queries, keys and values
    apart, and with blocks in chunks, which fully sharded training makes.

    DINOv2 adds the class token's position before it puts the registers behind the class token, so
    its networks with registers are those without a class position.
    """
    found = {_LAYER_SCALE.sub(r"ls\1.gamma", name): value for name, value in tensors.items()}
    found = _with_joined_qkv(_without_chunks(found))
    if "register_tokens" in found:
        found["reg_token"] = found.pop("register_tokens")
        found["cls_token"] = found["cls_token"] + found["pos_embed"][:, :1]
        found["pos_embed"] = found["pos_embed"][:, 1:]
    if any(name.startswith("pre_logits.") for name in tensors):  # the head reads their output
        found = {name: value for name, value in found.items() if not name.startswith("head.")}
    return found


def _without_chunks(tensors: Tensors) -> Tensors:
    """DINOv2's blocks without the number of their chunk; blocks count through all chunks."""
    renamed = {_CHUNK.sub(r"blocks.\1.", name): value for name, value in tensors.items()}
    return renamed if len(renamed) == len(tensors) else tensors


def _with_joined_qkv(tensors: Tensors) -> Tensors:
    """The rows of queries, keys and values of each attention in one tensor, if all are there."""
    found = dict(tensors)
    for name in tensors:
        for first, *others in _SEPARATE:
            before, attention, leaf = name.rpartition(f".attn.{first}.")
            parts = [f"{before}.attn.{part}.{leaf}" for part in (first, *others)]
            shapes = {np.shape(found.get(part, 0)) for part in parts}
            if attention and len(shapes) == 1 and () not in shapes:
                joined = np.concatenate([found.pop(part) for part in parts])
                found[f"{before}.attn.qkv.{leaf}"] = joined
    return found


_CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")
_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"))
_LAYER_SCALE = re.compile(r"(?<=\.)gamma_([12])$")  # of DeiT III
_CLIP = (
    ("conv1", "patch_embed.proj"),
    ("positional_embedding", "pos_embed"),
    ("class_embedding", "cls_token"),
    ("transformer.resblocks.", "blocks."),
    ("ln_pre", "norm_pre"),
    ("ln_post", "norm"),
    (".ln_", ".norm"),
    ("in_proj_", "qkv."),
    ("out_proj", "proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    (".ls_", ".ls"),
)


def from_clip(tensors: Tensors) -> Tensors:
    """OpenAI's or OpenCLIP's visual tower; its projection is the head, as in timm."""
    found: Tensors = {}
    for name, value in tensors.items():
        if name == "proj":
            found["head.weight"] = value.T
            found["head.bias"] = np.zeros(value.shape[1], value.dtype)
            continue
        for theirs, ours in _CLIP:
            name = name.replace(theirs, ours)
        if name in ("cls_token", "pos_embed"):
            value = value.reshape(1, -1, value.shape[-1])
        found[name] = value
    return found


def from_google(tensors: Tensors) -> Tensors:
    """Google's tensors: augreg's names, or big_vision's, with blocks apart or stacked."""
    found = {
        "patch_embed.proj.weight": tensors["embedding/kernel"].transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": tensors["embedding/bias"],
    }
    tops = {
        "cls": "cls_token",
        "pos_embedding": "pos_embed",
        "Transformer/posembed_input/pos_embedding": "pos_embed",
        "Transformer/encoder_norm/scale": "norm.weight",
        "Transformer/encoder_norm/bias": "norm.bias",
    }
    found |= {ours: tensors[theirs] for theirs, ours in tops.items() if theirs in tensors}
    if "head/kernel" in tensors and "pre_logits/kernel" not in tensors:
        found |= {"head.weight": tensors["head/kernel"].T, "head.bias": tensors["head/bias"]}
    for number, block in enumerate(_google_blocks(tensors)):
        found |= {f"blocks.{number}.{name}": value for name, value in block.items()}
    return found


def _google_blocks(tensors: Tensors) -> list[Tensors]:
    """The blocks' tensors by timm's names within a block."""
    stacked = "Transformer/encoderblock/"
    if any(name.startswith(stacked) for name in tensors):
        whole = _within(tensors, stacked)
        depth = len(next(iter(whole.values())))
        parts = [{name: value[number] for name, value in whole.items()} for number in range(depth)]
        starts = [stacked] * depth
    else:
        numbers = [
            int(match[1])
            for name in tensors
            if (match := re.match(r"Transformer/encoderblock_(\d+)/", name))
        ]
        starts = [
            f"Transformer/encoderblock_{each}/" for each in range(max(numbers, default=-1) + 1)
        ]
        parts = [_within(tensors, start) for start in starts]
    every = {name for part in parts for name in part}
    return [_named(part, start, every) for part, start in zip(parts, starts, strict=True)]


def _named(part: Tensors, start: str, every: set[str]) -> Tensors:
    """The translation of a block, where a missing tensor's name begins with ``start``.

    Args:
        part: the block.
        start: of its names.
        every: the names of all blocks without their start.
    """
    if missing := every - part.keys():
        raise KeyError(start + min(missing))
    try:
        return _google_block(part)
    except KeyError as error:
        raise KeyError(start + error.args[0]) from error


def _google_block(part: Tensors) -> Tensors:
    number = {name.partition("/")[0].rpartition("_")[0]: name.partition("/")[0] for name in part}
    attention, perceptron = number["MultiHeadDotProductAttention"], number["MlpBlock"]
    norms = sorted({name.partition("/")[0] for name in part if name.startswith("LayerNorm_")})
    if len(norms) < 2:
        raise KeyError(f"LayerNorm_{len(norms)}/scale")
    width = part[f"{norms[0]}/scale"].size
    joined = [part[f"{attention}/{each}/kernel"].reshape(width, -1) for each in _QKV]
    biases = [part[f"{attention}/{each}/bias"].reshape(-1) for each in _QKV]
    found = {
        "attn.qkv.weight": np.concatenate(joined, 1).T,
        "attn.qkv.bias": np.concatenate(biases),
        "attn.proj.weight": part[f"{attention}/out/kernel"].reshape(-1, width).T,
        "attn.proj.bias": part[f"{attention}/out/bias"],
    }
    for layer, norm in enumerate(norms, start=1):
        found |= {f"norm{layer}.weight": part[f"{norm}/scale"]}
        found |= {f"norm{layer}.bias": part[f"{norm}/bias"]}
    for layer in range(2):
        dense = f"{perceptron}/Dense_{layer}"
        found |= {f"mlp.fc{layer + 1}.weight": part[f"{dense}/kernel"].T}
        found |= {f"mlp.fc{layer + 1}.bias": part[f"{dense}/bias"]}
    return found


_QKV = ("query", "key", "value")
# Beginnings of names, in timm's form, of heads, which are no part of the encoder.
_ASIDE = ("pre_logits.", "head.", "proj.")
_CLASSIFIER = ("head.weight", "head.bias")
# Tokens of distillation, pooling by attention, and rotary or relative positions are here so that a
# network which has them is refused.
_TIMM = (
    *("patch_embed", "cls_token", "pos_embed", "reg_token", "register_tokens", "dist_token"),
    *("norm_pre", "blocks", "norm", "fc_norm", "pre_logits", "head", "head_dist", "attn_pool"),
    *("rope", "rope_embed", "rel_pos_bias"),
)
_OF_CLIP = (
    *("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "ln_post"),
    *("proj", "attn_pool"),
)
_OF_GOOGLE = ("embedding", "cls", "pos_embedding", "Transformer", "pre_logits", "head")
FORMATS = (
    Format(
        name="timm",
        anchor="patch_embed.proj.weight",
        parts=frozenset(_TIMM),
        translate=from_timm,
    ),
    Format(
        name="CLIP",
        anchor="class_embedding",
        parts=frozenset(_OF_CLIP),
        translate=from_clip,
    ),
    Format(
        name="Google's JAX code",
        anchor="embedding/kernel",
        parts=frozenset(_OF_GOOGLE),
        translate=from_google,
        rule="bilinear",
        slash="/",
    ),
)
_TRANSFORMERS = re.compile(r"(^|\.)(embeddings\.patch_embeddings?\.|vision_model\.embeddings\.)")


def find_vit(weights: Mapping[str, np.ndarray], prefix: str | None = None) -> VitFile:
    """The Vision Transformer in a file.

    Args:
        weights: the file's tensors by name.
        prefix: of the network's names, with or without its last dot; by default the file must hold
            one network.

    Raises:
        InputError: if there is none, or more than one without a prefix, or if a tensor of the
            network cannot be read.
    """
    networks = _networks(weights)
    found = _chosen(networks, prefix)
    if not found and prefix is not None:
        raise InputError(f"it holds no Vision Transformer whose names begin with {prefix!r}")
    if not found:
        raise InputError(_no_vit(weights))
    if len(found) > 1:
        prefixes = ", ".join(sorted(repr(start) for start, _ in found))
        rest = ", and FILE# is the one without a beginning" if any(not s for s, _ in found) else ""
        raise InputError(
            f"it holds several Vision Transformers, with names that begin with {prefixes}; choose "
            f"one by init_from=FILE#BEGINNING{rest}"
        )
    start, used = found[0]
    inner = tuple(other for other, _ in networks if other != start and other.startswith(start))
    within = {
        name: value
        for name, value in weights.items()
        if name.startswith(start)
        and not name.startswith(inner)
        and name.removeprefix(start).partition(used.slash)[0] in used.parts
    }
    check_read(within)
    theirs = {name.removeprefix(start): _at_least_float32(x) for name, x in within.items()}
    try:
        tensors = used.translate(theirs)
    except KeyError as error:
        raise InputError(f"it has no tensor {start + error.args[0]!r}") from error
    except (ValueError, IndexError, TypeError) as error:  # of reshapes and transpositions
        raise InputError(
            f"its tensors have not the shapes of a Vision Transformer of {used.name} ({error})"
        ) from error
    aside = [name for name in tensors if name not in _CLASSIFIER and name.startswith(_ASIDE)]
    others = [name for name in weights if name not in within]
    return VitFile(
        tensors={name: value for name, value in tensors.items() if name not in aside},
        format=used.name,
        prefix=start,
        left_out=(*aside, *others),
        rule=used.rule,
    )


def _chosen(networks: list[tuple[str, Format]], prefix: str | None) -> list[tuple[str, Format]]:
    """Those of ``networks`` that ``prefix`` names; one of exactly its beginning goes first."""
    if prefix is None:
        return networks
    named = [
        (start, each)
        for start, each in networks
        if prefix.rstrip("./") in (start.rstrip("./"), start.removeprefix("module.").rstrip("./"))
    ]
    return [(start, each) for start, each in named if start == prefix] or named


def holds_vit(weights: Mapping[str, np.ndarray]) -> bool:
    """Whether a file of tensors has a Vision Transformer of a known format."""
    return bool(_networks(weights))


def _networks(weights: Mapping[str, np.ndarray]) -> list[tuple[str, Format]]:
    """The beginning of the names, and the format, of each Vision Transformer in a file."""
    return [
        (name.removesuffix(each.anchor), each)
        for each in FORMATS
        for name in weights
        if (each.slash + name).endswith(each.slash + each.anchor) and not _TRANSFORMERS.search(name)
    ]


def _at_least_float32(value: np.ndarray) -> np.ndarray:
    if not jnp.issubdtype(value.dtype, jnp.floating):  # an index, or a quantized weight
        return value
    return value.astype(np.promote_types(value.dtype, np.float32), copy=False)


def _within(tensors: Mapping[str, np.ndarray], prefix: str) -> Tensors:
    """The tensors whose names begin with ``prefix``, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _no_vit(weights: Mapping[str, np.ndarray]) -> str:
    if any(_TRANSFORMERS.search(name) for name in weights):
        return (
            "it has the tensor names of the library transformers, which are not read; get timm's "
            "file of the same network"
        )
    example = min(weights, default="")
    return f"it holds no Vision Transformer; its first tensor is {example!r}"
