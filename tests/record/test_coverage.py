"""Coverage that stays at 0: when a run says so, and what it advises."""

import pytest
from tiny_runs import configuration

from jaxmatch.record.coverage import KEY, Unused, advice, at_end, has_threshold, spans

METHODS = ("fixmatch", "flexmatch", "simmatch", "comatch", "uda", "adamatch", "pseudo_label")


def lines(*values, every=10):
    return [{"step": every * (n + 1), KEY: value} for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "steps", "expected"),
    [
        ((), 100, None),
        ((0.0, 0.0), 100, None),  # too few lines
        ((0.0, 0.0, 0.0), 100, Unused(0, 30)),
        ((0.0, 0.0, 0.0), 300, Unused(0, 30)),
        ((0.0, 0.0, 0.0), 301, None),  # less than a tenth of the run
        ((0.0, 0.2, 0.0, 0.0, 0.0), 100, Unused(20, 50)),
        ((0.0, 0.0, 0.0, 1e-6), 100, None),
        ((0.0,) * 30, 1000, Unused(0, 300)),
    ],
)
def test_a_tenth_of_the_run_and_three_lines(values, steps, expected):
    assert at_end(lines(*values), steps) == expected


def test_lines_of_evaluations_do_not_count():
    mixed = [*lines(0.0, 0.0), {"step": 25, "test/teacher/accuracy": 0.5}]
    assert at_end(mixed, 100) is None
    assert at_end([{"step": 10, "loss/total": 1.0}] * 5, 100) is None


def test_it_is_known_whether_it_was_told_before():
    told = [bool(span) for span in spans(lines(0.0, 0.0, 0.0, 0.5, 0.0), 100)]
    assert told == [False, False, True, False, False]


@pytest.mark.parametrize("method", METHODS)
def test_methods_with_a_threshold(method):
    assert has_threshold(configuration("digits", method=method))


@pytest.mark.parametrize("method", ["supervised", "softmatch", "freematch", "remixmatch", "dash"])
def test_methods_without_one(method):
    assert not has_threshold(configuration("digits", method=method))


def test_a_threshold_that_is_turned_off_is_none():
    assert not has_threshold(configuration("digits", algorithm__threshold=1.5))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "lower algorithm.threshold=0.95, or begin from a pretrained network"),
        ({"init_from": "x"}, "by classifier_init=logistic, or lower algorithm.threshold=0.95"),
        ({"init_from": "x", "classifier_init": "means"}, "by classifier_init=logistic, or lower"),
        (
            {"init_from": "x", "classifier_init": "logistic"},
            "by a smaller classifier_temperature, or lower",
        ),
    ],
)
def test_the_advice_fits_the_run(options, expected):
    config = configuration("digits", algorithm__threshold=0.95, **options)
    text = advice(config, Unused(20, 50))
    assert text.startswith("step 50: since step 20 no unlabeled image has passed the threshold")
    assert expected in text
