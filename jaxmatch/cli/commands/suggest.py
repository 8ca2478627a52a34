"""``jaxmatch suggest``: which unlabeled images to label next, as a table to fill in and a page."""

import argparse
import shlex
from pathlib import Path

from jaxmatch.cli.arguments import DATA, RUN, STEP, path, step

HELP = "Choose the unlabeled images of a run to label next: a table to fill in, and a page for it."


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", type=path, required=True, help=RUN)
    command.add_argument(
        "-n", dest="count", type=int, default=50, metavar="N", help="number of images (default 50)"
    )
    command.add_argument(
        "-o",
        "--output",
        type=path,
        default=Path("next.csv"),
        metavar="FILE",
        help="the .csv to write; the page has the same name with .html (default: next.csv)",
    )
    command.add_argument(
        "--by",
        default="auto",
        help="typiclust (typical images, for few labels), clue (typical of what is uncertain, for "
        "more), badge (uncertain and unlike each other), margin (uncertain), random, or auto "
        "(typiclust up to 10 labels a class, then clue; the default)",
    )
    command.add_argument("--seed", type=int, default=0, help="of the rule's random numbers")
    command.add_argument("--step", type=step, metavar="STEP", help=STEP)
    command.add_argument("--data", default="", metavar="DIR", help=DATA)


def run(arguments: argparse.Namespace) -> None:
    from jaxmatch.cli.continuing import PLACEHOLDER, following, going_on
    from jaxmatch.config.keys import KEYS
    from jaxmatch.data.levels import Levels
    from jaxmatch.errors import InputError, counted
    from jaxmatch.evaluation import suggest
    from jaxmatch.evaluation.classifier import load
    from jaxmatch.record.folder import RunFolder
    from jaxmatch.report.suggestions import write_page
    from jaxmatch.runtime.paths import check_output
    from jaxmatch.settings import check_value

    table: Path = arguments.output
    page = table.with_suffix(".html")
    check_value("seed", arguments.seed, KEYS["seed"].kind)
    suggest.check_rule(arguments.by)
    suggest.check_table(table)
    check_output(page)
    if page.is_file() and not table.is_file():
        raise InputError(f"{page} exists and would be lost; give another --output.")
    classifier = load(arguments.workdir, arguments.step)
    found = suggest.choose(
        classifier, arguments.count, rule=arguments.by, seed=arguments.seed, place=arguments.data
    )
    files = RunFolder(classifier.folder)
    values, record = files.read_config() or {}, files.read_record()
    location = record.location if record else ""
    words = going_on(values, arguments.workdir, table, arguments.data, location)
    again = ["--workdir", str(following(arguments.workdir)), "-n", str(arguments.count)]
    commands = [
        shlex.join(["jaxmatch", "train", *words]),
        shlex.join(["jaxmatch", "suggest", *again, "-o", str(following(table))]),
    ]
    suggest.write_table(table, found)
    data = classifier.config.data
    levels = Levels.of(data.background, data.white_level)
    write_page(page, found, table.name, str(arguments.workdir), levels, commands[0])
    count = f"{len(found):,} of {found.pool:,} unlabeled images, by {found.rule}"
    print(f"wrote {table} and {page}: {count}")
    for reason, number in found.left_out.items():
        print(f"left out: {counted(number, 'image')}, {reason}")
    print(
        f"Open {page} in a browser, choose the classes and save the table over {table}; or fill in "
        "its column label. Images without a label stay unlabeled. Then train on from this run, and "
        "ask again:"
    )
    print("\n".join(f"  {command}" for command in commands))
    if PLACEHOLDER in commands[0]:
        print(f"In place of {PLACEHOLDER} write the --config of {arguments.workdir}.")
