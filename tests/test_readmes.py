"""READMEs: their links lead somewhere, their commands are real, and those that can run here run."""

import argparse
import ast
import glob
import importlib
import importlib.util
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import build, toy_data
from PIL import Image

from jaxmatch.cli import main as cli
from jaxmatch.cli import sweep
from jaxmatch.cli.words import AND, join_overrides, split_runs
from jaxmatch.config.checks import check_settings
from jaxmatch.config.flags import from_flags
from jaxmatch.config.keys import documented, with_prefix
from jaxmatch.config.own import Circumstances, settle, with_usual_input
from jaxmatch.config.stages import stages_of
from jaxmatch.models.vit import ViT
from jaxmatch.weights.files import write_weights
from jaxmatch.weights.vit_names import to_timm

ROOT = Path(__file__).parents[1]
FOLDERS = (".github", "configs", "experiments", "jaxmatch", "tests")
READMES = [ROOT / "README.md", *sorted(f for each in FOLDERS for f in (ROOT / each).rglob("*.md"))]
RECIPES = sorted((ROOT / "configs").glob("*.py"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`((?:jaxmatch|python -m|pip install) [^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ASSIGNMENT = re.compile(r"[A-Z_]+=")
# What a text has for the reader's own choice, and what the check puts there.
PLACEHOLDERS = {
    "seed=S": "seed=0",
    "NAME:DATA": "fixmatch:mnist5k",
    "METHOD:DATA": "fixmatch:mnist5k",
    "--config=...": "--config=fixmatch:mnist5k",
}
OTHER_PROGRAMS = ("export", "gcloud", "jupyter", "pyright", "ruff", "source", "tar")
OTHER_MODULES = ("pip", "pytest", "venv")
# Commands that no test runs, and what they need.
NEEDS = {
    "tfds:": "a prepared data set",
    "tissuemnist.npz": "a published file",
    "jaxmatch.data.prepare": "TensorFlow and the network",
    "--multihost": "a cluster",
    "--coordinator": "a cluster",
    "pip install": "an environment of its own",
    "source ": "an environment of its own",
    "pytest": "the tests",
    "ruff": "the checks",
    "pyright": "the checks",
    "experiments.gpu": "a GPU",
    "experiments.own_data": "packages of images",
    "elpv0": "packages of images",
    "fashion.npz": "packages of images",
    "experiments.parity": "what tests/parity does",
    "experiments.suggest": "an hour",
    "added_labels": "labels that a person fills in",
    "photos-2": "labels that a person fills in",
    "experiments.throughput": "minutes of a quiet machine",
}
NETWORK = "vit_small_patch16_224.safetensors"  # a file that a README begins from
RUN = ("", "configs", "experiments", "jaxmatch/data", "jaxmatch/runtime")  # folders
SHORT = {
    "steps": 4,
    "steps_per_call": 2,
    "log_every": 2,
    "eval_every": 4,
    "save_every": 4,
    "data.batch_size": 8,
    "optim.warmup_steps": 0,
}


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def fenced(text: str, *languages: str) -> list[str]:
    return [block for language, block in FENCE.findall(text) if language in languages]


def shell_lines(file: Path) -> Iterator[str]:
    """The commands of a README in their order, or those of a recipe's docstring."""
    text = file.read_text()
    if file.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
        text = re.sub(r"^ *(jaxmatch .+)$", r"`\1`", text, flags=re.MULTILINE)
        text = text.replace("``", "`")
    blocks = [(match.start(), match[2]) for match in FENCE.finditer(text) if not match[1]]
    prose = FENCE.sub(lambda match: " " * len(match[0]), text)
    spans = [(match.start(), match[1].replace("\n", " ")) for match in SPAN.finditer(prose)]
    for _, block in sorted(blocks + spans):
        yield from block.replace("\\\n", " ").splitlines()


def commands(line: str) -> list[list[str]]:
    """The words of each command of a line, without comments, variables and redirections."""
    for placeholder, value in PLACEHOLDERS.items():
        line = line.replace(placeholder, value)
    found, last = [[]], ""
    for word in shlex.split(line, comments=True):
        before, last = last, word
        if ">" in (word, before):
            continue
        if word == "&&":
            found.append([])
        elif found[-1] or not ASSIGNMENT.match(word):
            found[-1].append(word)
    return [words for words in found if words and starts_a_program(words[0])]


def starts_a_program(word: str) -> bool:
    """Whether a line of a block is a command, rather than a drawing or a listing."""
    program = Path(word).name
    return program in ("jaxmatch", "pip", "python", "python3", *OTHER_PROGRAMS)


class Parsed(Exception):
    def __init__(self, arguments: argparse.Namespace, rest: list[str]):
        self.arguments, self.rest = arguments, rest


def parse(program: Callable[[], object], words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What a program's parser makes of its words; the program gets no further."""
    known, inside = argparse.ArgumentParser.parse_known_args, []

    def parse_known_args(parser, args=None, namespace=None):
        if inside:  # of a sub-command
            return known(parser, args, namespace)
        inside.append(parser)
        raise Parsed(*known(parser, args, namespace))

    def parse_args(parser, args=None, namespace=None):
        inside.append(parser)
        arguments, rest = known(parser, args, namespace)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        raise Parsed(arguments, rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", ["program", *words])
        try:
            program()
        except Parsed as parsed:
            return parsed.arguments, parsed.rest
        except SystemExit as end:
            raise ValueError(f"the parser refuses it ({end.code})") from end
    raise ValueError("it parses no arguments")


def check(words: list[str]) -> None:
    """Raise an error unless the command exists and takes these words."""
    program = Path(words[0]).name
    if program == "jaxmatch":
        check_jaxmatch(words[1:])
    elif program == "pip" or words[1:3] == ["-m", "pip"]:
        check_extras(words)
    elif program.startswith("python"):
        check_module(words[2], words[3:]) if words[1] == "-m" else check_files(words[1:2])
    for word in words:  # what gcloud runs on the other side
        if word.startswith("--command="):
            for inner in commands(word.removeprefix("--command=")):
                check(inner)


def check_jaxmatch(words: list[str]) -> None:
    first, *others = split_runs(words)
    for each in (first, *(["train", *other] for other in others)):
        if len(each) == 1:  # a mention of the sub-command
            each = [*each, "--help"]
            with pytest.raises(ValueError, match=r"\(0\)"):
                parse(lambda each=each: cli.main(each), each)
            continue
        arguments, rest = parse(lambda each=each: cli.main(each), each)
        if getattr(arguments, "keys", None):
            with_prefix(documented(), arguments.keys)
        check_config(arguments, rest)


def check_config(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Check the configuration that ``--config`` and the overrides name, if they do."""
    if getattr(arguments, "config", None) is None:
        assert not rest, f"unknown arguments {rest}"
        return
    overrides = join_overrides(word for word in rest if not word.startswith("--xla_"))
    if getattr(arguments, "command", "") == "sweep":
        points = sweep.points(
            arguments.config, overrides, seeds=arguments.seeds, base=arguments.workdir
        )
        configs = [point.config for point in points]
    else:
        configs = [from_flags(arguments.config, overrides)[0]]
    for config in configs:
        for stage in stages_of(config).values():
            check_settings(whole(stage))


def whole(config):
    """The configuration as a run has it that has seen its images."""
    return with_usual_input(settle(config, Circumstances(side=300))[0])


def check_module(module: str, words: list[str]) -> None:
    if module in OTHER_MODULES:
        return
    assert importlib.util.find_spec(module), f"there is no module {module}"
    if (ROOT / module.replace(".", "/")).is_dir():
        module += ".__main__"
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as missing:
        if missing.name not in ("torch", "tensorflow"):
            raise
        return
    check_config(*parse(main, words))


def check_extras(words: list[str]) -> None:
    for word in words:
        for extras in re.findall(r"^(?:jaxmatch|\.)\[([\w,-]+)\]$", word):
            assert set(extras.split(",")) <= set(EXTRAS), f"unknown extras {extras}"
    check_files(after for word, after in itertools.pairwise(words) if word == "-c")


def check_files(names) -> None:
    for name in names:
        assert (ROOT / name).is_file(), f"there is no file {name}"


# They sweep over so many runs that reading their settings takes seconds. The recipes' commands are
# read by tests/config/test_configs.py, too.
LONG = {
    ROOT / "experiments" / name / "README.md"
    for name in ("mnist5k", "mnist5k_pretraining", "own_data", "strangers", "unequal")
}


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=pytest.mark.slow if file in {*LONG, *RECIPES} else ())
        for file in (*READMES, *RECIPES)
    ],
    ids=name_of,
)
def test_every_command_is_real(file, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong = []
    for line in shell_lines(file):
        for words in commands(line):
            try:
                check(words)
            except Exception as error:
                told = capsys.readouterr().err.strip().splitlines()[-1:]
                wrong.append(f"{shlex.join(words)}: {error} {' '.join(told)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("jaxmatch train --config=fixmatch:mnist5k,labels=40 --wrokdir=runs/x", "wrokdir"),
        ("jaxmatch train --config=fixmatsch:mnist5k,labels=40", "fixmatch"),
        ("jaxmatch train --config=fixmatch:mnist5k --config.algorithm.treshold=0.9", "threshold"),
        ("jaxmatch train --config=fixmatch:mnist5k --config.algorithm.threshold=3", "threshold"),
        ("jaxmatch evalute --workdir runs/x", "refuses"),
        ("jaxmatch describe --keys algorithmm", "algorithmm"),
        ("jaxmatch sweep --config=experiments/split/sweeep.py", "sweeep"),
        ("python -m experiments.tables cifar10 --lst", "--lst"),
        ("python -m experiments.tabels cifar10", "no module"),
        ('pip install ".[demmo]"', "demmo"),
    ],
)
def test_a_misspelt_command_is_noticed(line, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    (words,) = commands(line)
    with pytest.raises(Exception, match=message):
        check(words)


def slugs(text: str) -> set[str]:
    """The anchors of the headings, as GitHub names them."""
    headings = HEADING.findall(FENCE.sub("", text))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("file", READMES, ids=name_of)
def test_links_and_named_files_exist(file):
    text = file.read_text()
    wrong = []
    for target in LINK.findall(FENCE.sub("", text)):
        if target.startswith(("http:", "https:")):
            continue
        place, _, anchor = target.partition("#")
        there = (file.parent / place).resolve() if place else file
        if not there.exists() or (anchor and anchor not in slugs(there.read_text())):
            wrong.append(target)
    for name in re.findall(r"`((?:configs|experiments|jaxmatch|tests)/[\w/]+\.\w+)`", text):
        if not (ROOT / name).exists() and "agree" not in name:  # the method that CONTRIBUTING adds
            wrong.append(name)
    assert not wrong


def test_the_readme_is_short_and_leads_to_the_twenty_questions():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert "jaxmatch/README.md" in LINK.findall(text)
    tour = (ROOT / "jaxmatch" / "README.md").read_text()
    questions = re.findall(r"^\| [^|]+\? \| (.+) \|$", tour, re.MULTILINE)
    assert len(questions) >= 20
    assert all(LINK.search(answer) or "describe --keys" in answer for answer in questions)


def test_the_readme_names_the_tested_versions():
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    text = (ROOT / "README.md").read_text()
    for name in ("jax", "flax", "optax", "orbax-checkpoint"):
        assert f"{name} {pinned[name]}" in text


@pytest.mark.parametrize("file", READMES, ids=name_of)
def test_python_examples_name_real_settings(file):
    for block in fenced(file.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "jaxmatch.config":
                import jaxmatch

                found = eval(ast.unparse(node), {"jaxmatch": jaxmatch})
                check_settings(whole(found))


@pytest.mark.slow
def test_the_method_of_contributing_trains(tmp_path, monkeypatch):
    (example,) = fenced((ROOT / ".github" / "CONTRIBUTING.md").read_text(), "python")
    (tmp_path / "agree.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    algorithm = importlib.import_module("agree").Agree()
    built = build(algorithm)
    _, meter = built.call(built.init(), built.place(toy_data(algorithm)))
    assert {"loss/supervised", "loss/unsupervised"} <= set(meter.sums)


def smallest(words: list[str]) -> dict[str, int]:
    """The settings of the smallest network that a command may have; that of a file stays."""
    if any(NETWORK in word for word in words):
        return {}
    return {"model.depth" if any("model.name=vit" in word for word in words) else "model.width": 1}


def shortened(words: list[str]) -> list[str]:
    """The words of a command that trains, with the fewest steps that show that it works."""
    if words[1] in ("baseline", "features") and any("init_from" in word for word in words):
        small = smallest(words)  # as that was trained
        return [*words, *(f"--config.{key}={value}" for key, value in small.items())]
    if words[1] not in ("train", "sweep"):
        return words
    runs = []
    for run in split_runs(words):
        argument = next(word for word in run if word.startswith("--config="))
        config, _ = from_flags(argument.removeprefix("--config="), [])
        short = [
            f"--config.{f'stages.{name}.' if name else ''}{key}={value}"
            for name in stages_of(config)
            for key, value in {**SHORT, **smallest(run)}.items()
        ]
        runs += [AND, *run, *short]
    return runs[1:]


def runnable(file: Path) -> Iterator[str | list[str]]:
    """The commands of a README that need nothing beside the tests' extra, and its Python blocks."""
    for line in shell_lines(file):
        if any(need in line for need in NEEDS):
            continue
        for words in commands(line):
            if Path(words[0]).name == "jaxmatch" and len(words) > 2:
                yield ["-m", "jaxmatch.cli", *shortened(words)[1:]]
            elif words[1:2] == ["-m"]:
                yield words[1:]


def write_photos(folder: Path, cats: int, dogs: int) -> None:
    """Photographs of two kinds, some without labels, and beside the folder one of digits."""
    random = np.random.default_rng(0)
    for kind, count in (("cat", cats), ("dog", dogs), ("unlabeled", 20)):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            levels = random.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(levels).save(folder / kind / f"{number}.png")
    shutil.copy(folder / "cat" / "0.png", folder / "one.png")
    digits = folder.parent / "digits"
    digits.mkdir()
    Image.fromarray(random.integers(0, 255, (28, 28), dtype=np.uint8)).save(digits / "0.png")


def write_network(file: Path) -> None:
    """A Vision Transformer by timm's names, with random weights."""
    model = ViT(classes=1000, patch=16, width=384, depth=12, heads=6)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), image)["params"]
    random = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda leaf: random.normal(0, 0.02, leaf.shape).astype(np.float32), params
    )
    write_weights(file, to_timm(weights))


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [*(ROOT / name / "README.md" for name in RUN), ROOT / ".github" / "CONTRIBUTING.md"],
    ids=name_of,
)
def test_commands_run(file, tmp_path):
    for name in ("configs", "experiments", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    large = NETWORK in file.read_text()  # and slow; the others have labels=200
    write_photos(tmp_path / "photos", *((12, 12) if large else (180, 150)))
    if large:
        write_network(tmp_path / NETWORK)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAXMATCH_ONEDNN": "off",
    }
    steps = ", ".join(f"{key}={value}" for key, value in SHORT.items() if "." not in key)
    programs = list(runnable(file))
    for block in fenced(file.read_text(), "python"):
        images = "import numpy\nimages = numpy.zeros((2, 32, 32, 3), numpy.uint8)\n"
        programs.append(["-c", images + block.replace("steps=600", steps)])
    wrong = []
    for words in programs:
        named = [glob.glob(word, root_dir=tmp_path) or [word] for word in words]
        ended = subprocess.run(
            [sys.executable, *(word for each in named for word in each)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            wrong.append(f"{shlex.join(words)}\n{ended.stdout}{ended.stderr}")
    assert not wrong, "\n".join(wrong)
