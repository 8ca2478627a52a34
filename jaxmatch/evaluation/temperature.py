"""Temperature scaling: one number that makes the confidence of a trained network fit its accuracy.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
https://arxiv.org/abs/1706.04599, section 4.2: the logits of the validation images are divided by
the temperature with the smallest negative log likelihood. The predicted classes stay the same.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import brentq

from jaxmatch.evaluation.forward import Answers, probabilities
from jaxmatch.evaluation.metrics import counted, score

LEAST, MOST = 0.05, 20.0
FEW = 100  # with fewer images a temperature means little
MEASURED = ("negative_log_likelihood", "expected_calibration_error")


def fit(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T from 0.05 to 20 with the least mean of -log softmax(logits / T)[label].

    The negative log likelihood is convex in 1 / T. Its slope there, the mean of the expected logit
    minus the label's, increases, and its root is found in float64 by Brent's method. T is 1 if
    every label has the largest logit, since the likelihood then has no maximum: it grows as T goes
    to 0. T is 20 if the logits are no better than chance, where it would go to infinity.

    Args:
        logits: [n C]; rows that are not finite do not count.
        labels: [n] positions in 0..C-1.
    """
    finite = np.isfinite(logits).all(-1)
    values, rows = logits[finite].astype(np.float64), np.arange(finite.sum())
    values = values - values.max(-1, keepdims=True)
    chosen = values[rows, labels[finite]]
    if not chosen.any():  # also without images
        return 1.0

    def slope(inverse: float) -> float:
        odds = values * inverse
        np.exp(odds, out=odds)
        expected = np.einsum("nc,nc->n", values, odds) / odds.sum(-1)
        return float((expected - chosen).mean())

    if slope(1 / MOST) >= 0:
        return MOST
    if slope(1 / LEAST) <= 0:
        return LEAST
    return 1 / float(brentq(slope, 1 / MOST, 1 / LEAST, xtol=1e-12))  # pyright: ignore[reportArgumentType]


def calibration(logits: Answers, labels: np.ndarray) -> dict[str, Any]:
    """The ``temperature`` of a network, and two metrics ``before`` and ``after`` it is applied.

    Args:
        logits: [n C] of the validation images; unreadable ones do not count.
        labels: [n]; images with an unknown label (-1) do not count.
    """
    temperature = fit(*counted(logits, labels))
    before, after = (
        score(probabilities(logits, each), labels, MEASURED) for each in (1.0, temperature)
    )
    return {"temperature": temperature, "before": before, "after": after}


def of_networks(logits: Mapping[str, Answers], labels: np.ndarray) -> dict[str, Any] | None:
    """The calibration of each network by its name, and the number of ``images`` it is fitted to.

    None without images that count. Arguments are those of :func:`calibration`.
    """
    number = len(counted(next(iter(logits.values())), labels)[1])
    if not number:
        return None
    return {
        "images": number,
        **{network: calibration(each, labels) for network, each in logits.items()},
    }


def sentences(found: Mapping[str, Any] | None, network: str) -> list[str]:
    """What there is to tell about the calibration of a network, with a warning if it means little.

    Args:
        found: as :func:`of_networks` returns it.
        network: "teacher" or "student".
    """
    if found is None:
        return []
    images, each = found["images"], found[network]
    before, after = (each[when]["expected_calibration_error"] for when in ("before", "after"))
    told = [
        f"probabilities are calibrated: temperature {each['temperature']:.3g} "
        f"(ECE {before:.3f} -> {after:.3f} on {images:,} validation images)"
    ]
    if each["temperature"] == 1:
        told = [
            f"the temperature stays 1, because all {images:,} validation images are classified "
            "correctly, so that they do not tell how often the network errs"
        ]
    elif each["temperature"] in (LEAST, MOST):
        told.append(f"the temperature is at the end of its range, {LEAST:g} to {MOST:g}")
    if images < FEW:
        told.append(
            f"a temperature of {images:,} validation images means little; hold out "
            f"{FEW} or more (data.validation=N)"
        )
    return told
