"""SimMatch with what USB's code does differently, to see which of it matters at 10 labels.

    python -m experiments.mnist5k.usb_simmatch --seed 1 --bank
    python -m experiments.mnist5k.usb_simmatch --seed 1 --bank --heads

``--bank`` normalises what enters the bank over the batch, one feature at a time, in place of each
embedding over its features; ``--heads`` averages three projection heads. The library has neither.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
from flax import linen as nn

from jaxmatch import train
from jaxmatch.algorithms import ALGORITHMS
from jaxmatch.algorithms.simmatch import SimMatch
from jaxmatch.config.flags import from_flags
from jaxmatch.functional import memory
from jaxmatch.functional.similarity import normalize
from jaxmatch.models.heads import Projection
from jaxmatch.runtime.compilation import prepare_process
from jaxmatch.types import Array, Heads


class AveragedProjections(nn.Module):
    """The mean of several projection heads."""

    features: int
    count: int = 3
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map pooled features ``x`` [b d] to [b features]."""
        heads = [
            Projection(self.features, param_dtype=self.param_dtype, name=f"head{number}")
            for number in range(self.count)
        ]
        return jnp.stack([head(x, train) for head in heads]).mean(0)


@dataclass(frozen=True, kw_only=True)
class ManyHeads(SimMatch):
    """SimMatch on averaged heads."""

    @property
    def heads(self) -> Heads:
        """Three in place of one."""
        return {"projection": AveragedProjections(self.projection)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bank", action="store_true", help="normalise the bank as USB does")
    parser.add_argument("--heads", action="store_true", help="average three heads as USB does")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--split", default="", help="labeled images, if not those of the seed")
    parser.add_argument("--runs", type=Path, default=Path("runs/mnist5k_usb"))
    arguments = parser.parse_args()
    prepare_process()
    names = [name for name in ("bank", "heads") if getattr(arguments, name)]
    folder = f"{'_'.join(['simmatch', *names])}-{arguments.labels}-s{arguments.seed}"
    chosen = f"labels={arguments.labels},seed={arguments.seed}"
    split = f",split={arguments.split}" if arguments.split else ""
    config, _ = from_flags(
        f"simmatch:mnist5k,{chosen}{split}", [f"--config.steps={arguments.steps}"]
    )
    config.recipe = "_".join(["simmatch", *names])
    over_batch = lambda x: normalize(x.T).T  # noqa: E731
    with (
        mock.patch.object(memory, "normalize", over_batch if arguments.bank else normalize),
        mock.patch.dict(ALGORITHMS, {"simmatch": ManyHeads if arguments.heads else SimMatch}),
    ):
        summary = train(config, arguments.runs / folder)
    print(folder, summary["teacher"]["last"])


if __name__ == "__main__":
    main()
