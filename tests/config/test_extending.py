"""Which runs can go on for more steps: those whose earlier steps do not depend on the length."""

import pytest

from jaxmatch.algorithms import ALGORITHMS
from jaxmatch.config.extending import dependent, refusal
from jaxmatch.config.flags import from_flags, named_configs
from jaxmatch.config.saved import differences, to_json
from jaxmatch.data.facts import Facts
from jaxmatch.program import Program

TINY = (
    *("model.depth=4", "model.width=1", "data.batch_size=2", "data.ratio=1", "steps_per_call=1"),
    *("log_every=1", "eval_every=1", "save_every=1"),
)
slow = pytest.mark.slow
FACTS = Facts(classes=("a", "b"), image_shape=(32, 32, 3), labels=(0, 1), unlabeled=600)


def traced(config):
    program = Program.build(config, FACTS).with_stand_ins()
    return str(program.trace(1).jaxpr)


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=() if name == "fixmatch" else slow) for name in sorted(ALGORITHMS)],
)
def test_the_listed_settings_are_all_on_which_a_step_depends_with_the_length(method):
    """The traced steps of a short and of a long run are equal exactly if nothing is listed."""
    recipe = method if method in named_configs_here() else "fixmatch"
    flags = [f"--config.{each}" for each in TINY]
    if "refresh_steps" in from_flags(f"{recipe}:mnist5k", [])[0].algorithm:
        flags.append("--config.algorithm.refresh_steps=1")
    if method == "swav":  # its batch must fill the prototypes
        flags.append("--config.algorithm.prototypes=2")
    for schedule in ("constant", "cosine"):
        found = [
            from_flags(
                f"{recipe}:mnist5k",
                [*flags, f"--config.optim.schedule={schedule}", f"--config.steps={steps}"],
            )[0]
            for steps in (400, 800)
        ]
        same = traced(found[0]) == traced(found[1])
        assert same == (not dependent(to_json(found[0]))), dependent(to_json(found[0]))


def named_configs_here():
    from pathlib import Path

    import jaxmatch

    return named_configs(Path(jaxmatch.__file__).parent)


def reason(*overrides, to=600):
    old, new = (
        to_json(from_flags("fixmatch:mnist5k", [*overrides, f"--config.steps={steps}"])[0])
        for steps in (300, to)
    )
    return refusal(old, new, differences(old, new))


def test_a_run_at_a_constant_rate_can_be_extended():
    assert reason("--config.optim.schedule=constant") is None
    masked = reason("--config.optim.schedule=constant", "--config.unequal.abc=1.0")
    assert "because unequal.abc=1.0" in masked


def test_a_run_along_a_cosine_cannot_and_the_reason_is_named():
    assert (
        "steps: 300 -> 600, and cannot be extended because optim.schedule=cosine_7_16" in reason()
    )


def test_a_run_cannot_be_shortened():
    assert reason("--config.optim.schedule=constant", to=150) == "more steps (steps: 300 -> 150)"
