"""How unlike the training classes images look: scores of one image, and of known images of a run.

All scores are of raw logits, which no temperature divides. Larger ones are stranger.

- ``energy``: -log sum_k exp f_k (Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS
  2020, eq. 4 with T = 1, https://arxiv.org/abs/2010.03759);
- ``max_logit``: -max_k f_k (Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World
  Settings", ICML 2022, section 3, https://arxiv.org/abs/1911.11132);
- ``heads``: of a method with heads for it, such as IOMatch
  (:meth:`jaxmatch.types.Algorithm.strangeness`).
"""

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmatch.algorithms.unequal import innermost
from jaxmatch.data.lazy import Images
from jaxmatch.errors import InputError, suggest
from jaxmatch.evaluation.forward import Answers
from jaxmatch.record.data import Data
from jaxmatch.record.folder import RunFolder, keep
from jaxmatch.record.run_data import load_recorded
from jaxmatch.record.unknown import LABELED, NETWORKS, SHARE, VALIDATION, KnownImages, suffice
from jaxmatch.types import Algorithm, Array, Outputs

log = logging.getLogger(__name__)

AnyImages = TypeVar("AnyImages")

ENERGY, MAX_LOGIT, HEADS = "energy", "max_logit", "heads"
SCORES = (ENERGY, MAX_LOGIT, HEADS)


def energy(logits: np.ndarray) -> np.ndarray:
    """-log sum_k exp f_k [n] of logits f [n C], in float64."""
    wide = np.asarray(logits, np.float64)
    top = wide.max(-1)
    return -top - np.log(np.exp(wide - top[:, None]).sum(-1))


def max_logit(logits: np.ndarray) -> np.ndarray:
    """-max_k f_k [n] of logits f [n C]."""
    return -np.asarray(logits).max(-1)


def scores(logits: np.ndarray, heads: np.ndarray | None) -> dict[str, np.ndarray]:
    """All scores of n images by name, each [n] float32.

    Args:
        logits: [n C].
        heads: [n] of the method's own heads; None without such heads.
    """
    found = {ENERGY: energy(logits), MAX_LOGIT: max_logit(logits)}
    if heads is not None:
        found[HEADS] = np.asarray(heads)
    return {name: values.astype(np.float32) for name, values in found.items()}


def traced(score: str, algorithm: Algorithm) -> Callable[[Outputs], Array]:
    """A score as a function from a network's outputs to [b] that JAX traces, for exported files."""

    def measure(outputs: Outputs) -> Array:
        values = {
            ENERGY: lambda: -jax.nn.logsumexp(outputs.logits, -1),
            MAX_LOGIT: lambda: -outputs.logits.max(-1),
            HEADS: lambda: algorithm.strangeness(outputs),
        }[score]()
        assert values is not None, f"the method has no {score}"
        return values

    return measure


def known_images(data: Data) -> tuple[Images, str]:
    """Images of a run's known classes to compare with, and which part of its data they are.

    They are the validation set, or else the labeled images. The run has trained on the latter, so
    that they look less strange than new images of the same classes.
    """
    if data.validation_images is not None and len(data.validation_images):
        return data.validation_images, VALIDATION
    return data.labeled_images, LABELED


def measure(
    images: AnyImages, part: str, step: int, network: Callable[[AnyImages, str], Answers]
) -> KnownImages:
    """How strange known ``images`` look at a ``step``.

    Args:
        images: of :func:`known_images`.
        part: which these are.
        step: of the networks.
        network: function from images and "teacher" or "student" to logits [n C] and the strangeness
            [n], or None, of the method's heads.

    Raises:
        InputError: if no image is readable.
    """
    found: dict[str, Mapping[str, np.ndarray]] = {}
    for name in NETWORKS:
        answers = network(images, name)
        logits, heads = answers.values
        readable = answers.readable
        heads = None if heads is None else heads[readable]
        each = scores(logits[readable], heads)
        found[name] = {key: np.sort(values) for key, values in each.items()}
    usual = HEADS if HEADS in found[NETWORKS[0]] else ENERGY
    return KnownImages(step=step, part=part, score=usual, scores=found)


def of_run(
    files: RunFolder,
    config: ConfigDict,
    step: int,
    place: str,
    network: Callable[[Images, str], Answers],
) -> KnownImages:
    """How strange known images look at a ``step`` of a run, read or measured now and kept.

    Args:
        files: of the run.
        config: of the run.
        step: of the networks.
        place: where the data of the run is now, if it has moved.
        network: as of :func:`measure`.

    Raises:
        InputError: if the images must be measured, and the data is not what it was.
    """
    known = files.read_known_images().get(step)
    if known is None:
        try:
            data = load_recorded(config, files.path, place=place, needed="held")
        except InputError as error:
            raise InputError(
                f"{files.path} has no {files.unknown_file.name} of step {step}, so known images "
                f"must be looked at. {error}"
            ) from error
        known = measure(*known_images(data), step, network)
        keep(files.write_known_images, known)
    if known.part == LABELED:
        log.warning(
            "%s has no validation set, so images are compared with its %d labeled ones. It was "
            "trained on these, and they look less strange than new images of the same classes: "
            "`unknown` is too high. A new run with data.validation=N holds out images for it.",
            files.path,
            known.images,
        )
    if not suffice(known.images):
        log.warning(
            "%s compares with %d known images; so few never give an `unknown` of %g, from which an "
            "image is likely of no class. Hold out 100 or more (data.validation=N).",
            files.path,
            known.images,
            SHARE,
        )
    return known


def has_heads(algorithm: Algorithm) -> bool:
    """Whether a method has heads that tell how strange an image is."""
    return type(innermost(algorithm)).strangeness is not Algorithm.strangeness


def chosen(known: KnownImages, network: str, score: str) -> str:
    """The name of the ``score`` to use, by default that of ``known``.

    Raises:
        InputError: if there is no such score.
    """
    score = score or known.score
    there = known.scores[network]
    if score not in there:
        reason = f"; the method has no {HEADS} for it" if score == HEADS else ""
        raise InputError(f"unknown score {score!r}{reason}; {suggest(score, there)}")
    return score
