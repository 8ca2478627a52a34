"""The root logger stays as the program has it.

Orbax logs by absl, also while it is imported, and absl gives a root logger without a handler one
that begins every message with its level and logger.
"""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def same_handlers() -> Iterator[None]:
    """Take back the handler that absl gives a root logger without one."""
    before = list(logging.root.handlers)
    try:
        yield
    finally:
        if not before:
            logging.root.handlers.clear()
