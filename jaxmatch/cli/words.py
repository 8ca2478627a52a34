"""The grammar of the command line beyond argparse: overrides, and runs joined by ``--and``."""

from collections.abc import Sequence

from jaxmatch.errors import InputError

AND = "--and"  # between the runs that one ``train`` trains together


def split_runs(argv: Sequence[str]) -> list[list[str]]:
    """The words of each run that ``--and`` joins."""
    runs: list[list[str]] = [[]]
    for word in argv:
        if word == AND:
            runs.append([])
        else:
            runs[-1].append(word)
    return runs


def join_overrides(rest: Sequence[str]) -> list[str]:
    """Join ``--config.key value`` to ``--config.key=value`` and refuse everything else.

    Raises:
        InputError: on a word that is no override.
    """
    joined: list[str] = []
    for word in rest:
        if word.startswith("--config."):
            joined.append(word)
        elif joined and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            raise InputError(f"unknown argument {word!r}; overrides look like --config.key=value.")
    return joined
