"""The command line: ``jaxmatch COMMAND``."""

import argparse
import errno
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from jaxmatch.cli.commands import COMMANDS
from jaxmatch.cli.words import AND, join_overrides, split_runs
from jaxmatch.errors import DiskError, InputError, JaxmatchError

# A path that cannot be, or that somebody else keeps closed, rather than a disk that fails.
BAD_PATH = (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; overrides such as ``--config.key=value`` are unknown to it."""
    found = argparse.ArgumentParser(
        prog="jaxmatch",
        description="Train image classifiers from few labels and many unlabeled images.",
        allow_abbrev=False,
    )
    commands = found.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        text = command.HELP
        own = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_arguments(own)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit.

    Exit codes: 0 done, 2 bad input, 3 NaN or Inf, 4 disk, 130 stopped by Ctrl-C, 143 stopped by
    SIGTERM, 1 any other error, such as too little device memory.

    Args:
        argv: the words after ``jaxmatch``; by default those of this process.
    """
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("gcsfs").setLevel(logging.ERROR)  # it warns of the bucket's kind at each call
    # Pillow tells of odd metadata; what matters about a file is among the run's findings.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    os.environ.setdefault("EPATH_USE_TF", "false")  # TensorFlow reads no s3:// and loads slowly
    for handler in logging.getLogger().handlers:  # an imported library may have added one
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(logging.Formatter("jaxmatch: %(message)s"))
    # Orbax logs every save, and every failure several times, each with a traceback. The library
    # reports a failure in one sentence.
    logging.getLogger("absl").addFilter(is_not_orbax)
    words, *others = split_runs(sys.argv[1:] if argv is None else argv)
    try:
        arguments, rest = parser().parse_known_args(words)
        if arguments.command in ("train", "demo"):
            # The first Ctrl-C during training saves the run. Any other one ends the process at
            # once, even in an import, a computation or a write.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if rest and "config" not in arguments:
            raise InputError(f"unknown argument {rest[0]!r}; see jaxmatch {arguments.command} -h.")
        arguments.overrides = join_overrides(rest)
        arguments.others = []
        for words in others:
            if arguments.command != "train":
                raise InputError(f"{AND} joins runs of jaxmatch train, not {arguments.command}.")
            other, rest = parser().parse_known_args(["train", *words])
            other.overrides = join_overrides(rest)
            arguments.others.append(other)
        _prepare_process()
        if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may lack letters of names
            sys.stdout.reconfigure(errors="backslashreplace")
        COMMANDS[arguments.command].run(arguments)
    except JaxmatchError as error:
        sys.exit(_fail(error))
    except BrokenPipeError:  # a reader such as head has closed the pipe
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes stdout at its exit
    except OSError as error:
        kind = InputError if error.errno in BAD_PATH else DiskError
        sys.exit(_fail(kind(f"{error.filename or 'a file'}: {error.strerror or error}.")))
    except RuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        sys.exit(_fail(JaxmatchError(_out_of_memory(str(error)))))
    except KeyboardInterrupt:
        print("jaxmatch: interrupted.", file=sys.stderr)
        sys.exit(130)


def is_not_orbax(record: logging.LogRecord) -> bool:
    """Whether a library other than Orbax logged the record."""
    return "orbax" not in record.pathname


def _out_of_memory(text: str) -> str:
    """The error message for XLA's ``text``."""
    first_line = text.removeprefix("RESOURCE_EXHAUSTED: ").partition("\n")[0].rstrip(".")
    return (
        f"{first_line}; use more devices, dtype=bfloat16, microbatches or a smaller batch. The "
        "same command continues a run from its last checkpoint."
    )


def _prepare_process() -> None:
    from jaxmatch.runtime.compilation import prepare_process

    prepare_process()


def _fail(error: JaxmatchError) -> int:
    """Print the error and return its exit code."""
    print(f"jaxmatch: {error}", file=sys.stderr)
    return error.exit_code
