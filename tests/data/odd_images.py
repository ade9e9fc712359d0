"""Image files that PIL cannot write, and pictures whose every corner differs."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def corners(width: int = 23, height: int = 17) -> np.ndarray:
    """(H, W, 3): smooth, so that JPEG keeps it, and unlike under each flip and turn."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return (np.stack([x, y, x * y], axis=-1) * 255).astype(np.uint8)


def photo(path: Path, width: int = 23, height: int = 17, **save: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(corners(width, height)).save(path, **save)
    return path


def noted(path: Path, orientation: int, width: int = 23, height: int = 17) -> Path:
    """A file whose EXIF says how it is to be held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return photo(path, width, height, exif=exif)


def png(values: np.ndarray, *, colour: int, depth: int = 16, size: tuple[int, int] | None = None) -> bytes:
    """A PNG of values (H, W, C); `colour` 0 gray, 2 RGB, 4 gray and alpha, 6 RGBA; `size` is a lie."""
    width, height = size or (values.shape[1], values.shape[0])
    kind = ">u2" if depth == 16 else "u1"
    rows = b"".join(b"\0" + row.astype(kind).tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, held) for kind, held in parts)


def _chunk(kind: bytes, held: bytes) -> bytes:
    return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))


def tiff(values: np.ndarray, *, order: str = "<", packed: bool = False, orientation: int = 1) -> bytes:
    """A 16-bit TIFF of values (H, W, C), C from 3 to 4, little ("<") or big (">") end first."""
    height, width, channels = values.shape
    held = values.astype(order + "u2").tobytes()
    held = zlib.compress(held) if packed else held
    count = 11 + (channels == 4)
    at = 8 + 2 + 12 * count + 4
    bits = struct.pack(order + "H" * channels, *[16] * channels)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, at), (259, 3, 1, 8 if packed else 1)]
    tags += [(262, 3, 1, 2), (273, 4, 1, at + len(bits)), (274, 3, 1, orientation), (277, 3, 1, channels)]
    tags += [(278, 4, 1, height), (279, 4, 1, len(held)), (284, 3, 1, 1)]
    tags += [(338, 3, 1, 2)] if channels == 4 else []
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, count)
    for tag, kind, n, value in tags:
        field = (
            struct.pack(order + "HH", value, 0) if kind == 3 and n == 1 else struct.pack(order + "I", value)
        )
        out += struct.pack(order + "HHI", tag, kind, n) + field
    return out + struct.pack(order + "I", 0) + bits + held
