"""The growth of a step: its table, its picture, and a real point."""

import pytest

from experiments.throughput.growth import POWERS, QUANTITIES, measure, plot, table


def made(power):
    return {
        str(value): {"seconds": s, "least": s / 2, "largest": 2 * s, "bytes": 1e6 * value}
        for value in (10, 20, 40)
        for s in (0.01 * value**power,)
    }


def test_the_table_tells_the_power_of_the_growth():
    rows = table({"batch": made(1), "width": made(1.5)}).splitlines()
    assert rows[2] == (
        "| batch | 10 / 20 / 40 | 1.00 / 2.00 / 4.00 | 1.00 | 1 | 10 / 20 / 40 | 1.00 | 1 |"
    )
    assert "| 1.50 | 2 |" in rows[3]


@pytest.mark.slow
def test_every_quantity_has_an_expected_power_and_a_panel():
    assert POWERS.keys() == QUANTITIES.keys()
    assert plot({name: made(1) for name in QUANTITIES}).startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_point_is_a_step_that_ran():
    found = measure({"model.width": 1, "side": 16, "data.batch_size": 2}, calls=2)
    assert 0 < found["least"] <= found["seconds"] <= found["largest"]
    assert found["bytes"] > 0
