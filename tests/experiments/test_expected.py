"""What configs say to expect is what the recorded results say."""

import ast
import json
from pathlib import Path

import pytest

from experiments.mnist5k import cost
from experiments.mnist5k.expected import sentences

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(("config", "sentence"), sentences().items())
def test_a_docstring_says_what_was_measured(config, sentence):
    docstring = ast.get_docstring(ast.parse((CONFIGS / f"{config}.py").read_text())) or ""
    assert sentence in " ".join(docstring.split())


COSTS = json.loads(cost.RECORDED.read_text())


@pytest.mark.parametrize(
    "method",
    [pytest.param(each, marks=() if each == "comatch" else pytest.mark.slow) for each in COSTS],
)
def test_the_recorded_cost_is_that_of_the_program(method):
    assert cost.forward_images(method) == COSTS[method]
