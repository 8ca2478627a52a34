"""MixUp of a pool in NumPy: its draws and what they do."""

import numpy as np

from jaxmatch.functional.mixup import Mixing


def numpy_mixing(batch, seed=1):
    """Weights and partners for all views of ``batch``, labeled ones first."""
    random = np.random.default_rng(seed)
    sizes = [len(view) for view in (*batch.labeled.views, *batch.unlabeled.views)]
    ends = np.cumsum(sizes)
    weight = random.uniform(0.5, 1, ends[-1])
    partner = random.permutation(ends[-1]).astype(np.int32)
    return Mixing(*(tuple(np.split(whole, ends[:-1])) for whole in (weight, partner)))


def numpy_mix(parts, mixing):
    """The mixed pool, cut as it was."""
    pool, weight, partner = map(np.concatenate, (parts, *mixing))
    own = weight.reshape(-1, *[1] * (pool.ndim - 1))
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return np.split(own * pool + (1 - own) * pool[partner], ends)
