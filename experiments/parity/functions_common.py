"""What the replays of function cases share."""

from experiments.parity.rows import Case

REFERENCE_ONLY = "reference only"  # computed here: the library has no such thing


def tags(case: Case) -> list[str]:
    """The first parts of the names of a case's inputs."""
    return sorted({name.split("/")[0] for name in case.names("in/")})
