"""The formula by which the network cases fill their weights, so that they need not store them."""

from zlib import crc32

import numpy as np


def formula_weights(name: str, shape: tuple[int, ...], salt: int) -> np.ndarray:
    """The float64 values that the files' weight formula gives the PyTorch tensor ``name``."""
    v = noise(name, int(np.prod(shape)), salt).reshape(shape)
    if len(shape) == 4:
        return v * np.sqrt(12) * np.sqrt(2 / np.prod(shape[1:]))
    if len(shape) == 3:
        return v
    if len(shape) == 2:
        return v * np.sqrt(12) * np.sqrt(1 / shape[1])
    if name.endswith(".gamma"):
        return 0.5 + 0.5 * v
    if name.endswith("running_var"):
        return 1 + 0.4 * v
    return 1 + 0.2 * v if name.endswith(".weight") else 0.2 * v


def noise(name: str, size: int, salt: int) -> np.ndarray:
    """A hash of name and position, uniform in [-0.5, 0.5)."""
    mask = np.uint64(0xFFFFFFFF)
    code = np.uint64((crc32(name.encode("ascii")) + salt) % 2**32)
    u = (np.arange(size, dtype=np.uint64) * np.uint64(2654435761) + code * np.uint64(40503)) & mask
    for _ in range(2):
        u ^= u >> np.uint64(16)
        u = (u * np.uint64(0x45D9F3B)) & mask
    u ^= u >> np.uint64(16)
    return u / 2.0**32 - 0.5
