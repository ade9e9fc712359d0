"""Pixels deeper than 8 bits, which PIL itself would cut off or turn white."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile

WHITE = 65535
DARK = 4096
"""A 16-bit image that stays below holds 12 bits or fewer: divided by 257 it is almost black."""
OTHER_BYTE = {"16L": "16B", "16B": "16L", "16N": "16B" if sys.byteorder == "little" else "16L"}
"""Orders of the two bytes of a sample in PIL's raw modes, and their opposites."""


def deep_values(image: ImageFile, reopen: Callable[[], ImageFile]) -> NDArray[np.generic] | None:
    """Samples (H, W) or (H, W, 3) of an image of more than 8 bits, without alpha; None for other images.

    `reopen` opens the same file again.
    """
    if image.mode.startswith("I") or image.mode == "F":
        image.load()  # which may turn it, and so change its size
        return np.asarray(image)
    raw = _raw_mode(image)
    if not raw.endswith(tuple(OTHER_BYTE)):
        return None
    if raw == "LA;16B":  # as wide as four samples of 8 bits: both bytes of gray, both bytes of alpha
        four = _read_as(image, "RGBA").astype(np.uint16)
        return four[..., 0] << 8 | four[..., 1]
    if raw.startswith("RGB"):
        # PIL keeps the high byte of each sample; read in the other order of bytes, it keeps the low one.
        low = _read_as(reopen(), raw[:-3] + OTHER_BYTE[raw[-3:]])
        return (_read_as(image, raw).astype(np.uint16) << 8 | low)[..., :3]
    return None


def _raw_mode(image: ImageFile) -> str:
    """How PIL unpacks the samples, "RGB;16B" for example; "" where it does not say."""
    arguments = image.tile[0].args if image.tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _read_as(image: ImageFile, raw: str) -> NDArray[np.uint8]:
    """Pixels of an image not yet loaded, its samples unpacked by another of PIL's raw modes."""
    image.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *(tile.args or ())[1:]))
        for tile in image.tile
    ]
    image.load()
    return np.asarray(image)


def to_eight_bits(values: NDArray[np.generic], *, max_value: int | None, folder: str) -> NDArray[np.uint8]:
    """(H, W, 3): `values` / 257 rounded, or so scaled that `max_value`, and all above it, becomes 255.

    Warns once a folder of images that come out almost black. Raises ValueError for values that are no 16-bit
    numbers where no `max_value` says what is white.
    """
    least, largest = values.min(), values.max()
    if max_value is not None:
        known = np.clip(np.nan_to_num(values.astype(np.float64)), 0, max_value)
        eight = np.rint(known * (255 / max_value)).astype(np.uint8)
    elif values.dtype.kind == "f" or least < 0 or largest > WHITE:
        raise ValueError(
            f"values from {least} to {largest} are not 16 bits: pass --data.max-value, the value of white"
        )
    else:
        if 0 < largest < DARK:
            warnings.warn(
                f"{folder}: 16-bit images with no value above {DARK - 1} come out almost black; pass "
                "--data.max-value, the value of white (4095 for 12 bits)",
                stacklevel=2,
            )
        eight = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return eight if eight.ndim == 3 else np.repeat(eight[..., None], 3, axis=2)
