"""Orbax, which writes and reads arrays, without its change of the root logger."""

from jaxmatch.runtime.root_logger import same_handlers

with same_handlers():
    from orbax.checkpoint import v1

__all__ = ["load", "save_async", "v1"]

load = same_handlers()(v1.load)
save_async = same_handlers()(v1.save_async)
