"""The workflow on GitHub runs what ``.ci/run`` and the README say, on all supported versions."""

import re
import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
JOBS = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
(SET_UP,) = re.findall(r"^python3 -m venv .+\[test\].+$", (ROOT / "README.md").read_text(), re.M)


def commands(job):
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def test_the_readmes_command_is_that_of_continuous_integration():
    assert SET_UP in (ROOT / ".ci" / "run").read_text()
    assert SET_UP in (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    assert commands("pinned") == [".ci/run"]


def test_other_versions_run_the_same_command():
    (command,) = commands("versions")
    assert command == SET_UP.replace("-c constraints.txt", '"${{ matrix.jax }}"')
    matrix = JOBS["versions"]["strategy"]["matrix"]
    assert f">={matrix['python'][0]}" == PROJECT["requires-python"]
    (jax,) = (each for each in PROJECT["dependencies"] if re.match("jax[^a-z]", each))
    assert matrix["jax"] == [f"{jax.replace('>=', '==')}.0", jax]


def test_every_room_has_its_slow_tests_run():
    install, test = commands("slow")
    assert SET_UP.startswith(install.replace("[test,onnx,tutorials]", "[test]"))
    assert SET_UP.partition(".venv/bin/python ")[2] in test
    rooms = " ".join(JOBS["slow"]["strategy"]["matrix"]["room"]).split()
    folders = {file.parent for file in (ROOT / "tests").rglob("test_*.py")}
    assert {*rooms} == {
        "tests/test_*.py" if folder.name == "tests" else f"tests/{folder.name}"
        for folder in folders
    }


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda f: f.name)
def test_forms_and_workflows_can_be_read(file):
    found = yaml.safe_load(file.read_text())
    if file.parent.name == "ISSUE_TEMPLATE" and file.stem != "config":
        assert {"name", "description", "body"} <= found.keys()
        fields = [field for field in found["body"] if field["type"] != "markdown"]
        assert all({"id", "attributes"} <= field.keys() for field in fields)
