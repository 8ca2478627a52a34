"""The suffix of a file chooses its exporter; the tests of the command line read what it wrote."""

import pytest
from helpers import SIDE, TinyNetwork

from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.weights.export import EXPORTERS, check_export, export
from jaxmatch.weights.trained import Trained

TRAINED = Trained(
    variables={"params": {}, "batch_stats": {}},
    algorithm=FixMatch(),
    network=make_network(TinyNetwork()),
    classes=("cat", "dog"),
    image_shape=(SIDE, SIDE, 3),
    mean=(0.5,),
    std=(0.5,),
)


def test_a_new_format_is_a_line_of_the_table(tmp_path, monkeypatch):
    def names(path, trained):
        path.write_text(" ".join(trained.classes))
        return "class names"

    monkeypatch.setitem(EXPORTERS, ".names", names)
    assert export(tmp_path / "a.names", TRAINED) == "class names"
    assert (tmp_path / "a.names").read_text() == "cat dog"
    with pytest.raises(InputError, match="exists; remove it"):
        export(tmp_path / "a.names", TRAINED)


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.safetensors or \.npz"):
        check_export(tmp_path / "a.onnx")
    with pytest.raises(InputError, match="can run code"):
        export(tmp_path / "a.pth", TRAINED)
