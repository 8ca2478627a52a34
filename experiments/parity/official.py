"""Reads recorded runs of the authors' own code: its optimizer, schedule, EMA and network."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.parity.compare import COUNT
from experiments.parity.networks_official import build_official_model
from experiments.parity.official_algorithms import REPLAYS, ema_decay, position, ramps_ema
from experiments.parity.rows import Case, Comparison, UnknownCaseError
from experiments.parity.trajectory import Setup, run
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim
from jaxmatch.types import Array, Spec

Meta = Mapping[str, Any]
# What a case says of its network, beside the sizes that show in its tensors.
SIZES = ("depth", "channels")
WORDINGS = {
    "backbone": r"torchvision-style ResNet, (BasicBlock|Bottleneck) x \[[\d, ]+\], 7x7/2 stem \+ "
    r"3x3/2 max pool, ReLU, BN torch momentum 0\.1 eps 1e-5, no bias in convs",
    "downsample": r"1x1 conv stride 2 \+ BN",
    "type": r"CoMatch WideResnet \(pre-activation in every block, no stem bias, BN eps 1e-5, "
    r"torch momentum 0\.001, LeakyReLU 0\.1\)",
    "projection": r"fc1 -> LeakyReLU\(0\.1\) -> fc2 -> l2 norm \(no eps\)",
}
DECAYS = {
    "weight decay on EVERY student parameter (BN and biases too)": "all",
    'weight decay on every parameter whose name does NOT contain "bn"': "not_batch_norm",
}
COSINE_7_16 = "lr*cos(7*pi*it/(16*n_iters_all))"


def replay(case: Case, tolerance: float) -> Comparison:
    """Replay a case of kind "official_train_trajectory"; raises UnknownCaseError if it cannot."""
    return run(case, read(case), tolerance)


def family(meta: Meta) -> str | None:
    """The library's name of the algorithm of a case of this kind, if it is known."""
    source = meta.get("source")
    if not isinstance(source, Mapping):
        return None
    known = REPLAYS.get((source.get("repo", ""), source.get("file", "")))
    return known and known[0]


def read(case: Case) -> Setup:
    """The case in the library's terms."""
    meta, given = case.meta, case.meta["hyperparameters"]
    source = meta["source"]["repo"], meta["source"]["file"]
    if source not in REPLAYS:
        raise UnknownCaseError(f"the algorithm of {source} is not in the library")
    if given.get("fp16") or meta.get("world_size", 1) != 1:
        raise UnknownCaseError("half precision and several processes are not replayed")
    for step in range(meta["steps"]):
        if f"draw/{step}/shuffle_perm" in case:
            # One process' batch has the statistics of any permutation of it.
            order = np.sort(case[f"draw/{step}/shuffle_perm"])
            if not np.array_equal(order, np.arange(len(order))):
                raise UnknownCaseError("the shuffle is not a permutation")
    entry = REPLAYS[source][1]
    apart = any(name.startswith("ema.") for name in case.names("init/"))
    student = "init/main." if apart else "init/"
    ema = read_ema(meta)
    optim, steps = read_optim(meta)
    skips = not parameters(case, student) <= set(case.names(student.replace("init/", "grad/0/")))
    return Setup(
        entry=entry,
        model=read_model(case, student, getattr(entry.build(case), "projection", 0)),
        optim=optim,
        ema=ema,
        decays=[ema_decay(meta, step) for step in range(meta["steps"])],
        spec=Spec(
            classes=meta["num_classes"],
            steps=steps,
            labeled_batch=meta["batch_size"],
            unlabeled_batch=meta["batch_size"] * meta["mu"],
            teacher_trains=ema.statistics == "own",
        ),
        steps=steps,
        student=student,
        teacher="init/ema." if apart else "init/",
        final_student="final/main." if apart else "final/",
        final_teacher="final/ema." if apart else "ema/",
        skips=skips,
        overridden=[
            *(["Optim.rate"] if isinstance(optim, TabledOptim) else []),
            *(["Ema.decay"] if ramps_ema(meta) else []),
            *(["Optim.build"] if skips else []),
        ],
    )


def parameters(case: Case, key: str) -> set[str]:
    """The names after ``key`` of what is trained."""
    return {
        name for name in case.names(key) if ".running_" not in name and not name.endswith(COUNT)
    }


def read_model(case: Case, student: str, projection: int) -> Any:
    """The network of a case: its size from the tensors, the rest as its meta says."""
    network = case.meta["network"]
    for part, text in network.items():
        if part not in SIZES and not re.fullmatch(WORDINGS.get(part, "-"), text):
            raise UnknownCaseError(f"the network's {part} {text!r} is not known")
    stem = case[student + "backbone.conv1.weight"].shape[0]
    inside = case[student + "backbone.layer1.0.bn2.weight"].shape[0]
    return build_official_model(
        case.names(student),
        channels=(stem, inside),
        classes=case.meta["num_classes"],
        projection=projection,
        dtype=case.meta["dtype"],
    )


def read_ema(meta: Meta) -> Ema:
    """How the teacher follows the student; its decay is :func:`ema_decay`."""
    if "eman" in meta["hyperparameters"]:
        return Ema(statistics="averaged" if meta["hyperparameters"]["eman"] else "own")
    if meta["ema"] != "parameters averaged, buffers copied":
        raise UnknownCaseError(f"the EMA {meta['ema']!r} is not known")
    return Ema(statistics="copied")


@dataclass(frozen=True, kw_only=True)
class TabledOptim(Optim):
    """The optimizer with a learning rate for each recorded step."""

    table: tuple[float, ...] = ()

    def rate(self, steps: int) -> Callable[[Array], Array]:
        """The table, whatever the number of steps."""
        del steps
        return lambda step: jnp.asarray(self.table)[step]


def read_optim(meta: Meta) -> tuple[Optim, int]:
    """The optimizer, and where its schedule ends."""
    given, text = meta["hyperparameters"], meta["optimiser"]
    decays = [kind for wording, kind in DECAYS.items() if wording in text]
    if not text.startswith("SGD") or len(decays) != 1:
        raise UnknownCaseError(f"the optimiser {text!r} is not known")
    options = {
        "learning_rate": given["lr"],
        "momentum": given["momentum"],
        "nesterov": given.get("nesterov", "SGD nesterov" in text),
        "weight_decay": given["weight_decay"],
        "decay": decays[0],
    }
    if "schedule" in meta:
        if meta["schedule"] != COSINE_7_16:
            raise UnknownCaseError(f"the schedule {meta['schedule']!r} is not known")
        return Optim(schedule="cosine_7_16", **options), given["n_iters_all"]
    if not given["cos"] and "schedule" not in given:
        raise UnknownCaseError("neither a cosine nor the epochs of a schedule by steps is recorded")
    epochs, warmup = meta["epoch_of_step"], given["warmup_epoch"]
    lengths = {epoch: epochs.count(epoch) for epoch in epochs}
    if list(lengths.values()) != meta["steps_per_epoch"]:
        raise UnknownCaseError("a case that does not record whole epochs is not replayed")
    before = {length for epoch, length in lengths.items() if epoch < warmup}
    after = {length for epoch, length in lengths.items() if epoch >= warmup}
    drops = [] if given["cos"] else [each for each in given["schedule"] if each < given["epochs"]]
    constant = not given["cos"] and not drops
    if epochs[0] or len(before) > 1 or len(after) > 1 or constant:
        table = tuple(given["lr"] * rate_of_epoch(meta, step) for step in range(meta["steps"]))
        return TabledOptim(table=table, **options), meta["steps"]
    warmup_steps, period = warmup * min(before, default=0), min(after, default=1)
    steps = warmup_steps + period * (given["epochs"] - warmup)
    schedule = {"schedule": "cosine", "warmup_steps": warmup_steps, "period_steps": period}
    if drops:
        at = [warmup_steps + period * max(0, epoch - warmup) for epoch in drops]
        schedule = {"schedule": "steps", "warmup_steps": warmup_steps}
        schedule["drops"] = tuple(step / steps for step in at)
    return Optim(**schedule, **options), steps


def rate_of_epoch(meta: Meta, step: int) -> float:
    """Linear warm-up by steps, then half a cosine by epochs, or a tenth from each drop on.

    The references count the steps of a warm-up as if all its epochs were as long as this one.
    """
    given = meta["hyperparameters"]
    epochs, warmup = given["epochs"], given["warmup_epoch"]
    epoch, inside, length = position(meta, step)
    if epoch < warmup:
        return (epoch * length + inside + 1) / (warmup * length)
    if not given["cos"]:
        return 0.1 ** sum(epoch >= drop for drop in given["schedule"])
    return (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) / 2
