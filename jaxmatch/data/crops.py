"""Random resized crops and flips on the host: the part of a view that needs the whole image.

The distribution is that of :class:`~jaxmatch.augment.contrast.RandomResizedCrop` and
:class:`~jaxmatch.augment.contrast.Flip`, which crop on the device.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jaxmatch.data.images import Size, fit

METHODS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
TRIES = 10  # as in torchvision


@dataclass(frozen=True, kw_only=True)
class HostCrop:
    """One view of an image of any size: [height width 3] uint8.

    Attributes:
        size: height and width of the view.
        area: least and largest share of the image's area; None takes the largest centred rectangle
            of the view's shape, for transforms that crop on the device.
        aspect: least and largest ratio of width to height.
        method: filter of the resize, "bilinear" or "bicubic".
        flip: the probability of a mirror image, left and right.
        vertical_flip: the probability of a mirror image, top and bottom.
        rotate90: turn by 0, 90, 180 or 270 degrees; views that are not square by 0 or 180.
    """

    size: Size
    area: tuple[float, float] | None = None
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    method: str = "bilinear"
    flip: float = 0.0
    vertical_flip: float = 0.0
    rotate90: bool = False

    def apply(self, image: Image.Image, random: np.random.Generator) -> np.ndarray:
        """Draw a view of an RGB image."""
        if self.area is None:
            return np.asarray(fit(image, self.size))
        height, width = self.size
        view = image.crop(self.box(image.width, image.height, random))
        view = view.resize((width, height), METHODS[self.method])
        if random.random() < self.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.vertical_flip and random.random() < self.vertical_flip:
            view = view.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        if self.rotate90:
            quarters = (0, 1, 2, 3) if height == width else (0, 2)
            view = view.rotate(90 * int(random.choice(quarters)), expand=True)
        return np.asarray(view)

    def box(
        self, width: int, height: int, random: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Draw a box (left, top, right, bottom); if no proposal fits, it is the centre."""
        assert self.area is not None
        least, largest = self.aspect
        for _ in range(TRIES):
            pixels = width * height * random.uniform(*self.area)
            aspect = math.exp(random.uniform(math.log(least), math.log(largest)))
            across, down = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if 0 < across <= width and 0 < down <= height:
                left = int(random.integers(width - across + 1))
                top = int(random.integers(height - down + 1))
                return left, top, left + across, top + down
        across, down = min(width, round(height * largest)), min(height, round(width / least))
        left, top = (width - across) // 2, (height - down) // 2
        return left, top, left + across, top + down
