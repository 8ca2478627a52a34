"""A published table with our runs in it; the commands of the runs; or the runs themselves.

python -m experiments.tables cifar10                            # the table, as Markdown
python -m experiments.tables cifar10 -o cifar10.html
python -m experiments.tables cifar10 --list --methods fixmatch,uda --labels 40 --seeds 0
python -m experiments.tables cifar10 --run --config.dtype=bfloat16
"""

import argparse
import sys
from pathlib import Path

from experiments.tables import sweep
from experiments.tables.render import page
from jaxmatch.cli import main as cli
from jaxmatch.config.presets import PRESETS
from jaxmatch.errors import DiskError, InputError, JaxmatchError

SWEEP = Path(__file__).with_name("sweep.py")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("table", help=", ".join(sweep.TABLES))
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="print one command for each run")
    action.add_argument("--run", action="store_true", help="run what is not finished, here")
    parser.add_argument("--workdir", type=Path, help="default: runs/tables/TABLE")
    parser.add_argument("--methods", help="some of the rows, with commas between")
    parser.add_argument("--labels", help="some of the numbers of labels; all: every label")
    parser.add_argument("--seeds", help=f"default: to run {','.join(sweep.SEEDS)}; to show any")
    parser.add_argument("--preset", help=f"of the runs: {', '.join(PRESETS)}, usb_cv")
    parser.add_argument("-o", "--output", type=Path, help="a .md or .html file for the table")
    arguments, overrides = parser.parse_known_args()
    chosen = [
        f"{key}={value.replace(',', '+')}"
        for key in ("methods", "labels", "seeds", "preset")
        if (value := getattr(arguments, key)) is not None
    ]
    argument = ",".join([arguments.table, *chosen])
    workdir = arguments.workdir or Path("runs/tables") / arguments.table
    if arguments.list or arguments.run:
        words = ["sweep", f"--config={SWEEP}:{argument}", f"--workdir={workdir}", *overrides]
        cli.main([*words, "--run"] if arguments.run else words)
        return
    try:
        if overrides:
            raise InputError(f"{overrides[0]} is for --list and --run; a table is read from runs.")
        show(argument, workdir, arguments.output)
    except JaxmatchError as error:
        print(f"experiments.tables: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def show(argument: str, workdir: Path, output: Path | None = None) -> None:
    """Write the table to ``output``, or to the terminal.

    Raises:
        InputError: on an unknown name or another kind of file.
        DiskError: if the file cannot be written.
    """
    if output is not None and output.suffix not in (".md", ".html"):
        raise InputError(f"{output} is neither .md nor .html; give --output one of these endings.")
    found = page(sweep.choose(argument), workdir)
    if output is None:
        print(found.markdown())
        return
    text = found.html() if output.suffix == ".html" else found.markdown() + "\n"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)
    except OSError as error:
        raise DiskError(
            f"{output} could not be written ({error.strerror or error}): choose another --output."
        ) from error
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
