"""What configs say to expect is what the recorded results say."""

import ast
from pathlib import Path

import pytest

from experiments.mnist5k.expected import sentences

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(("config", "sentence"), sentences().items())
def test_a_docstring_says_what_was_measured(config, sentence):
    docstring = ast.get_docstring(ast.parse((CONFIGS / f"{config}.py").read_text())) or ""
    assert sentence in " ".join(docstring.split())
