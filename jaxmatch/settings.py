"""Sections of the configuration: dataclasses whose field types state the values they take.

A field's type is ``int``, ``float``, ``bool``, ``str``, a ``Literal`` of names, a tuple of these,
or a union of one of these and ``None``. ``typing.Annotated`` adds the :class:`Range` of a number.
NaN and infinity are in no range.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
)

import numpy as np
from jax.core import Tracer

from jaxmatch.errors import InputError, suggest

LARGEST = 2**31 - 1  # the largest count, since arrays of a run count in int32
LEAST_FLOAT, MOST_FLOAT = (float(getattr(np.finfo(np.float32), name)) for name in ("tiny", "max"))

Section = TypeVar("Section", bound=type)
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Range:
    """A range of numbers.

    Attributes:
        least: lower bound, included.
        above: lower bound, excluded.
        most: upper bound, included.
        below: upper bound, excluded.
        beyond: numbers above ``most`` are accepted up to this one, with what they do, such as
            "turns it off"; :func:`unusual` tells the user.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    beyond: tuple[float, str] | None = None

    def text(self) -> str:
        """The range in words; empty where every number of the type is in it."""
        low = {"at least": self.least, "above": self.above}
        high = {"at most": None if self.most == LARGEST else self.most, "below": self.below}
        bounds = {**low, **high}
        return " and ".join(
            f"{word} {bound:.10g}" for word, bound in bounds.items() if bound is not None
        )

    def demand(self, value: float) -> str:
        """The demand that ``value`` fails, such as "must be at least 1"; empty if there is none."""
        low = (self.least is None or value >= self.least) and (
            self.above is None or value > self.above
        )
        most = self.most if self.beyond is None else self.beyond[0]
        high = (most is None or value <= most) and (self.below is None or value < self.below)
        if low and high:
            return ""
        if self.most == LARGEST:
            return f"must be at most {LARGEST}" if low else f"must be at least {self.least:g}"
        if self.least is not None and self.most is not None:
            text = f"must lie between {self.least:.10g} and {self.most:.10g}"
            if self.beyond is None:
                return text
            return f"{text}, or above that and at most {self.beyond[0]:g}, which {self.beyond[1]}"
        named = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        bounds = [f"{name} {bound:g}" for name, bound in named.items() if bound is not None]
        return f"must be {' and '.join(bounds)}"


Count = Annotated[int, Range(least=1, most=LARGEST)]
Whole = Annotated[int, Range(least=0, most=LARGEST)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1)]
Part = Annotated[float, Range(above=0, most=1)]  # a share of something, but not of nothing
# The least confidence of an unlabeled image that counts.
Threshold = Annotated[float, Range(least=0, most=1, beyond=(2, "turns it off"))]
# The share of all steps in which a weight rises.
Ramp = Annotated[
    float, Range(least=0, most=1, beyond=(10, "keeps the weight below its value to the end"))
]
# The share of an old average that stays; at 1 nothing would be learned.
Momentum = Annotated[float, Range(least=0, below=1)]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(name: str) -> Callable[[Section], Section]:
    """Make a class a frozen keyword-only dataclass that refuses values its fields do not take.

    Args:
        name: of the section in the configuration, for error messages.
    """

    def decorate(kind: Section) -> Section:
        own = getattr(kind, "__post_init__", None)

        def checked(self: Any) -> None:
            check_values(kind, vars(self), name)
            if own is not None:
                own(self)

        kind.__post_init__ = checked
        return dataclass(frozen=True, kw_only=True)(kind)

    return decorate


def build_section(kind: type[Value], values: Mapping[str, Any], where: str) -> Value:
    """Build a dataclass from config values.

    Args:
        kind: the dataclass.
        values: of its fields, by name.
        where: the section's name in the configuration.

    Raises:
        InputError: on an unknown key, or a value that the key does not take.
    """
    known: list[str] = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
    for key in values:
        if key not in known:
            hint = suggest(key, known) if known else f"{where} has no settings."
            raise InputError(f"unknown config key {where}.{key}; {hint}")
    check_values(kind, values, where)
    # A saved configuration has lists for tuples, since JSON has no tuples.
    return kind(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


def check_values(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Check values of the fields of a dataclass.

    Args:
        kind: the dataclass.
        values: by field; other keys are ignored.
        where: the section's name in the configuration.

    Raises:
        InputError: if a field does not take its value.
    """
    fields: Mapping[str, Any] = getattr(kind, "__dataclass_fields__", {})
    for key, value in values.items():
        if key in fields:
            check_value(f"{where}.{key}", value, fields[key].type)


def check_value(key: str, value: Any, kind: Any) -> None:
    """Check that a field of the type ``kind`` takes a value.

    Args:
        key: of the field in the configuration, for the message.
        value: to check.
        kind: the field's type.

    Raises:
        InputError: if not.
    """
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices and isinstance(value, str) and value not in choices:
        raise InputError(f"unknown {key} {value!r}; {suggest(value, choices)}")
    if failed := demand(value, kind):
        shown = repr(value) if isinstance(value, str) else value
        raise InputError(f"{key}={shown} {failed}.")


def unusual(kind: type, values: Mapping[str, Any], where: str) -> Iterator[str]:
    """A sentence for each value beyond the usual ones; arguments of :func:`check_values`."""
    fields: Mapping[str, Any] = getattr(kind, "__dataclass_fields__", {})
    for key, value in values.items():
        for bound in getattr(fields[key].type, "__metadata__", ()) if key in fields else ():
            if isinstance(bound, Range) and bound.beyond:
                limit, effect = bound.beyond
                if bound.most < value <= limit:
                    yield f"{where}.{key}={value} is above {bound.most:g}, which {effect}."


def demand(value: Any, kind: Any) -> str:
    """The demand of the type ``kind`` that ``value`` fails; empty if there is none."""
    if isinstance(value, Tracer):  # its value is not known while a program is traced
        return ""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        base, *bounds = arguments
        failed = demand(value, base)
        if failed and not (base is float and isinstance(value, Real)):  # it is of another type
            return ", ".join([failed, *(text for each in bounds if (text := each.text()))])
        if failed or value is None:
            return failed
        return next((text for each in bounds if (text := each.demand(value))), "")
    if origin in (Union, UnionType):
        return _demand_one_of(value, arguments)
    if origin is tuple or kind is tuple:
        return _demand_tuple(value, arguments)
    if kind is NoneType:
        return "must be None" if value is not None else ""
    if kind is bool:
        return "" if isinstance(value, bool | np.bool_) else "must be True or False"
    if kind is str or origin is Literal:
        return "" if isinstance(value, str) else "must be a text"
    if kind is int:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        return "" if whole else "must be a whole number"
    if kind is float:
        if not isinstance(value, Real) or isinstance(value, bool):
            return "must be a number"
        return _demand_float(value)
    return ""


def _demand_one_of(value: Any, kinds: tuple[Any, ...]) -> str:
    """The demand of a union of ``kinds`` that ``value`` fails, of those that are most like it."""
    demands = [demand(value, kind) for kind in kinds]
    if not all(demands):
        return ""
    listed = isinstance(value, tuple | list)
    alike = [n for n, kind in enumerate(kinds) if listed == (get_origin(kind) is tuple)]
    if listed and alike:  # tuples of these lengths
        lengths = {len(get_args(kinds[n])): n for n in alike}
        if len(value) not in lengths:
            *others, last = map(str, sorted(lengths))
            return f"must have {', '.join(others)}{' or ' if others else ''}{last} entries"
        alike = [lengths[len(value)]]
    return demands[(alike or [0])[0]]


def _demand_float(value: Real) -> str:
    """The demand that a number fails if float32, in which steps compute, cannot hold it."""
    try:
        size = abs(float(value))
    except OverflowError:  # a huge whole number
        size = math.inf
    if math.isnan(size) or (size == math.inf and isinstance(value, float)):
        return "must be finite"
    if size > MOST_FLOAT or 0 < size < LEAST_FLOAT:
        return f"must lie in the range of float32, {LEAST_FLOAT:.0e} to {MOST_FLOAT:.0e}"
    return ""


def _demand_tuple(value: Any, kinds: tuple[Any, ...]) -> str:
    """The demand of ``tuple[kinds]`` that ``value`` fails."""
    if not isinstance(value, tuple | list):  # a saved configuration has lists
        return f"must be a tuple, such as {_example(kinds)}"
    alike = len({*kinds} - {Ellipsis}) < 2
    if Ellipsis in kinds:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        return f"must have {len(kinds)} entries"
    demands = (demand(each, kind) for each, kind in zip(value, kinds, strict=True))
    return next(
        (
            f"{failed} in {'each entry' if alike else f'entry {number}'}"
            for number, failed in enumerate(demands, start=1)
            if failed
        ),
        "",
    )


def _example(kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    """A value of ``tuple[kinds]``."""
    if str in kinds:
        return ("a", "b")
    if kinds and get_origin(kinds[0]) is tuple:
        return (_example(get_args(kinds[0])),)
    types = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds]
    if int in types and float in types:
        return tuple(96 if kind is int else 0.5 for kind in types)
    return (0.5,)
