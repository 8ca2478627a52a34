"""The argument of a configuration: ``DATA[,key=value]*`` after the colon of ``--config``."""

from jaxmatch.config import scaling
from jaxmatch.config.presets import DATASETS
from jaxmatch.errors import InputError, suggest

ARGUMENT_KEYS = ("labels", "seed", "preset", "split", "size")


def parse_argument(argument: str) -> tuple[str, dict[str, str]]:
    """The data set and the values by key of an argument ``DATA[,key=value]*``.

    Raises:
        InputError: if a key is unknown, or a value cannot be read.
    """
    data, *pairs = argument.split(",")
    if not data:
        raise InputError(f"the config argument needs a data set first: {suggest('', DATASETS)}")
    chosen = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key in scaling.KEYS:  # from_flags takes these out before
            raise InputError(
                f"{pair} belongs to --config; in Python call jaxmatch.config.scaling.scale."
            )
        if key not in ARGUMENT_KEYS or not equals or not value:
            raise InputError(
                f"cannot read {pair!r} in the config argument, which is DATA,key=value,...; "
                f"{suggest(key, (*ARGUMENT_KEYS, *scaling.KEYS))}"
            )
        chosen[key] = value
    for key in ("labels", "seed"):
        value = chosen.get(key, "0")
        if not value.isdecimal() and not (key == "labels" and value == "all"):
            raise InputError(f"{key}={value} is not a whole number{' or all' * (key == 'labels')}.")
    return data, chosen
