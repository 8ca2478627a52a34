"""Facts of a run's data: what config.json keeps of them is what is read again."""

import json

import pytest

from jaxmatch.data.facts import Facts

FACTS = Facts(classes=("a", "b"), image_shape=(8, 6, 3), labels=(0, 1, 1), unlabeled=64)


@pytest.mark.parametrize("frozen", [{}, {"teacher": "0f"}])
def test_what_is_written_is_read(frozen):
    facts = Facts.from_json({**FACTS.to_json(), "frozen": frozen})
    assert Facts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert facts.frozen == frozen
    assert ("frozen" in facts.to_json()) == bool(frozen)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", None),
        ("classes", 3),
        ("labels", "0"),
        ("unlabeled", "many"),
        ("image_shape", 8),
        ("frozen", ["teacher"]),
    ],
)
def test_what_is_missing_is_named(name, value):
    with pytest.raises(ValueError, match=f"facts.{name} is "):
        Facts.from_json({**FACTS.to_json(), name: value})


def test_a_shape_of_other_than_three_sides_is_refused():
    with pytest.raises(ValueError, match="unpack"):
        Facts.from_json({**FACTS.to_json(), "image_shape": [8, 6]})
