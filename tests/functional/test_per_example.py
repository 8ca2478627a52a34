"""Rows by index: reading, repeated indices, and a pool too large for one device."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmatch.errors import InputError
from jaxmatch.functional.memory import MULTIPLE
from jaxmatch.functional.per_example import make_rows, read, write
from jaxmatch.runtime import mesh as parallel
from jaxmatch.runtime.mesh import check_memory, make_mesh, over_batch, replicated, state_shardings


def rows(count=20):
    return make_rows(count, prediction=jnp.zeros(3), visits=jnp.int32(-1))


def test_rows_are_padded_and_start_alike():
    memory = rows()
    assert {name: leaf.shape for name, leaf in memory.rows.items()} == {
        "prediction": (MULTIPLE, 3),
        "visits": (MULTIPLE,),
    }
    assert memory.rows["visits"].dtype == jnp.int32
    assert (memory.rows["visits"] == -1).all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=4, max_size=4))
def test_of_repeated_indices_the_last_wins(index):
    values = np.arange(4, dtype=np.int32)
    written = write(make_rows(6, label=jnp.int32(-1)), jnp.asarray(index), {"label": values})
    expected = np.full(6, -1)
    for row, value in zip(index, values, strict=True):
        expected[row] = value
    np.testing.assert_array_equal(written.rows["label"][:6], expected)
    found = read(written, jnp.asarray(index))["label"]
    np.testing.assert_array_equal(found, expected[index])


def test_no_gradient_passes_into_the_memory():
    def loss(values):
        memory = write(rows(), jnp.arange(2), {"prediction": values, "visits": jnp.ones(2)})
        return read(memory, jnp.arange(2))["prediction"].sum()

    assert not jax.grad(loss)(jnp.ones((2, 3))).any()


def test_without_indices_nothing_can_be_remembered():
    with pytest.raises(InputError, match=r"unlabeled\.index"):
        read(rows(), None)
    with pytest.raises(InputError, match=r"unlabeled\.index"):
        write(rows(), None, {"prediction": jnp.zeros((1, 3)), "visits": jnp.zeros(1)})


def compiled(mesh, memory):
    places = state_shardings(memory, mesh)
    batch = over_batch(mesh)

    def step(memory, index, values):
        old = read(memory, index)
        new = {"prediction": old["prediction"] + values, "visits": old["visits"] + 1}
        return write(memory, index, new), old["prediction"].sum()

    jitted = jax.jit(step, in_shardings=(places, batch, batch), out_shardings=(places, None))
    return jitted, places


def test_a_large_pool_is_spread_and_only_the_batch_is_exchanged(monkeypatch):
    monkeypatch.setattr(parallel, "SPREAD_BYTES", 1000)
    mesh, memory = make_mesh(4, 4), rows()
    step, places = compiled(mesh, memory)
    assert {place.spec for place in jax.tree.leaves(places)} == {over_batch(mesh).spec}

    index = jnp.array([3, 19, 3, 700, 1, 8, 9, 3])
    values = jnp.arange(24.0).reshape(8, 3)
    spread = jax.device_put(memory, places)
    text = step.lower(spread, index, values).compile().as_text()
    sizes = [
        int(np.prod([int(size) for size in shape.split(",") if size]))
        for shape in re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-reduce)", text)
    ]
    assert sizes
    assert max(sizes) <= 24
    assert "all-to-all" not in text

    alone, _ = compiled(make_mesh(1, 4), memory)
    jax.tree.map(
        np.testing.assert_array_equal, step(spread, index, values), alone(memory, index, values)
    )


class Marked(NamedTuple):
    """A memory that the library does not know."""

    table: jax.Array
    split_if_large = True


def test_any_memory_with_the_mark_is_spread(monkeypatch):
    monkeypatch.setattr(parallel, "SPREAD_BYTES", 1000)
    mesh = make_mesh(4, 4)
    places = state_shardings({"marked": Marked(jnp.zeros((8, 100))), "plain": jnp.zeros(800)}, mesh)
    assert places["marked"].table.spec == over_batch(mesh).spec
    assert places["plain"].spec == replicated(mesh).spec


def test_a_small_pool_is_on_every_device():
    mesh = make_mesh(4, 4)
    places = state_shardings({"rows": rows(), "other": jnp.zeros(3)}, mesh)
    assert all(place.is_fully_replicated for place in jax.tree.leaves(places))


def test_a_memory_that_does_not_fit_is_refused_with_its_size():
    mesh = make_mesh(4, 4)
    count = 2**33
    huge = jax.eval_shape(lambda: make_rows(count, prediction=jnp.zeros(1000)))
    with pytest.raises(InputError, match=f"memory {count * 1000 * 4 // 4:,} bytes"):
        check_memory(mesh, {"memory": huge})
