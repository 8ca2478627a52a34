"""Exports a classifier as a program of StableHLO, which runs with jax alone (:mod:`jax.export`).

The file is a zip of two parts: ``program``, as ``jax.export.Exported.serialize`` writes it, and
``facts.json`` (:class:`~jaxmatch.weights.shipped.Shipped`).
"""

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxmatch.errors import InputError
from jaxmatch.runtime import paths
from jaxmatch.weights.shipped import Answer, Shipped, classify
from jaxmatch.weights.trained import Trained

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, FACTS = "program", "facts.json"


def export_stablehlo(path: Path, trained: Trained) -> str:
    """Write the program for batches of any size on each of :data:`PLATFORMS`."""
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *trained.image_shape), jnp.uint8)
    with _without_paths():
        program = export.export(jax.jit(classify(trained)), platforms=PLATFORMS)(images)
    parts = {
        PROGRAM: bytes(program.serialize()),
        FACTS: json.dumps(Shipped.of(trained).to_json(), indent=1).encode(),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, part in parts.items():  # with a constant date: equal weights give equal files
            file.writestr(zipfile.ZipInfo(name), part)
    paths.write_output(path, content.getvalue())
    return f"a program from uint8 images to probabilities, for {', '.join(PLATFORMS)}"


def read_stablehlo(path: Path, content: bytes) -> tuple[Shipped, Answer]:
    """The facts and the function in the ``content`` of a file.

    Raises:
        InputError: if the file is damaged or holds something else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            if {PROGRAM, FACTS} - set(file.namelist()):
                raise InputError(
                    f"{path} is a zip, but no classifier that export has written; weights alone "
                    "(.npz) start a run by --config.init_from."
                )
            facts = Shipped.from_json(json.loads(file.read(FACTS)))
            program = export.deserialize(bytearray(file.read(PROGRAM)))
    except InputError:
        raise
    except Exception as error:  # flatbuffers and zipfile raise errors of many kinds
        raise InputError(f"{path} is damaged ({error}); export it again.") from error
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in program.platforms:
        raise InputError(
            f"{path} runs on {', '.join(program.platforms)}, not on {platform}; set "
            "JAX_PLATFORMS=cpu."
        )
    call = jax.jit(program.call)  # which compiles once for each size of a batch

    def answer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        found = call(images)
        probabilities, unknown = found if facts.unknown else (found, None)
        return np.asarray(probabilities), None if unknown is None else np.asarray(unknown)

    return facts, answer


@contextmanager
def _without_paths() -> Iterator[None]:
    """Leave out the source lines of operations, which would tell the folders of this machine."""
    name = "jax_traceback_in_locations_limit"
    before = jax.config.values[name]  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
