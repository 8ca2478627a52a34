"""How USB's MixMatch and ReMixMatch map onto the library's."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from experiments.parity.entries import Argument, Override, Quantities, Replay
from experiments.parity.rows import Case, UnknownCaseError
from jaxmatch.algorithms import remixmatch
from jaxmatch.algorithms.mixmatch import MixMatch
from jaxmatch.algorithms.remixmatch import ReMixMatch
from jaxmatch.functional.alignment import Marginal
from jaxmatch.functional.mixup import Mixing, in_parts, mix
from jaxmatch.functional.rotation import rotate
from jaxmatch.types import Array, Inputs, PyTree

MIXMATCH_VIEWS = ("x_ulb_w", "x_ulb_s")
REMIXMATCH_VIEWS = ("x_ulb_w", "x_ulb_s_0", "x_ulb_s_1")
# USB's pools by position in the library's: its ReMixMatch has the weak view last.
MIXMATCH_POOL, REMIXMATCH_POOL = (0, 1, 2), (0, 2, 3, 1)


def _mixing(case: Case, step: int, views: Sequence[str], pool: Sequence[int]) -> Mixing:
    """USB draws one weight and one permutation for the whole pool."""
    sizes = [len(case[f"batch/{step}/{name}"]) for name in ("x_lb", *views)]
    raw, used, partner = (
        case[f"draw/{step}/mixup_{name}"] for name in ("lam_raw", "lam_used", "perm")
    )
    if used != max(raw, 1 - raw):
        raise UnknownCaseError("mixup_lam_used is not the larger of mixup_lam_raw and the rest")
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    ours = np.concatenate([rows[part] for part in pool])  # USB's rows by position in the library's
    reordered = np.empty_like(ours)
    reordered[ours] = ours[partner]
    weight = jnp.full(len(partner), float(used))
    return in_parts(weight, jnp.asarray(reordered, jnp.int32), sizes)


def _refuse_mixed_features(case: Case) -> None:
    if case.meta["hyperparameters"].get("mixup_manifold"):
        raise UnknownCaseError("MixUp of features is not in the library")


def _mixmatch(case: Case) -> MixMatch:
    given = case.meta["hyperparameters"]
    _refuse_mixed_features(case)
    return MixMatch(
        alpha=given["mixup_alpha"],
        temperature=given["T"],
        unlabeled_weight=given["ulb_loss_ratio"],
        ramp=given["unsup_warm_up"],
    )


def _remixmatch(case: Case) -> ReMixMatch:
    given = case.meta["hyperparameters"]
    _refuse_mixed_features(case)
    return ReMixMatch(
        alpha=given["mixup_alpha"],
        temperature=given["T"],
        unlabeled_weight=given["ulb_loss_ratio"],
        unmixed_weight=given["kl_loss_ratio"],
        rotation_weight=given["rot_loss_ratio"],
        ramp=given["unsup_warm_up"],
    )


def chunks_apart(
    given: Inputs, views: Sequence[Array], pool: Sequence[int]
) -> tuple[list[Array], PyTree]:
    """USB's passes over mixed views: as many images each as are labeled, without interleaving.

    The first alone updates the running statistics.
    """
    size, statistics, logits = len(views[0]), [], {}
    for part in pool:
        chunks = []
        for chunk in jnp.split(views[part], len(views[part]) // size):
            (on_chunk,), stats = given.student((chunk,))
            chunks.append(on_chunk.logits)
            statistics.append(stats)
        logits[part] = jnp.concatenate(chunks)
    return [logits[part] for part in range(len(views))], statistics[0]


def mixmatch_passes() -> Override:
    """USB's passes for MixMatch: :func:`chunks_apart`, after one over x that nothing uses."""

    def forward(self: MixMatch, given: Inputs) -> tuple[list[Array], PyTree]:
        given.student(given.labeled.views)
        return chunks_apart(given, mix(given.batch.views, given.draws), MIXMATCH_POOL)

    return Override(MixMatch, "forward", forward)


def remixmatch_passes() -> Override:
    """USB's passes for ReMixMatch: those of mixed images between those of unmixed ones.

    The mixed ones are of :func:`chunks_apart`; of the others nothing uses those over x and s_2.
    """

    def forward(self: ReMixMatch, given: Inputs) -> remixmatch.Forward:
        (x,), (_, first, second) = given.labeled.views, given.unlabeled.views
        given.student((x,))
        (on_first,), _ = given.student((first,))
        given.student((second,))
        views = mix(given.batch.views, given.draws.mixing)
        mixed, stats = chunks_apart(given, views, REMIXMATCH_POOL)
        rotation = None
        if self.rotation_weight:
            (on_turned,), _ = given.student((rotate(first, given.draws.turns),))
            rotation = on_turned.heads["rotation"]
        return remixmatch.Forward(mixed, on_first.logits, rotation, stats)

    return Override(ReMixMatch, "forward", forward)


def _remixmatch_draws(case: Case, step: int) -> remixmatch.Draws:
    turns = case[f"batch/{step}/rot_v"]
    first, turned = (case[f"batch/{step}/x_ulb_s_0{name}"] for name in ("", "_rot"))
    expected = [np.rot90(image, k, (1, 2)) for image, k in zip(first, turns, strict=True)]
    if not np.array_equal(turned, expected):
        raise UnknownCaseError("x_ulb_s_0_rot is not x_ulb_s_0 turned by rot_v")
    mixing = _mixing(case, step, REMIXMATCH_VIEWS, REMIXMATCH_POOL)
    return remixmatch.Draws(mixing, jnp.asarray(turns, jnp.int32))


def _remixmatch_quantities(case: Case) -> Quantities:
    del case
    return {
        "u1_loss": "loss/unmixed",
        "rot_loss": "loss/rotation",
        "probs_aligned": Argument("sharpen", 0, 0, jnp.exp),
    }


def _remixmatch_memory(case: Case) -> remixmatch.Memory:
    prior = jnp.asarray(case["init_state/da_p_target"])
    started = "init_state/da_p_model" in case
    average = jnp.asarray(case["init_state/da_p_model"]) if started else jnp.zeros_like(prior)
    return remixmatch.Memory(Marginal(average, jnp.asarray(started)), prior)


def _remixmatch_states(case: Case, memory: remixmatch.Memory) -> Mapping[str, Array]:
    del case
    return {"da_p_model": memory.predicted.average, "da_p_target": memory.labeled}


MIXMATCH = Replay(
    build=_mixmatch,
    views=lambda case: MIXMATCH_VIEWS,
    draws=lambda case, step: _mixing(case, step, MIXMATCH_VIEWS, MIXMATCH_POOL),
    overrides=lambda case: [mixmatch_passes()],
)
REMIXMATCH = Replay(
    build=_remixmatch,
    views=lambda case: REMIXMATCH_VIEWS,
    quantities=_remixmatch_quantities,
    draws=_remixmatch_draws,
    memory=_remixmatch_memory,
    states=_remixmatch_states,
    overrides=lambda case: [remixmatch_passes()],
)
