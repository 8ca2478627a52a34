"""What a step keeps in memory: fewer images with gradient, or less of each."""

import pytest

from experiments.throughput.memory import measure


@pytest.mark.slow
def test_what_settings_save():
    small = ["model.depth=10", "model.width=1", "data.batch_size=8", "data.ratio=3", "devices=1"]
    found = {
        setting: measure([f"--config.{value}" for value in (*small, setting)])
        for setting in ("remat=False", "remat=True", "forward=split", "microbatches=4")
    }
    passed, kept, plan = found["remat=False"]
    assert passed == 8 + 2 * 24
    assert found["forward=split"][0] == 8 + 24
    assert found["remat=True"][1] < 0.4 * kept
    assert found["microbatches=4"][1] < 0.01 * kept
    assert found["microbatches=4"][2] < 0.5 * plan
