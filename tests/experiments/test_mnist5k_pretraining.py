"""The sweep of pre-trainings names runs that exist by then, and its table says what was not run."""

import pytest

from experiments.mnist5k_pretraining import results, sweep
from jaxmatch.config.flags import from_flags


@pytest.mark.slow
def test_every_run_starts_from_one_that_comes_before():
    done = set()
    for point in sweep.sweep():
        overrides = {key: value for key, value in point.items() if key not in ("config", "workdir")}
        flags = [f"--config.{key}={value}" for key, value in overrides.items()]
        config, _ = from_flags(str(point["config"]), flags)
        if config.init_from:
            assert config.init_from in done
        else:
            assert config.steps * config.data.batch_size == 199_680
        done.add(str(sweep.RUNS / str(point["workdir"])))
    assert len(done) == len(list(sweep.sweep()))


def test_table_of_some_runs():
    found = {
        "untrained": {"0": {"knn": 0.5, "linear": 0.25}},
        "byol": {
            "0": {"knn": 0.9, "linear": 0.8, "finetune10": 0.7, "spread": 0.5},
            "1": {"knn": 0.8, "linear": 0.8, "spread": 0.25},
        },
    }
    rows = {line.split("|")[1].strip(): line for line in results.table(found).splitlines()}
    assert rows["untrained"].startswith("| untrained | 50.0 | 25.0 | ")
    assert "85.0 ± 7.1 (90.0 / 80.0) | 80.0 ± 0.0 (80.0 / 80.0)" in rows["byol"]
    assert rows["byol"].endswith("| not run | 70.0 | not run | 0.50 / 0.25 |")
    assert "not run | not run" in rows["swav"]
