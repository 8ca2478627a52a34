"""Configurations: recipes, presets, the command line's overrides, and checks without data.

What is made of a configuration is in :mod:`jaxmatch.program`. The module is also the function
``jaxmatch.config(...)``, :func:`jaxmatch.config.flags.config`.
"""

import inspect
import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that makes a configuration when it is called."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        from jaxmatch.config.flags import config

        return config(*arguments, **settings)

    @property
    def __signature__(self) -> inspect.Signature:
        from jaxmatch.config.flags import config

        return inspect.signature(config)


sys.modules[__name__].__class__ = _Room
