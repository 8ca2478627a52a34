"""Whole runs of Vision Transformers: without BatchNorm, with random numbers in training."""

import pytest
from helpers import assert_bitwise, assert_close
from tiny_runs import OVERRIDES, PERIOD, state_of, without_extras

from jaxmatch import train
from jaxmatch.config.flags import from_flags
from jaxmatch.training import run, together

SMALL = {"model.name": "vit", "model.width": 16, "model.depth": 2, "model.heads": 2}
SETTINGS = {
    **{key: value for key, value in OVERRIDES.items() if not key.startswith("model.")},
    **SMALL,
    "steps": 2 * PERIOD,
    "devices": 1,
    "model.patch": 4,
    "model.drop_path": 0.5,
    "optim.learning_rate": 0.3,
    "optim.layer_decay": 0.7,
}
# Four times the batch in the time of a test; without views of other images ViTs learn quickest.
DIGITS = {
    **{key: value for key, value in SMALL.items() if key != "model.width"},
    **{"steps": 200, "steps_per_call": 20, "eval_every": 200, "save_every": 200, "log_every": 100},
    **{"data.image_size": 8, "data.batch_size": 64, "views.weak.pad": 0, "ema.decay": 0.9},
    **{"model.patch": 2, "model.width": 32, "model.pool": "average", "model.drop_path": 0.1},
    **{"optim.name": "adamw", "optim.learning_rate": 0.01, "optim.warmup_steps": 10},
}


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


def configuration(recipe, settings):
    return from_flags(recipe, [f"--config.{key}={value}" for key, value in settings.items()])[0]


def tiny(data, **overrides):
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    return configuration(f"pseudo_label:npz:{data},labels=16", SETTINGS | changed)


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """A run on one device; to be read, not changed."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train(tiny(data), folder)
    return folder


@pytest.mark.slow
def test_a_transformer_learns_digits(tmp_path):
    summary = train(configuration("supervised:digits,labels=400", DIGITS), tmp_path / "run")
    assert summary["teacher"]["last"] > 0.6


@pytest.mark.slow
def test_a_crashed_run_continues_bitwise(data, one, tmp_path, monkeypatch):
    evaluate, seen = run.Run.evaluate, []

    def crash(self, *position):
        seen.append(None)
        if len(seen) == 2:
            raise ZeroDivisionError
        return evaluate(self, *position)

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "evaluate", crash)
        with pytest.raises(ZeroDivisionError):
            train(tiny(data), tmp_path / "run")
    train(tiny(data), tmp_path / "run")
    assert_bitwise(state_of(tmp_path / "run"), state_of(one))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"devices": 2},
        {"microbatches": 2},
        {"remat": True},
        {"forward": "separate"},
    ],
    ids=str,
)
def test_how_the_steps_are_computed_changes_rounding_only(data, one, tmp_path, options):
    train(tiny(data, **options), tmp_path / "run")
    assert_close(state_of(tmp_path / "run").teacher, state_of(one).teacher, 1e-3)


@pytest.mark.slow
def test_runs_together_equal_separate_ones(data, one, tmp_path, monkeypatch):
    monkeypatch.setattr(together, "on_cpu", lambda mesh: False)
    together.train([(tiny(data, seed=seed), tmp_path / str(seed)) for seed in (0, 1)])
    first, second = (state_of(tmp_path / str(seed)) for seed in (0, 1))
    assert_close(first.teacher, state_of(one).teacher, 1e-3)
    with pytest.raises(AssertionError):
        assert_close(first.params, second.params, 1e-2)


@pytest.mark.slow
def test_drop_path_makes_a_difference(data, one, tmp_path):
    train(tiny(data, model__drop_path=0.0), tmp_path / "run")
    with pytest.raises(AssertionError):
        assert_close(state_of(tmp_path / "run").teacher, state_of(one).teacher, 1e-2)
