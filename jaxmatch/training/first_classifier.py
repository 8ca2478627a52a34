"""The first classifier of a run that begins from a trained encoder: fitted to the labeled features.

A fresh classifier on good features predicts all classes alike. No prediction then passes a
confidence threshold, and the unlabeled images stay unused. ``config.classifier_init`` starts the
classifier from class means (Snell et al., NeurIPS 2017; Qi et al., "Low-Shot Learning with
Imprinted Weights", CVPR 2018) or logistic regression of the labeled images' features, and
``config.classifier_temperature`` divides its logits. The temperature is part of the classifier's
kernel, so training goes on to learn it.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmatch.data.lazy import Images
from jaxmatch.evaluation.forward import make_logits
from jaxmatch.models.network import make_network
from jaxmatch.program import Program
from jaxmatch.runtime.mesh import put
from jaxmatch.types import CLASSIFIER, ORDINARY, PyTree, TrainState

if TYPE_CHECKING:  # scikit-learn takes a second to import
    from jaxmatch.evaluation.linear import Linear


def starts_fitted(config: ConfigDict) -> bool:
    """Whether a run of ``config`` starts from a classifier that is fitted to its labels."""
    return config.classifier_init != "random"


def with_fitted(
    state: TrainState, program: Program, images: Images, labels: np.ndarray
) -> tuple[TrainState, str]:
    """A ``state`` before its first step with a classifier fitted to the labeled images.

    It comes with a sentence about the classifier.

    Student and teacher get it. The features are those of the images without augmentation, in eval
    mode. Leaves keep their dtypes and shardings.

    Args:
        state: with a trained encoder.
        program: of the run.
        images: [n h w 3] uint8, the labeled ones.
        labels: [n] their classes.
    """
    inputs, readable = classifier_inputs(program, state.student(), images)
    fitted, told = fit(program.config, inputs[readable], labels[readable], program.spec.classes)
    new = {"kernel": fitted.kernel, "bias": fitted.bias}

    def fitted_like(own: PyTree) -> PyTree:
        # Student and teacher must not share buffers, since the step donates both.
        return {
            name: put(jnp.array(new[name], old.dtype, copy=True), old.sharding)
            for name, old in own.items()
        }

    def replaced(params: PyTree) -> PyTree:
        changed = {CLASSIFIER: fitted_like(params[CLASSIFIER])}
        if ORDINARY in params:  # it labels the weak views
            changed[ORDINARY] = {"dense": fitted_like(params[ORDINARY]["dense"])}
        return {**params, **changed}

    teacher = {**state.teacher, "params": replaced(state.teacher["params"])}
    return state.replace(params=replaced(state.params), teacher=teacher), told


def fit(
    config: ConfigDict, inputs: np.ndarray, labels: np.ndarray, classes: int
) -> tuple["Linear", str]:
    """The classifier that ``config`` asks for, and a sentence about it.

    Args:
        config: has ``classifier_init``, ``classifier_temperature`` and the seed of the folds.
        inputs: [n d] what the classifier reads of the labeled images.
        labels: [n].
        classes: how many there are.
    """
    from jaxmatch.evaluation import linear

    kind = config.classifier_init
    strength = None
    if kind == "logistic" and len(np.unique(labels)) > 1:
        strength = linear.best_strength(inputs, labels, classes, config.seed)
        learn = partial(linear.logistic, classes=classes, strength=strength)
    else:
        learn = partial(linear.class_means, classes=classes)
    temperature = config.classifier_temperature
    if not temperature:
        temperature = linear.temperature(learn, inputs, labels, config.seed)
    found = learn(inputs, labels).divided(temperature)
    how = "class means" if strength is None else f"logistic regression (C={strength:g})"
    confidence = linear.confidence(found.logits(inputs))
    return found, (
        f"the classifier starts from {how} of {len(labels)} labeled images at temperature "
        f"{temperature:.3g}; their mean confidence is {confidence:.2f}."
    )


def classifier_inputs(
    program: Program, variables: PyTree, images: Images
) -> tuple[np.ndarray, np.ndarray]:
    """What the classifier reads [n d] float32 in eval mode, and which images are readable [n].

    It reads the pooled features, or with ``model.head_layers`` what kept layers make of them. A
    network whose classifier is the identity has it as logits.
    """
    width = variables["params"][CLASSIFIER]["kernel"].shape[0]
    model = program.model.clone(classes=width, extra_heads={})  # some have an output a class
    network = make_network(model, program.mesh.size, precision=program.config.precision)
    own = variables["params"][CLASSIFIER]
    identity = {"kernel": jnp.eye(width, dtype=own["kernel"].dtype)}
    if "bias" in own:
        identity["bias"] = jnp.zeros(width, own["bias"].dtype)
    params = {**variables["params"], CLASSIFIER: identity}
    found = make_logits(replace(program, network=network))({**variables, "params": params}, images)
    return found.values, found.readable
