"""Read and write JSON files, on this machine or in a bucket; a file is never half written."""

import json
from pathlib import Path
from typing import Any

from jaxmatch.errors import DiskError, InputError
from jaxmatch.runtime.paths import make_folder, path, read_whole, reason, write_whole

RESTORE = "put back a copy of it or choose another folder"


def read_object(file: Path, advice: str = RESTORE) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file.

    Raises:
        InputError: if the file cannot be read or holds no object; the message ends in ``advice``.
    """
    try:
        value = json.loads(read_whole(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{file} cannot be read ({reason(error)}).") from error
    except (ValueError, RecursionError) as error:
        raise damaged(file, "it is not JSON", advice) from error
    if not isinstance(value, dict):
        raise damaged(file, "it holds no JSON object", advice)
    return value


def write_json(file: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file completely or not at all.

    Raises:
        DiskError: if it cannot be written.
    """
    file = path(file)
    content = (json.dumps(value, indent=indent) + "\n").encode()
    try:
        make_folder(file.parent)
        write_whole(file, content)
    except OSError as error:
        raise disk_error(file, error) from error


def damaged(file: Path, problem: str, advice: str = RESTORE) -> InputError:
    """The error to raise if a file is damaged."""
    return InputError(f"{file} is damaged ({problem}): {advice}.")


def disk_error(file: Path, error: OSError) -> DiskError:
    """The error to raise if a file of the run folder cannot be written."""
    return DiskError(
        f"{file} could not be written ({reason(error)}): make room or check "
        "the folder's permissions, then run the same command again."
    )
