import jax
import pytest

from jaxmatch.augment.pixels import source as pixels

FORMS = {
    "products": lambda products, gathers, *operands: products(*operands),
    "gathers": lambda products, gathers, *operands: gathers(*operands),
}


@pytest.fixture
def use_form(monkeypatch):
    """A function that makes all augmentation take one form, whatever the platform."""

    def use(name):
        monkeypatch.setattr(pixels, "by_platform", FORMS[name])
        jax.clear_caches()  # of functions that are compiled in the other form

    yield use
    monkeypatch.undo()
    jax.clear_caches()


@pytest.fixture
def products(use_form):
    """All augmentation is computed as on a TPU."""
    use_form("products")
