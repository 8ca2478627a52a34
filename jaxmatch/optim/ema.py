"""The teacher as an exponential moving average of the student."""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from jaxmatch.errors import InputError
from jaxmatch.optim.schedules import cosine
from jaxmatch.settings import Momentum, section
from jaxmatch.types import Array, PyTree


@section("ema")
class Ema:
    """The settings ``config.ema``.

    Attributes:
        decay: after every optimizer step, teacher <- decay * teacher + (1 - decay) * student.
        statistics: BatchNorm statistics of the teacher. "copied" are the student's. "averaged" are
            a moving average of the student's, like the parameters (EMAN; Cai et al., CVPR 2021).
            "own" are those of the teacher's forward passes in train mode (MoCo, SimMatch on
            ImageNet). ``jaxmatch/models/batch_norm.py`` lists the modes that these make.
        schedule: the decay stays "constant", rises to 1 along a "cosine", or rises to its value in
            a "warmup", so that a short run soon leaves the initial values behind.
    """

    decay: Momentum = 0.999
    statistics: Literal["copied", "averaged", "own"] = "copied"
    schedule: Literal["constant", "cosine", "warmup"] = "constant"

    def decay_at(self, step: Array | int, steps: int) -> Array | float:
        """The decay after ``step`` = k earlier steps in a run of ``steps`` = K.

        "cosine" is 1 - (1 - decay) (cos(pi k / K) + 1) / 2; Grill et al., "Bootstrap Your Own
        Latent", NeurIPS 2020, appendix, https://arxiv.org/abs/2006.07733. "warmup" is
        min(decay, (1 + k) / (10 + k)), that of TensorFlow's ``ExponentialMovingAverage`` with
        ``num_updates`` = k.
        """
        if self.schedule == "constant":
            return self.decay
        if self.schedule == "warmup":
            taken = jnp.asarray(step, float)  # a quotient of int32 would be float32 under x64
            return jnp.minimum(self.decay, (1 + taken) / (10 + taken))
        return 1 - (1 - self.decay) * cosine(jnp.asarray(step), steps)

    def update(
        self,
        teacher: Mapping[str, PyTree],
        params: PyTree,
        stats: PyTree,
        own: PyTree = None,
        *,
        step: Array | int,
        steps: int,
    ) -> dict[str, PyTree]:
        """The teacher's variables after an optimizer step.

        Args:
            teacher: its variables before the step.
            params: the student's after the step.
            stats: the student's BatchNorm statistics after the step.
            own: the teacher's statistics after its own forward pass in train mode.
            step: number of earlier steps.
            steps: of the whole run.

        Raises:
            InputError: if ``statistics`` is "own" and the method hands none back.
        """
        if self.statistics == "own" and own is None:
            raise InputError(
                'ema.statistics="own" needs a method whose teacher labels in train mode; use '
                '"copied" or "averaged".'
            )
        decay = self.decay_at(step, steps)

        def average(old: PyTree, new: PyTree) -> PyTree:
            return jax.tree.map(
                lambda a, b: (decay * a + (1 - decay) * b).astype(a.dtype), old, new
            )

        new_stats = own if self.statistics == "own" else stats
        if self.statistics == "averaged":
            new_stats = average(teacher["batch_stats"], stats)
        return {"params": average(teacher["params"], params), "batch_stats": new_stats}
