"""Exports a classifier to ONNX by jax2onnx; the extra ``onnx`` installs it with ONNX Runtime.

The model's metadata has ``classes``, a list in JSON, and ``jaxmatch``, all facts
(:class:`~jaxmatch.weights.shipped.Shipped`).
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmatch.errors import InputError
from jaxmatch.runtime import paths
from jaxmatch.weights.shipped import PROBABILITIES, UNKNOWN, Answer, Shipped, classify
from jaxmatch.weights.trained import Trained

INPUT = "images"
TOLERANCE = 1e-4  # of a probability, between JAX and ONNX Runtime
CLASSES, FACTS = "classes", "jaxmatch"
REMEDY = "export it as .stablehlo"
# The converter replaces functions of these: jax.numpy.cumsum for the rest of the process.
PATCHED = (jnp, jax.lax, jax.nn)


def export_onnx(path: Path, trained: Trained) -> str:
    """Write a model for batches of any size, once ONNX Runtime gives the network's probabilities.

    Raises:
        InputError: if the network cannot be converted.
    """
    if trained.origin.get("dtype", "float32") != "float32":
        raise InputError(
            f"the run computed in {trained.origin['dtype']}, which ONNX Runtime does not have for "
            "all layers; give --dtype float32, or export it as .stablehlo."
        )
    function = classify(trained)
    facts = Shipped.of(trained).to_json()
    images: Any = jax.ShapeDtypeStruct(("b", *trained.image_shape), jnp.uint8)
    outputs = [PROBABILITIES] + [UNKNOWN] * bool(trained.known)
    names: Any = {"input_names": [INPUT], "output_names": outputs}
    with _quiet(), _restored():
        import jax2onnx  # pyright: ignore[reportMissingImports]

        try:
            model: Any = jax2onnx.to_onnx(function, [images], model_name="jaxmatch", **names)
        except Exception as error:  # the converter raises errors of many kinds
            raise _inconvertible(f"{type(error).__name__}: {error}") from error
    for key, value in ((CLASSES, list(trained.classes)), (FACTS, facts)):
        model.metadata_props.add(key=key, value=json.dumps(value))
    content = model.SerializeToString()
    _check(content, function, trained)
    paths.write_output(path, content)
    opset = max(each.version for each in model.opset_import if not each.domain)
    return f"a model from uint8 images to probabilities, opset {opset}"


def read_onnx(path: Path, content: bytes) -> tuple[Shipped, Answer]:
    """The facts and the function in the ``content`` of a file, which ONNX Runtime computes.

    Raises:
        InputError: if ONNX Runtime is missing, or the file is damaged or holds something else.
    """
    if not paths.installed("onnxruntime"):
        raise InputError(f'{path} needs ONNX Runtime: pip install "jaxmatch[onnx]".')
    try:
        session = _session(content)
        found = session.get_modelmeta().custom_metadata_map
        if FACTS not in found:
            raise ValueError("it is no model that export has written")
        facts = Shipped.from_json(json.loads(found[FACTS]))
    except Exception as error:  # ONNX Runtime raises errors of many kinds
        raise InputError(f"{path} is no classifier, or damaged ({_first(error)}).") from error
    outputs = [PROBABILITIES] + [UNKNOWN] * bool(facts.unknown)

    def answer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        probabilities, *unknown = session.run(outputs, {INPUT: images})
        return probabilities, unknown[0] if unknown else None

    return facts, answer


def _check(content: bytes, function: Any, trained: Trained) -> None:
    """Compare ONNX Runtime with JAX on two images of random levels."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, *trained.image_shape)).astype(np.uint8)
    try:
        found, *_ = _session(content).run(None, {INPUT: images})
    except Exception as error:
        raise _inconvertible(f"ONNX Runtime refuses it: {_first(error)}") from error
    expected, *_ = jax.tree.leaves(jax.jit(function)(images))
    difference = np.abs(found - np.asarray(expected)).max()
    if not difference <= TOLERANCE:
        raise _inconvertible(f"ONNX Runtime gives probabilities that differ by {difference:.1g}")


def _session(content: bytes) -> Any:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    present = onnxruntime.get_available_providers()
    chosen = [f"{kind}ExecutionProvider" for kind in ("CUDA", "CPU")]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised, too
    return onnxruntime.InferenceSession(
        content, options, providers=[name for name in chosen if name in present]
    )


def _inconvertible(reason: str) -> InputError:
    return InputError(f"this network cannot be converted to ONNX ({reason.strip()}); {REMEDY}.")


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the converter's warnings, such as those about layers of other libraries."""
    logs = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


@contextmanager
def _restored() -> Iterator[None]:
    """Give the modules :data:`PATCHED` their functions back at the end."""
    before = [dict(vars(module)) for module in PATCHED]
    try:
        yield
    finally:
        for module, names in zip(PATCHED, before, strict=True):
            for name, value in names.items():
                if vars(module).get(name) is not value:
                    setattr(module, name, value)
