"""The parity command passes on the recorded cases, and fails when the library is wrong."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.parity.__main__ import main
from experiments.parity.rows import relative_error
from jaxmatch.algorithms import _consistency, pseudo_label
from jaxmatch.functional import losses

GOLDEN = Path(__file__).parents[1] / "golden"
QUICK = (
    "fullysupervised_adamw_layerdecay",
    "pseudolabel",
    "net_wrn_28_2",
    "fn_cosine_7_16",
    "fn_ema_hook",
)
SLOW = (
    "fullysupervised",
    "fullysupervised_wrnvar",
    "fullysupervised_clip",
    "fullysupervised_warmup_lr",
    "fixmatch_hard",
    "fixmatch_hard_nocat",
    "fixmatch_soft_T05_sharpened",
    "net_wrn_28_8",
    "net_comatch_wrn_28_2",
    "net_simmatch_resnet50",
)


def command(*arguments):
    return main([str(argument) for argument in arguments])


def golden(name):
    return GOLDEN / f"{name}.npz"


def tampered(folder, name, change):
    """A copy of a case with its arrays changed."""
    with np.load(golden(name)) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz"


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_the_library_equals_the_reference(name, capsys):
    assert command(golden(name)) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert all(" ok   library" in line for line in lines[:-1])
    assert lines[-1].startswith("1 cases: replayed")
    assert lines[-1].endswith("failed 0, unknown 0 quantities")


def test_float64_does_not_leak():
    command(golden("fn_ema_hook"))
    assert jnp.ones(1).dtype == jnp.float32
    assert not jax.config.jax_enable_x64


@pytest.mark.slow
def test_a_wrong_supervised_loss_fails(monkeypatch, capsys):
    wrong = lambda logits, target: 1.0001 * losses.cross_entropy(logits, target)  # noqa: E731
    monkeypatch.setattr(_consistency, "cross_entropy", wrong)
    assert command(golden("fixmatch_soft_T05_sharpened")) == 1
    failed = [line.split()[1] for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert {"out/sup_loss", "out/unsup_loss", "grad/0", "final/parameters"} <= set(failed)
    assert "out/mask" not in failed


@pytest.mark.slow
def test_a_wrong_ramp_fails(monkeypatch, capsys):
    monkeypatch.setattr(pseudo_label, "linear_ramp", lambda step, steps, share: jnp.ones(()))
    assert command(golden("pseudolabel")) == 1
    failed = [line.split()[1] for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert {"out/ramp", "out/total_loss", "final/parameters"} <= set(failed)


@pytest.mark.parametrize(("tolerance", "code"), [("1e-4", 0), ("1e-8", 1)])
def test_a_tampered_number_fails_unless_tolerated(tmp_path, tolerance, code):
    def change(arrays):
        arrays["out/1/factor"] = arrays["out/1/factor"] * (1 + 1e-6)

    path = tampered(tmp_path, "fn_cosine_7_16", change)
    assert command(path, "--tolerance", tolerance) == code


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (
            "fullysupervised",
            lambda a: a.update(
                meta=str(a["meta"]).replace(
                    '"algorithm": "fullysupervised"', '"algorithm": "newmatch"'
                )
            ),
            "algorithm newmatch is not in the library",
        ),
        (
            "fn_cosine_7_16",
            lambda a: a.update({"out/1/slope": np.ones(3)}),
            "the replay knows no such quantity",
        ),
        ("fn_ema_hook", lambda a: a.pop("meta"), "no meta"),
        ("fn_ema_hook", lambda a: a.pop("in/decay"), "the file has no 'in/decay'"),
    ],
)
def test_what_cannot_be_replayed_is_said(tmp_path, capsys, name, change, reason):
    assert command(tampered(tmp_path, name, change)) == 2
    assert reason in capsys.readouterr().out


def test_a_case_of_an_unknown_kind_is_said_whatever_its_source_looks_like(tmp_path, capsys):
    def change(arrays):
        meta = json.loads(str(arrays["meta"])) | {"kind": "new", "source": ["one", "two"]}
        arrays["meta"] = json.dumps(meta)

    assert command(tampered(tmp_path, "fn_ema_hook", change)) == 2
    assert "unknown" in capsys.readouterr().out


def test_views_that_no_replay_reads_are_named(tmp_path, capsys):
    with np.load(GOLDEN / "augment" / "weak.npz") as file:
        arrays = {**file, "y48": file["y32"], "note48": np.zeros(1)}  # no images of 48 pixels
    np.savez(tmp_path / "weak.npz", **arrays)
    shutil.copy(GOLDEN / "augment" / "inputs.npz", tmp_path)
    assert main([str(tmp_path)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if "unknown:" in line] == ["y48"]


def test_unknown_wins_over_failed(tmp_path):
    def change(arrays):
        arrays["out/1/factor"] = arrays["out/1/factor"] + 1
        arrays["out/1/slope"] = np.ones(3)

    assert command(tampered(tmp_path, "fn_cosine_7_16", change)) == 2


def test_a_folder_is_searched_and_filtered_by_family(tmp_path, capsys):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for name in ("fn_ema_hook", "fn_cosine_7_16", "fixmatch_hard"):
        (inner / f"{name}.npz").symlink_to(golden(name))
    np.savez(inner / "inputs.npz", x32=np.zeros(3))
    assert command(tmp_path, "--family", "functions") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 cases:")
    assert command(tmp_path, "--family", "fn_ema") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 cases:")
    assert command(tmp_path, "--family", "remixmatch") == 2


def test_a_missing_or_damaged_file_is_said(tmp_path, capsys):
    assert command(tmp_path / "nothing.npz") == 2
    assert "nothing" in capsys.readouterr().out
    (tmp_path / "damaged.npz").write_bytes(golden("fn_ema_hook").read_bytes()[:500])
    assert command(tmp_path / "damaged.npz") == 2
    assert "not a readable reference file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ours", "theirs", "error"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([1e-9], [0.0], 1e-3),
        ([np.nan], [1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
        ([True, False], [1, 0], 0.0),
    ],
)
def test_relative_error(ours, theirs, error):
    assert relative_error(np.array(ours), np.array(theirs)) == pytest.approx(error)
