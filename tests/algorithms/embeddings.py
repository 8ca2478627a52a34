"""What the tests of similarity methods share: a NumPy twin with embeddings, a repeating network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from helpers import CLASSES, numpy_logits

from jaxmatch.functional.memory import Bank
from jaxmatch.types import Batch, Examples, Outputs, Target, TrainState


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def numpy_features(params, images):
    """The features [b d] of the TinyNetwork in train mode on one joint batch."""
    width = len(params["classifier"]["kernel"])
    identity = {"kernel": np.eye(width), "bias": 0.0}
    return numpy_logits({**params, "classifier": identity}, images)


def numpy_outputs(params, *views):
    """The TinyNetwork with a projection head on one joint batch: (logits, embeddings) a view."""
    features = numpy_features(params, np.concatenate(views))
    head, classifier = params["projection"], params["classifier"]
    hidden = np.maximum(features @ head["hidden"]["kernel"] + head["hidden"]["bias"], 0)
    embeddings = unit(hidden @ head["output"]["kernel"] + head["output"]["bias"])
    logits = features @ classifier["kernel"] + classifier["bias"]
    ends = np.cumsum([len(view) for view in views])[:-1]
    return list(zip(np.split(logits, ends), np.split(embeddings, ends), strict=True))


def slope_along(value, params, direction):
    """Central difference of ``value`` at ``params`` along a small ``direction``."""
    ahead, behind = (jax.tree.map(op, params, direction) for op in (np.add, np.subtract))
    return (value(ahead) - value(behind)) / 2


def echo(variables, views, train=True):
    """A Network whose input is its output: logits [b C], then the embedding."""
    del train

    def output(leaf):
        rows = leaf.view if isinstance(leaf, Target) else leaf
        logits = rows[:, :CLASSES]
        return Outputs(logits, logits, {"projection": rows[:, CLASSES:]})

    outputs = jax.tree.map(output, views, is_leaf=lambda leaf: isinstance(leaf, Target))
    return outputs, variables["batch_stats"]


def echo_views(logits, embeddings):
    return np.concatenate([logits, embeddings], 1).astype(np.float32)


def echo_loss(algorithm, spec, memory, labeled, unlabeled, step=0, network=echo):
    """``algorithm.loss`` of views for :func:`echo`, labeled ones of class 0: (value, update)."""
    count = len(labeled)
    batch = Batch(
        Examples((labeled,), np.zeros(count, np.int32), np.arange(count)),
        Examples(tuple(unlabeled)),
    )
    state = TrainState(
        step=jnp.int32(step),
        key=None,
        params={},
        stats={},
        teacher={"params": {}, "batch_stats": {}},
        optimizer=None,
        memory=memory,
        policy=(),
    )
    loss = jax.jit(partial(algorithm.loss, network, spec=spec))
    return loss({}, state, batch, ())


def full_bank(embeddings, labels):
    return Bank(
        jnp.asarray(embeddings, float),
        jnp.asarray(np.asarray(labels, np.int32)),
        jnp.ones(len(labels), bool),
    )
