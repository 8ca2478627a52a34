"""What a file with a whole classifier holds: the function of images, and facts about it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxmatch.data.images import Fitting, Native
from jaxmatch.data.levels import Levels
from jaxmatch.errors import InputError
from jaxmatch.models.inputs import normalize
from jaxmatch.types import Array
from jaxmatch.weights.trained import Trained

FORMAT = 1  # of the facts
MOST_BYTES = 2**31 - 2**20  # flatbuffers and protobuf end at 2 GiB

PROBABILITIES, UNKNOWN = "probabilities", "unknown"  # names of outputs

Classify = Callable[[Array], Array | tuple[Array, Array]]
# Images [b h w c] uint8 -> probabilities [b C] and, if the file tells it, the share of known images
# that look less strange [b]; both float32.
Answer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """The facts about a classifier that its file holds beside the function.

    Attributes:
        classes: class names.
        image_shape: (height, width, channels) of its images.
        mean, std: of each channel of images in [0, 1]; the function normalises by them.
        temperature: divides the logits before the softmax, in the function.
        fitting: how a picture becomes an image.
        levels: how the levels of a picture become 0..255.
        origin: where the network comes from, for people.
        unknown: the score by which the function compares images with known ones, and the number and
            the part of these; None if it only gives probabilities.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float
    fitting: Fitting
    levels: Levels
    origin: Mapping[str, Any]
    unknown: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, trained: Trained) -> Self:
        """The facts about a network."""
        known = trained.known
        return cls(
            classes=trained.classes,
            image_shape=trained.image_shape,
            mean=trained.mean,
            std=trained.std,
            temperature=trained.temperature,
            fitting=trained.fitting or Fitting(size=trained.image_shape[:2]),
            levels=trained.levels,
            origin=trained.origin,
            unknown=known
            and {"score": known.score, "images": len(known.scores), "part": known.part},
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read the values of :meth:`to_json`.

        Raises:
            ValueError: if they are of another version, or one is missing or of another kind.
        """
        try:
            values = dict(values)
            written = values.pop("format")
            if written != FORMAT:
                raise ValueError(f"its facts have the format {written}, not {FORMAT}")
            fitting, levels = dict(values.pop("fitting")), dict(values.pop("levels"))
            native, background = fitting.pop("native"), levels.pop("background")
            if native is not None:
                native = Native(**{**native, "size": _sizes(native["size"], 2)})
            size = _sizes(fitting.pop("size"), 2)
            if not all(isinstance(name, str) for name in values["classes"]):
                raise ValueError("a class name is no text")
            return cls(
                classes=tuple(values.pop("classes")),
                image_shape=_sizes(values.pop("image_shape"), 3),
                mean=tuple(map(float, values.pop("mean"))),
                std=tuple(map(float, values.pop("std"))),
                temperature=float(values.pop("temperature")),
                fitting=Fitting(size=size, native=native, **fitting),
                levels=Levels(background=background and _sizes(background, 3), **levels),
                **values,
            )
        except KeyError as error:
            raise ValueError(f"its facts lack {error}") from error
        except (TypeError, AttributeError, InputError) as error:
            raise ValueError(f"its facts are incomplete ({error})") from error


def _sizes(values: Any, count: int) -> Any:
    found = tuple(int(value) for value in values)
    if len(found) != count:
        raise ValueError(f"{list(found)} should have {count} numbers")
    return found


def classify(trained: Trained) -> Classify:
    """The function from uint8 images [b h w c] to probabilities [b C] float32.

    With known images to compare with, it also gives the share of them that look less strange, [b]
    float32 (:meth:`jaxmatch.record.unknown.KnownImages.unknown`). The weights and the scores of the
    known images are constants of the function. Trace it for a batch of symbolic size.

    Raises:
        InputError: if no classifier was trained, or the weights are too large for one file.
    """
    if not trained.algorithm.labeled:
        raise InputError(
            "the run was trained without labels and has no classifier; export its weights as "
            ".safetensors, or train a classifier with --config.init_from."
        )
    variables = jax.device_get(trained.variables)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    if size > MOST_BYTES:
        raise InputError(
            f"the weights take {size / 2**30:.1f} GiB, and a file that computes ends at 2 GiB; "
            "export the weights as .safetensors."
        )

    def answer(images: Array) -> Array | tuple[Array, Array]:
        views = normalize(images, trained.mean, trained.std)
        outputs, _ = trained.network(variables, views, train=False)
        found = jax.nn.softmax(outputs.logits / trained.temperature).astype(jnp.float32)
        if trained.known is None:
            return found
        values = trained.known.measure(outputs).astype(jnp.float32)
        # No binary search, which converters do not know.
        less = (jnp.asarray(trained.known.scores) < values[:, None]).sum(-1)
        return found, less.astype(jnp.float32) / (len(trained.known.scores) + 1)

    return answer
