"""Replays losses of pre-training: solo-learn's InfoNCE with two queues, BYOL, SimSiam and SwAV."""

import jax
import jax.numpy as jnp

from experiments.parity.functions_common import REFERENCE_ONLY, tags
from experiments.parity.rows import Case, Comparison
from jaxmatch.algorithms import swav
from jaxmatch.algorithms.byol import regression
from jaxmatch.functional.losses import info_nce
from jaxmatch.functional.memory import Queue, filled, push
from jaxmatch.functional.similarity import normalize
from jaxmatch.functional.sinkhorn import sinkhorn
from jaxmatch.types import Array

Pair = tuple[Array, Array]


def momentum_contrast(case: Case, comparison: Comparison) -> None:
    """Steps of the symmetric form: a queue a view, each read by the other view's queries.

    The reference's queues are full from the start, and hold a column a key.
    """
    rows = jnp.asarray(case["in/queue_init"]).transpose(0, 2, 1)  # [2 n d]
    size = jnp.int32(rows.shape[1])
    queues = [Queue({"embedding": each}, jnp.int32(0), size) for each in rows]
    temperature = float(case["in/temperature"])

    @jax.jit
    @jax.value_and_grad
    def loss(queries: Pair, keys: Pair, queues: list[Queue]) -> Array:
        sides = zip(queries, keys[::-1], queues[::-1], strict=True)
        losses = [
            info_nce(query, key, queue.rows["embedding"], temperature, filled(queue)).mean()
            for query, key, queue in sides
        ]
        return jnp.stack(losses).mean()

    steps = {int(tag) for tag in tags(case) if tag.isdecimal()}
    for step in sorted(steps):
        given = {name: jnp.asarray(each) for name, each in case.under(f"in/{step}/").items()}
        queries, keys = (given["q1"], given["q2"]), (given["k1"], given["k2"])
        value, gradients = loss(queries, keys, queues)
        queues = [push(queue, {"embedding": key}) for queue, key in zip(queues, keys, strict=True)]
        columns = jnp.stack([queue.rows["embedding"].T for queue in queues])
        comparison.add("out/loss", str(step), value, case[f"out/{step}/loss"])
        for name, gradient in zip(("q1", "q2"), gradients, strict=True):
            comparison.add(f"grad/{name}", str(step), gradient, case[f"grad/{step}/{name}"])
        comparison.add("out/queue", str(step), columns, case[f"out/{step}/queue"])
        pointer = case[f"out/{step}/queue_ptr"]
        comparison.add("out/queue_ptr", str(step), queues[0].pointer, pointer)


def byol(case: Case, comparison: Comparison) -> None:
    """Loss and gradient with respect to the predictions, in either of the reference's two forms."""
    for tag in tags(case):
        ours, kind, source = _regression, "", "library"
        if tag.startswith("simsiam"):
            ours, kind, source = _negative_cosine, " (SimSiam)", REFERENCE_ONLY
        prediction, target = (jnp.asarray(case[f"in/{tag}/{name}"]) for name in ("p", "z"))
        loss, gradient = jax.jit(jax.value_and_grad(ours))(prediction, target)
        comparison.add(f"out/loss{kind}", tag, loss, case[f"out/{tag}/loss"], source)
        comparison.add(f"grad/p{kind}", tag, gradient, case[f"grad/{tag}/p"], source)


def _regression(prediction: Array, target: Array) -> Array:
    return regression(prediction, target).mean()


def _negative_cosine(prediction: Array, target: Array) -> Array:
    return -jnp.sum(normalize(prediction) * normalize(target), -1).mean()


def swapped_prediction(case: Case, comparison: Comparison) -> None:
    """Sinkhorn's assignments, and SwAV's loss of all views but the one an assignment is of."""
    for name, assignment in case.under("out/sinkhorn/").items():
        number = name.partition("/")[0]
        given = case.under(f"in/sinkhorn/{number}/")
        ours = sinkhorn(
            jnp.asarray(given["scores"]),
            epsilon=float(given["epsilon"]),
            iterations=int(given["num_iters"]),
        )
        comparison.add("out/sinkhorn", number, ours, assignment)
    for name, theirs in case.under("out/swav/").items():
        number = name.partition("/")[0]
        given = {key: jnp.asarray(each) for key, each in case.under(f"in/swav/{number}/").items()}
        names = sorted(key for key in given if key.startswith("preds_"))
        codes = [given[key] for key in sorted(given) if key.startswith("assignment_")]

        def loss(views: list[Array], codes=codes, temperature=float(given["temperature"])) -> Array:
            return swav.swapped_prediction(views, codes, temperature).mean()

        value, gradients = jax.jit(jax.value_and_grad(loss))([given[key] for key in names])
        comparison.add("out/loss", number, value, theirs)
        ours = dict(zip(names, gradients, strict=True))
        comparison.add_each(f"grad/swav/{number}", ours, case.under(f"grad/swav/{number}/"))
