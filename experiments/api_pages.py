"""Pages of the library's interface, made from its docstrings by pdoc (extra ``docs``)."""

import argparse
import importlib
import warnings
from pathlib import Path

import pdoc
from pdoc import render

import jaxmatch

PACKAGE = Path(jaxmatch.__file__).parent


def write_pages(output: Path) -> None:
    """Write a page for each module of the package into the folder ``output``."""
    names = list(jaxmatch.__all__)
    for name in names:  # pdoc reads the module's dictionary, where names appear on demand
        setattr(jaxmatch, name, getattr(jaxmatch, name))
    rooms = {file.stem for file in PACKAGE.glob("[!_]*.py")}
    rooms |= {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")}
    jaxmatch.__all__ = [*names, *sorted(rooms - {*names})]
    try:
        with warnings.catch_warnings():
            # Functions of JAX and of Orbax, whose types only a type checker can name.
            foreign = r"Error parsing type annotation .*\.(scale_init|save_async)\."
            warnings.filterwarnings("ignore", foreign)
            render.configure(docformat="google", show_source=False)
            pdoc.pdoc("jaxmatch", *hidden_modules(), output_directory=output)
    finally:
        jaxmatch.__all__ = names


def hidden_modules() -> list[str]:
    """The public modules that the ``__all__`` of their package leaves out, as pdoc does."""
    hidden = []
    for file in PACKAGE.rglob("[!_]*.py"):
        *packages, name = ("jaxmatch", *file.relative_to(PACKAGE).with_suffix("").parts)
        package = importlib.import_module(".".join(packages))
        if name not in getattr(package, "__all__", (name,)):
            hidden.append(f"{package.__name__}.{name}")
    return sorted(hidden)


def main() -> None:
    """Parse the command line and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("build/api"), metavar="FOLDER")
    output = parser.parse_args().output
    write_pages(output)
    print(f"wrote {output / 'index.html'}")


if __name__ == "__main__":
    main()
