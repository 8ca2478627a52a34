"""The grammar that argparse does not know: overrides, and runs joined by ``--and``."""

from collections.abc import Sequence

from jaxmatch.errors import InputError

AND = "--and"  # joins the runs that one ``train`` command trains together


def split_runs(argv: Sequence[str]) -> list[list[str]]:
    """The words of each of the runs that ``--and`` joins."""
    runs: list[list[str]] = [[]]
    for word in argv:
        if word == AND:
            runs.append([])
        else:
            runs[-1].append(word)
    return runs


def join_overrides(rest: Sequence[str]) -> list[str]:
    """Join each ``--config.key value`` to ``--config.key=value``.

    Raises:
        InputError: if a word is not an override.
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
