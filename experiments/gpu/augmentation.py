"""The share of the views in a step, in each form that the library has for them.

    python -m experiments.gpu.augmentation --config=fixmatch:tfds:cifar10 --config.dtype=bfloat16

Random images stand in for the data set. "platform" is the form that the library chooses for the
device, "products" moves pixels by products with one-hot matrices, "gathers" by gathers and
scatters: see ``jaxmatch/augment/pixels/source.py``. Prints a JSON line a form and a table.
"""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax

from experiments.throughput.measure import measure
from jaxmatch.augment.pixels import source as pixels
from jaxmatch.config.flags import from_flags

IMAGES = [32, 10]  # side, classes
# In place of the one function that chooses: (products, gathers, *operands) -> an array.
FORMS: dict[str, Callable[..., Any]] = {
    "platform": pixels.by_platform,
    "products": lambda products, gathers, *operands: products(*operands),
    "gathers": lambda products, gathers, *operands: gathers(*operands),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--calls", type=int, default=5, help="timed calls of steps_per_call steps")
    arguments, overrides = parser.parse_known_args()
    config, _ = from_flags(arguments.config, overrides)
    rows = ["| form | step, s | views of it | views, s | compile, s |", "|---|---|---|---|---|"]
    for form in FORMS:
        with chosen(form):
            found = measure(config, arguments.calls, IMAGES)
        print(json.dumps({"form": form, **found}), flush=True)
        step, share = found["step_seconds"]["median"], found["augment_share"]
        rows.append(
            f"| {form} | {step:.5f} | {share:.3f} | {step * share:.5f} "
            f"| {found['compile_seconds']:.1f} |"
        )
    print("\n".join(rows))


@contextlib.contextmanager
def chosen(form: str) -> Iterator[None]:
    """Compute views in that form."""
    jax.clear_caches()
    with mock.patch.object(pixels, "by_platform", FORMS[form]):
        yield


if __name__ == "__main__":
    main()
