"""The run-time check of annotations, as conftest.py installs it for jaxmatch.functional."""

from functools import wraps

import jax.numpy as jnp
import numpy as np
from beartype import BeartypeConf, BeartypeHintOverrides, beartype
from jax import Array
from jaxtyping import Float

# A float may be an int or a traced scalar.
CONF = BeartypeConf(hint_overrides=BeartypeHintOverrides({float: float | int | Float[Array, ""]}))


def checked(function):
    """Check the annotations of ``function``; NumPy's arrays pass as JAX's, which takes both."""
    check = beartype(conf=CONF)(function)

    @wraps(function)
    def with_arrays(*arguments, **options):
        return check(*as_jax(arguments), **as_jax(options))

    return with_arrays


def as_jax(value):
    if isinstance(value, np.ndarray | np.generic):
        return jnp.asarray(value)
    if type(value) in (list, tuple):
        return type(value)(map(as_jax, value))
    if type(value) is dict:
        return {key: as_jax(inner) for key, inner in value.items()}
    return value
