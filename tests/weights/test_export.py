"""The suffix of a file, or a name, chooses its format; other tests read what was written."""

import pytest
from helpers import SIDE, TinyNetwork

from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.errors import InputError
from jaxmatch.models.network import make_network
from jaxmatch.weights.export import FORMATS, Format, check_export, export
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

    monkeypatch.setitem(FORMATS, "names", Format(names))
    assert export(tmp_path / "a.names", TRAINED) == "class names"
    assert (tmp_path / "a.names").read_text() == "cat dog"
    with pytest.raises(InputError, match="exists; remove it"):
        export(tmp_path / "a.names", TRAINED)


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.stablehlo or \.onnx or \.safetensors or"):
        check_export(tmp_path / "a.onnxx")
    with pytest.raises(InputError, match="can run code"):
        export(tmp_path / "a.pth", TRAINED)
    with pytest.raises(InputError, match="unknown format 'onnxx'; did you mean 'onnx'"):
        check_export(tmp_path / "a.any", "onnxx")


@pytest.mark.parametrize("name", ["a", "a.pth"])
def test_a_program_takes_any_suffix_and_weights_their_own(tmp_path, name):
    """A run takes weights from a file by its suffix; a program is known by its content."""
    assert check_export(tmp_path / name, "stablehlo") == "stablehlo"
    for kind in ("npz", "safetensors"):
        with pytest.raises(InputError, match=r"must end in \.|can run code"):
            check_export(tmp_path / name, kind)
        assert check_export(tmp_path / f"b.{kind}", kind) == kind
    with pytest.raises(InputError, match=r"must end in \.npz"):
        check_export(tmp_path / "b.safetensors", "npz")


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "names", Format(lambda *_: "", package="absent_a", extra="onnx"))
    with pytest.raises(InputError, match=r'absent_a: pip install "jaxmatch\[onnx\]"'):
        check_export(tmp_path / "a.names")
    assert FORMATS["onnx"].package == "jax2onnx"


@pytest.mark.parametrize("suffix", ["NPZ", "SafeTensors", "StableHLO"])
def test_a_suffix_may_have_capitals(tmp_path, suffix):
    assert check_export(tmp_path / f"a.{suffix}") == suffix.lower()
