"""The pages of the interface build without a warning (pytest makes warnings errors)."""

import re

import pytest

import jaxmatch
from experiments.api_pages import PACKAGE, write_pages


@pytest.mark.slow
def test_every_module_has_a_page(tmp_path):
    write_pages(tmp_path)
    files = [file for file in PACKAGE.rglob("*.py") if not file.name.startswith("_")]
    for file in files:
        page = tmp_path / "jaxmatch" / file.relative_to(PACKAGE).with_suffix(".html")
        assert page.is_file(), page
    front = (tmp_path / "jaxmatch.html").read_text()
    for name in jaxmatch.__all__:
        assert re.search(rf'id="{name}"|jaxmatch/{name}\.html', front), name
