"""Collects the packages that a machine with a GPU may lack, to be carried to it as wheels.

    python -m experiments.gpu.wheels                      # into .wheels/, for Python 3.12
    python -m experiments.gpu.wheels --python 3.13 --out FOLDER

For machines that reach no package registry and have CUDA builds of JAX and PyTorch with the usual
scientific packages. Nothing of ``PRESENT`` is collected, so that no other JAX, NumPy or PyTorch
takes the place of theirs. Exit code 1 if the wheels are more than ``--most`` MiB together.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLATFORMS = tuple(
    f"{name}_x86_64"
    for name in (
        "manylinux_2_28",
        "manylinux_2_27",
        "manylinux_2_24",
        "manylinux_2_17",
        "manylinux2014",
        "manylinux1",
    )
)
# What such a machine has. It may also have Etils, Flax, Optax and Orbax, which are carried all the
# same, in the versions that this package asks for: they are small and made of Python alone.
PRESENT = frozenset(
    (
        "absl-py",
        "aiofiles",
        "attrs",
        "certifi",
        "charset-normalizer",
        "cloudpickle",
        "contourpy",
        "cycler",
        "einops",
        "fonttools",
        "fsspec",
        "humanize",
        "idna",
        "jax",
        "jaxlib",
        "joblib",
        "kiwisolver",
        "markdown-it-py",
        "matplotlib",
        "mdurl",
        "ml-dtypes",
        "msgpack",
        "narwhals",
        "numpy",
        "opt-einsum",
        "packaging",
        "pandas",
        "pillow",
        "prometheus-client",
        "protobuf",
        "psutil",
        "pyarrow",
        "pygments",
        "pyparsing",
        "python-dateutil",
        "pyyaml",
        "requests",
        "rich",
        "safetensors",
        "scikit-learn",
        "scipy",
        "simplejson",
        "six",
        "tensorstore",
        "threadpoolctl",
        "tqdm",
        "treescope",
        "typing-extensions",
        "tzdata",
        "urllib3",
        "uvloop",
        "wrapt",
        "zipp",
    )
)
# What is missing there besides this package's own requirements: MNIST-5k's package, and the
# requirements of requirements.
DEEPER = (
    "array-record",
    "dm-tree",
    "docstring-parser",
    "googleapis-common-protos",
    "immutabledict",
    "mlxtend",
    "portpicker",
    "simple-parsing",
    "tensorflow-metadata",
    "termcolor",
    "toml",
    "wadler-lindig",
)
SOURCES = ("promise",)  # without a wheel of its own; made of Python alone


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=ROOT / ".wheels", metavar="FOLDER")
    parser.add_argument("--python", default="3.12", metavar="3.N", help="of that machine")
    parser.add_argument("--most", type=float, default=40.0, metavar="MIB")
    arguments = parser.parse_args(words)
    out, python = arguments.out, arguments.python
    for old in out.glob("*.whl"):
        old.unlink()
    options = [word for name in PLATFORMS for word in ("--platform", name)]
    options += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    pip("download", "--no-deps", "-d", str(out), *options, *collected())
    pip("wheel", "--no-deps", "-w", str(out), *SOURCES)
    found = sorted(out.glob("*.whl"))
    for wheel in found:
        print(f"{wheel.stat().st_size / 2**20:6.2f} MiB  {wheel.name}")
    total = sum(wheel.stat().st_size for wheel in found) / 2**20
    print(f"{total:6.2f} MiB  in {out}")
    if total > arguments.most:
        sys.exit(f"wheels: more than {arguments.most:g} MiB; what is so large?")


def collected() -> list[str]:
    """The packages to download, with the versions that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [text for text in project["dependencies"] if name_of(text) not in PRESENT]
    return [re.sub(r"\[.*?\]", "", text) for text in wanted] + list(DEEPER)


def name_of(requirement: str) -> str:
    """The package's name as registries spell it, without extras and versions."""
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", *words], check=True)


if __name__ == "__main__":
    main()
