"""Orbax, which writes and reads arrays, without a change to the program's logging.

Orbax logs by absl, also while it is imported, and absl gives a root logger without a handler one
that begins every message with its level and logger.
"""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def _same_handlers() -> Iterator[None]:
    before = list(logging.root.handlers)
    try:
        yield
    finally:
        if not before:
            logging.root.handlers.clear()


with _same_handlers():
    from orbax.checkpoint import v1

AsyncResponse = v1.AsyncResponse
load = _same_handlers()(v1.load)
save_async = _same_handlers()(v1.save_async)
