"""``jaxmatch describe``: what a configuration finds and what will run."""

import argparse
import json
import textwrap

from jaxmatch.cli.arguments import CONFIG, JSON, add_minutes, config_of, show
from jaxmatch.errors import InputError

HELP = (
    "Print what a config finds and what will run: images, network, memory, arithmetic; or its keys."
)

COLUMNS = ("key", "type", "value", "meaning")  # of the keys, as JSON


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", help=CONFIG)
    add_minutes(command)
    command.add_argument("--json", action="store_true", help=JSON.format("everything"))
    command.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="PREFIX",
        help="list the keys of a configuration instead: type, value (of --config, else the "
        "default) and meaning; of each stage, as its overrides are written",
    )


def run(arguments: argparse.Namespace) -> None:
    if arguments.keys is not None:
        _describe_keys(arguments)
        return
    if arguments.config is None:
        raise InputError("describe needs --config=NAME:DATA, or --keys to list the keys.")
    from jaxmatch.report.describe import describe, page

    found = describe(config_of(arguments))
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        show(page(found, arguments.config))


def _describe_keys(arguments: argparse.Namespace) -> None:
    from jaxmatch.config.keys import documented, with_prefix
    from jaxmatch.config.stages import stages_of

    alone = arguments.config is None
    if alone and (arguments.overrides or arguments.minutes is not None):
        raise InputError(
            "--keys without --config lists the defaults, which nothing overrides; add "
            "--config=NAME:DATA, or leave out --minutes and --config.key=value."
        )
    configs = {"": None} if alone else stages_of(config_of(arguments))
    listed = [
        row._replace(key=f"stages.{name}.{row.key}") if name else row
        for name, config in configs.items()
        for row in documented(config)
    ]
    rows = with_prefix(listed, arguments.keys)
    if arguments.json:
        print(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows], indent=2))
        return
    for key, kind, value, meaning in rows:
        print(f"{key}={value!r}  ({kind})")
        print(textwrap.indent(textwrap.fill(meaning, 96), "    "))
