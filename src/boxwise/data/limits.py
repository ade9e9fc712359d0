"""How large a picture may be, so that photos of every size pass and decompression bombs do not."""

from __future__ import annotations

import threading

from PIL import Image

PLAIN_PIXELS = 2**27
"""Up to here (134 million) every picture is decoded."""
MOST_PIXELS = 2**29
"""Up to here (537 million) a picture is decoded if its file is as large as a photo's would be."""
PIXELS_PER_BYTE = 100
"""A photo keeps 2 to 20 pixels in a byte, a decompression bomb thousands."""


def too_large(width: int, height: int, length: int) -> str | None:
    """Why a picture of this size, in a file of `length` bytes, is not decoded; none where it is."""
    pixels = width * height
    if pixels > MOST_PIXELS:
        return f"{width} x {height} pixels, more than the {MOST_PIXELS} that are decoded: cut it into tiles"
    if pixels > max(PLAIN_PIXELS, length * PIXELS_PER_BYTE):
        return f"a decompression bomb, no photo: {width} x {height} pixels in {length} bytes"
    return None


class _NoLimit:
    """PIL's own limit, a global, warns of large photos and refuses the largest: `too_large` replaces it."""

    def __init__(self) -> None:
        self._lock, self._inside, self._limit = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                Image.MAX_IMAGE_PIXELS = self._limit


no_limit = _NoLimit()
