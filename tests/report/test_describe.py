"""Describing a configuration: counts that match a real state, without compiling anything."""

import jax
import numpy as np
import pytest
from tiny_runs import configuration

from jaxmatch.errors import InputError
from jaxmatch.program import Program
from jaxmatch.record import run_data
from jaxmatch.report.describe import describe


def test_counts_match_a_real_state(data):
    config = configuration(data)
    found = describe(config)
    state = jax.jit(Program.build(config, run_data.load_new(config).facts()).init)()
    leaves = jax.tree.leaves(state.params)
    assert found["parameters"] == sum(leaf.size for leaf in leaves)
    assert sorted(map(tuple, found["shapes"].values())) == sorted(leaf.shape for leaf in leaves)
    assert found["shapes"]["stem/kernel"] == [3, 3, 3, 16]
    size = lambda tree: sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    for name in ("params", "stats", "teacher", "optimizer", "memory", "policy"):
        assert found["bytes"][name] == size(getattr(state, name)), name
    assert found["bytes"]["images"] == (16 + 64) * (8 * 8 * 3 + 4)
    assert found["batch"] == {"labeled": 8, "unlabeled": 16}
    assert found["devices"] == 4


def test_arithmetic_grows_with_the_batch_and_nothing_is_compiled(data):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    one, two = (
        describe(configuration(data, method="pseudo_label", data__batch_size=size))
        for size in (8, 16)
    )
    convolution = 2 * (3 * 3 * 3) * 16 * 8 * 8  # of one image, forward
    assert one["operations_per_step"] > 2 * 24 * convolution
    assert two["operations_per_step"] == pytest.approx(2 * one["operations_per_step"], rel=0.2)
    assert compiled == []


def test_bad_input_is_refused(data):
    with pytest.raises(InputError, match="steps=0"):
        describe(configuration(data, steps=0))
