"""The examples in the docstrings give what they say, and every public function has one."""

import doctest
import importlib
import inspect
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxmatch import functional
from jaxmatch.functional.losses import cross_entropy
from jaxmatch.functional.memory import make_bank, write

MODULES = [
    importlib.import_module(f"{functional.__name__}.{found.name}")
    for found in pkgutil.iter_modules(functional.__path__)
]
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


class Rounded(doctest.OutputChecker):
    """Takes numbers that are equal to two decimals, whatever the spaces around them."""

    def check_output(self, want, got, _):
        words = ["".join(NUMBER.sub("#", text).split()) for text in (want, got)]
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in (want, got)]
        return words[0] == words[1] and np.allclose(*numbers, rtol=0, atol=0.006)


def name_of(module):
    return module.__name__.split(".")[-1]


def examples(module):
    """The examples of each public function of a module."""
    found = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and not inspect.isclass(value)
        and getattr(value, "__module__", "") == module.__name__
    }
    assert found
    finder = doctest.DocTestFinder(recurse=False)
    for name, function in found.items():
        (example,) = finder.find(
            function, name, module, globs={**vars(module), "jax": jax, "jnp": jnp}
        )
        assert example.examples, f"{module.__name__}.{name} has no example"
        yield example


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_public_function_has_an_example(module):
    assert list(examples(module))


# Their examples compile for seconds; tests of their own hold the same functions.
LONG = {
    *("losses", "mixup", "clustering", "propagation"),
    *("thresholds", "adversarial", "memory", "alignment", "graphs", "similarity", "diagnostics"),
}


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(module, marks=pytest.mark.slow if name_of(module) in LONG else ())
        for module in MODULES
    ],
    ids=name_of,
)
def test_examples(module):
    runner = doctest.DocTestRunner(Rounded())
    for example in examples(module):
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0


def test_a_wrong_example_is_noticed():
    right = Rounded().check_output("[0.5 1.]", "[0.500001 1.  ]", 0)
    wrong = Rounded().check_output("[0.5 1.]", "[0.51 1.]", 0)
    assert (right, wrong) == (True, False)


def test_shapes_and_dtypes_are_checked_in_the_tests():
    logits = jnp.zeros((3, 4))
    assert cross_entropy(logits, jnp.zeros(3, int)).shape == (3,)
    with pytest.raises(TypeCheckError, match="target"):
        cross_entropy(logits, jnp.zeros(2, int))
    with pytest.raises(TypeCheckError, match="logits"):
        cross_entropy(logits.astype(int), jnp.zeros(3, int))
    bank, index = make_bank([0, 1], width=2), jnp.zeros(3, int)
    with pytest.raises(TypeCheckError, match="embeddings"):
        write(bank, index, jnp.zeros((2, 2)), index)
