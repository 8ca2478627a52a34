"""The rule on directions: a room imports only rooms to its left, and no import runs in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxmatch"
# From left to right. Arrays know no settings, methods know no devices, devices know no methods.
ROOMS = [
    "types",
    "errors",
    "random",
    "settings",
    "optim",
    "functional",
    "step",
    "runtime",
    "models",
    "data",
    "weights",
    "algorithms",
    "augment",
    "config",
    "program",
    "record",
    "evaluation",
    "report",
    "training",
    "cli",
]
FLAT = 8  # modules that lie beside the rooms, at most


def modules(package: Path) -> dict[str, Path]:
    """The files of a package by the dotted name that others import them by."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = [package.name, *file.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ``known`` that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known.keys()


def room(module: str) -> str:
    return module.split(".")[1]


def backward(package: Path, rooms: list[str]) -> list[str]:
    """The arrows that run from a room to one at its right, as "importer -> imported"."""
    known = modules(package)
    wrong = []
    for name, file in known.items():
        if name == package.name:  # its names are imported when they are asked for
            continue
        for other in sorted(imports(file, known) - {package.name}):
            if rooms.index(room(other)) > rooms.index(room(name)):
                there = known[other].relative_to(package.parent)
                wrong.append(f"{file.relative_to(package.parent)} -> {there}")
    return wrong


def circle(package: Path) -> list[str]:
    """The files of a circle of imports, or none."""
    known = modules(package)
    graph = {name: imports(file, known) - {name} for name, file in known.items()}
    graph[package.name] = set()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(known[name].relative_to(package.parent)) for name in error.args[1]]
    return []


def test_a_room_imports_only_rooms_to_its_left():
    assert not backward(PACKAGE, ROOMS)


def test_no_import_runs_in_a_circle():
    assert not circle(PACKAGE)


def test_every_module_has_a_room_and_every_room_says_what_belongs_there():
    known = modules(PACKAGE)
    assert {room(name) for name in known if name != PACKAGE.name} == set(ROOMS)
    assert len(list(PACKAGE.glob("*.py"))) <= FLAT
    for folder in {file.parent for file in known.values()}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert text, folder


@pytest.mark.parametrize(
    ("left", "right", "wrong", "round"),
    [
        ("", "from a.left import x", [], 0),
        ("from a.right import two", "", ["a/left/one.py -> a/right/two.py"], 0),
        ("def late():\n    import a.right.two", "", ["a/left/one.py -> a/right/two.py"], 0),
        (
            "from a.right.two import x",
            "from a.left import one",
            ["a/left/one.py -> a/right/two.py"],
            3,
        ),
    ],
)
def test_the_rule_is_noticed_when_it_is_broken(tmp_path, left, right, wrong, round):
    package = tmp_path / "a"
    for folder, name, text in (("left", "one", left), ("right", "two", right)):
        (package / folder).mkdir(parents=True)
        (package / folder / "__init__.py").touch()
        (package / folder / f"{name}.py").write_text(text)
    (package / "__init__.py").write_text("import a.right.two")
    assert backward(package, ["left", "right"]) == wrong
    assert len(circle(package)) == round
