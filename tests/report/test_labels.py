"""Names of groups of runs."""

from jaxmatch.report.labels import labels_of


def test_groups_that_three_settings_do_not_tell_apart_are_numbered():
    usual = {"algorithm.name": "fixmatch", "data.name": "digits", "data.labels": "40"}
    keys = ("optim.a", "optim.b", "optim.c", "optim.d")
    runs = [usual | dict.fromkeys(keys[:3], 1) | {"optim.d": value} for value in range(3)]
    runs.append(usual | dict.fromkeys(keys[:3], 2) | {"optim.d": 0})
    found = labels_of(["fixmatch"] * 4, runs)
    assert found[:3] == ["fixmatch, a=1, b=1, c=1" + end for end in ("", " (2)", " (3)")]
    assert len(set(found)) == 4
