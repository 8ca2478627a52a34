"""Plain PyTorch runs of MNIST-5k, which other programs are compared with."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def runs():
    pytest.importorskip("torch")
    from experiments.mnist5k import torch_runs

    return torch_runs


def test_each_run_is_recorded_once(runs, tmp_path, capsys):
    file = tmp_path / "runs.json"
    words = ["--config=fixmatch:mnist5k,labels=10,seed=1", "--config.steps=2", f"-o{file}"]
    runs.main([*words, "--seeds=1"])
    runs.main([*words, "--seeds=2"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    ((key, found),) = json.loads(file.read_text()).items()
    assert key == "fixmatch,labels=10,seed=1,steps=2"
    assert found.keys() == {"0", "1"}
    assert all(0 <= run["accuracy"] <= 1 for run in found.values())


def test_initial_kernels_have_the_variance_of_he(runs):
    from jaxmatch.config.flags import from_flags
    from jaxmatch.config.saved import to_json

    model = to_json(from_flags("supervised:mnist5k,labels=10", [])[0])["model"]
    kernel = runs.drawn(model, 10)["block3.layer.0.conv1.weight"]
    outputs, _, height, width = kernel.shape
    expected = np.sqrt(2 / (1 + 0.01**2) / (outputs * height * width))
    assert abs(kernel.std() / expected - 1) < 0.02
