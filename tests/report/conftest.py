"""What the tests of pages share."""

import io

import pytest
from PIL import Image

from jaxmatch.record import curves


@pytest.fixture
def undrawn(monkeypatch):
    """Pages whose text alone matters: their curves, which take a second, are one pixel."""
    picture = io.BytesIO()
    Image.new("RGB", (1, 1)).save(picture, "PNG")
    for name in ("comparison", "losses"):
        monkeypatch.setattr(curves, name, lambda *_, **__: picture.getvalue())
