"""Replays USB's UDA and Dash: their options, what they record, and their quirks."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.compare import Names, compare_variables
from experiments.parity.entries import Argument, Override, Quantities, Replay
from experiments.parity.functions_common import REFERENCE_ONLY, tags
from experiments.parity.recording import RecordingModel
from experiments.parity.rows import Case, Comparison, UnknownCaseError
from experiments.parity.trajectory import Setup, build
from jaxmatch.algorithms import dash, uda
from jaxmatch.algorithms.supervised import Supervised
from jaxmatch.functional.losses import cross_entropy, entropy
from jaxmatch.models.network import make_network
from jaxmatch.optim import schedules
from jaxmatch.types import Array, Batch, Examples, PyTree, Spec, TrainState

Hyperparameters = Mapping[str, Any]
DECAY_EPOCHS = 10  # fixed in USB's code


def _uda(case: Case) -> uda.UDA:
    """USB as it is takes the probabilities as targets: its T does nothing."""
    given = case.meta["hyperparameters"]
    return uda.UDA(
        threshold=given["p_cutoff"],
        temperature=given["T"] if _sharpens(case) else 1.0,
        unlabeled_weight=given["ulb_loss_ratio"],
        signal=given["tsa_schedule"],
    )


def _uda_quantities(case: Case) -> Quantities:
    """The files of the corrected variant record the target as it was before sharpening."""
    temperature = case.meta["hyperparameters"]["T"] if _sharpens(case) else 1.0
    return {
        "mask": Argument("pseudo_label_metrics", 0, 1),
        "pseudo_label": Argument("kl_divergence", 0, 0, lambda z: jax.nn.softmax(z * temperature)),
        "tsa": "optim/training_signal",
    }


def _uda_overrides(case: Case) -> list[Override]:
    """USB's unsupervised term is the cross-entropy, larger by the target's constant entropy."""
    library = uda.kl_divergence

    def divergence(target_logits: Array, logits: Array) -> Array:
        return library(target_logits, logits) + entropy(target_logits)

    found = [Override(uda, "kl_divergence", divergence)]
    if case.meta["hyperparameters"]["tsa_schedule"] != "none":
        found.append(Override(uda, "annealed_cross_entropy", _annealed_by_confidence))
    return found


def _sharpens(case: Case) -> bool:
    return case.meta["variant"] != "reference as is"


def _annealed_by_confidence(logits: Array, label: Array, signal: Array) -> Array:
    """USB releases by the largest probability, and takes the mean over the whole batch."""
    kept = jax.nn.softmax(logits).max(-1) <= signal
    return jnp.where(kept, cross_entropy(logits, label), 0.0).mean()


def training_signal(case: Case, comparison: Comparison) -> None:
    """Signals at recorded steps."""
    step, steps = jnp.asarray(case["in/step"]), int(case["in/total"])
    for name in case.names("out/"):
        signal, classes = name.split("/c")
        ours = schedules.training_signal(signal, step, steps, int(classes))
        inside, theirs = np.asarray(step <= steps), case[f"out/{name}"]
        comparison.add("out/tsa", name, ours[inside], theirs[inside])
        if not inside.all():
            late = _signal_after(signal, step[~inside] / steps, int(classes))
            comparison.add("out/tsa (after the run)", name, late, theirs[~inside], REFERENCE_ONLY)


def _signal_after(name: str, progress: Array, classes: int) -> Array:
    """USB's signal goes on after the run."""
    shares = {
        "linear": progress,
        "exp": jnp.exp(5 * (progress - 1)),
        "log": 1 - jnp.exp(-5 * progress),
        "none": jnp.ones(progress.shape),
    }
    return shares[name] * (1 - 1 / classes) + 1 / classes


def _dash(case: Case) -> dash.Dash:
    """USB's clock starts at step 0; its warm-up is supervised and comes before."""
    given = case.meta["hyperparameters"]
    return _make_dash(
        given,
        _rho_initial(case),
        case.meta["num_classes"],
        case.meta["num_iter_per_epoch"],
        temperature=given["T"],
        unlabeled_weight=given["ulb_loss_ratio"],
    )


def _make_dash(
    given: Hyperparameters, rho_initial: float, classes: int, epoch: int, **options: Any
) -> dash.Dash:
    return dash.Dash(
        rho_initial=given["C"] * rho_initial / math.log(classes),
        rho_min=given["rho_min"],
        gamma=given["gamma"],
        rho_period_steps=DECAY_EPOCHS * epoch,
        warmup_steps=0,
        **options,
    )


def _rho_initial(case: Case) -> float:
    """Measured on test images before the recorded steps, with the weights before the warm-up."""
    key = "init_state/rho_init"
    return float(case[key if key in case else "warmup_out/rho_init"])


def _dash_memory(case: Case) -> dash.Memory:
    """USB keeps the number of decays, counted from 1, and rho after its minimum."""
    given, count = case.meta["hyperparameters"], int(case["init_state/rho_update_cnt"])
    rho = 0.0
    if count:
        rho = given["C"] * _rho_initial(case) * given["gamma"] ** (1 - count)
        held = max(rho, given["rho_min"])
        recorded = float(case["init_state/rho"]), bool(case["init_state/use_hard_label"])
        if not math.isclose(held, recorded[0]) or (held <= given["rho_min"]) != recorded[1]:
            raise UnknownCaseError("the threshold is not that of its number of decays")
    else:
        case["init_state/use_hard_label"]
    return dash.Memory(jnp.zeros((), float), jnp.zeros((), jnp.int32), jnp.asarray(rho, float))


def _dash_states(case: Case, memory: dash.Memory) -> dict[str, Array]:
    """The threshold by USB's names."""
    given, initial = case.meta["hyperparameters"], _rho_initial(case)
    decays = jnp.log(given["C"] * initial / memory.rho) / math.log(given["gamma"])
    return {
        "rho": jnp.maximum(memory.rho, given["rho_min"]),
        "rho_init": jnp.asarray(initial),
        "rho_update_cnt": 1 + jnp.round(decays).astype(int),
        "use_hard_label": memory.rho <= given["rho_min"],
    }


def _dash_quantities(case: Case) -> Quantities:
    """What the loss hands to the functions it imports."""
    del case
    return {
        "mask": Argument("pseudo_label_metrics", 0, 1),
        "pseudo_label": Argument("cross_entropy", 0, 1),
    }


def _dash_overrides(case: Case) -> list[Override]:
    """USB selects by the cross-entropy with the target that the strong view gets, sharpened too."""
    given = case.meta["hyperparameters"]

    def below(logits: Array, rho: Array) -> Array:
        soft = cross_entropy(logits, jax.nn.softmax(logits / given["T"]))
        hard = cross_entropy(logits, logits.argmax(-1))
        return jnp.where(rho > given["rho_min"], soft, hard) <= rho

    return [Override(dash, "below", below)]


def _warm_up(
    case: Case,
    comparison: Comparison,
    setup: Setup,
    shapes: PyTree,
    names: Names,
    state: TrainState,
) -> TrainState:
    """USB's supervised warm-up, after which schedule and momentum go on but the step is 0 again.

    Its teacher does not move meanwhile but for the statistics, and gives the first threshold.
    """
    if "warmup_batches_used" not in case.meta:
        return state
    case.under("warmup/")  # more batches than were used
    supervised = replace(setup, entry=Replay(build=lambda case: Supervised()))
    warm, step = build(case, supervised, {}, (), shapes, names)
    for number in range(case.meta["warmup_batches_used"]):
        images, label = _labeled(case, f"warmup/{number}")
        warm, metrics = step(warm, Batch(Examples((images,), label), None), 1.0, ())
        for theirs, ours in (("lr", "optim/learning_rate"), ("sup_loss", "loss/supervised")):
            key = f"warmup_out/{theirs}"
            comparison.add(key, str(number), metrics[ours], case[key][number], "library")
    compare_variables(comparison, case, names, "after_warmup/", warm.student(), setup.student)

    network = make_network(RecordingModel(setup.model, []))
    batches = sorted({name.split("/")[0] for name in case.names("warmup_eval/")})
    tests = [_labeled(case, f"warmup_eval/{number}") for number in batches]
    evaluated = {"": warm.teacher, "_if_current_weights_were_evaluated": warm.student()}
    for ending, variables in evaluated.items():
        errors = [
            cross_entropy(network(variables, images, train=False)[0].logits, label)
            for images, label in tests
        ]
        key = f"warmup_out/rho_init{ending}"
        comparison.add(key, "", jnp.concatenate(errors).mean(), case[key], "library")
    return state.replace(
        params=warm.params, stats=warm.stats, teacher=warm.student(), optimizer=warm.optimizer
    )


def _labeled(case: Case, key: str) -> tuple[Array, Array]:
    images = case[f"{key}/x_lb"].transpose(0, 2, 3, 1)
    return jnp.asarray(images, case.meta["dtype"]), jnp.asarray(case[f"{key}/y_lb"], jnp.int32)


def dash_rho(case: Case, comparison: Comparison) -> None:
    """Thresholds step by step."""
    spec = Spec(classes=10, steps=1)
    for tag in tags(case):
        given = {name: value.item() for name, value in case.under(f"in/{tag}/").items()}
        method = _make_dash(given, given["rho_init"], spec.classes, given["num_iter_per_epoch"])

        def follow(
            memory: dash.Memory, step: Array, method: dash.Dash = method
        ) -> tuple[dash.Memory, Array]:
            rho = method.threshold(step, memory, spec)
            return memory._replace(rho=rho), rho

        start = method.init(jax.random.key(0), spec)
        _, rho = jax.lax.scan(follow, start, jnp.arange(given["num_iters"]))
        comparison.add("out/rho", tag, jnp.maximum(rho, method.rho_min), case[f"out/{tag}/rho"])
        hard = case[f"out/{tag}/use_hard_label"]
        comparison.add("out/use_hard_label", tag, rho <= method.rho_min, hard)


UDA = Replay(
    build=_uda,
    views=lambda case: ("x_ulb_w", "x_ulb_s"),
    quantities=_uda_quantities,
    overrides=_uda_overrides,
)
DASH = Replay(
    build=_dash,
    views=lambda case: ("x_ulb_w", "x_ulb_s"),
    quantities=_dash_quantities,
    memory=_dash_memory,
    states=_dash_states,
    overrides=_dash_overrides,
    begin=_warm_up,
)
