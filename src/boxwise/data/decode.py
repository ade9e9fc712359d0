"""Image files to pixels: 8-bit RGB, upright, or one sentence that says why not.

Plain JPEGs go through torchvision, a quarter faster than PIL with equal pixels (measured on COCO photos); all
else goes through PIL. Alpha is dropped, palettes and CMYK become RGB, of several frames the first is taken.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from torch import Tensor

from boxwise.data.limits import no_limit, too_large
from boxwise.data.orientation import UPRIGHT, upright_pixels
from boxwise.data.sixteen import deep_values, to_eight_bits
from boxwise.shapes import Picture

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except (
    ImportError
):  # torchvision 0.29 announces that it will go; PIL gives the same pixels, at 80 % of the speed
    decode_jpeg = None

FORMATS = "JPEG, PNG, WebP, TIFF, BMP, GIF, PNM, JPEG 2000, AVIF"

MOST_BYTES = 2**32

ORIENTATION = 0x0112
PNG_NOTES = (b"eXIf", b"profile type exif", b"profile type APP1", b"adobe.xmp")
"""What a PNG that states an orientation contains. Others need no search behind their pixels."""


class BadImage(ValueError):
    """A file that gives no picture, and why."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = Path(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Header(NamedTuple):
    """What a file says of its picture: the stored size, and how to hold it upright (a key of UPRIGHT)."""

    width: int
    height: int
    orientation: int


class _Stored(NamedTuple):
    pixels: UInt8[Tensor, "h w 3"]
    stated: int
    """The orientation in the file."""
    left: int
    """The orientation that `pixels` still have."""


def decode(path: Path | str, *, max_value: int | None = None) -> Picture:
    """The picture in `path`, upright. A view of pixels that lie row by row (channels last in memory).

    16-bit values are divided by 257, or scaled so that `max_value` becomes white. Raises BadImage for files
    that are missing, empty, cut short, damaged, no image, or decompression bombs.
    """
    return decode_oriented(path, max_value=max_value)[0]


def decode_oriented(path: Path | str, *, max_value: int | None = None) -> tuple[Picture, int]:
    """`decode`, and the orientation that was undone (a key of UPRIGHT; 1: none)."""
    data = _read(path)
    stored = _fast_jpeg(path, data) or _any(path, data, max_value)
    return upright_pixels(stored.pixels, stored.left).permute(2, 0, 1), stored.stated


def read_header(path: Path | str) -> Header:
    """Size and orientation without decoding. Raises BadImage as `decode` does, save for damaged pixels."""
    data = _read(path)
    with _refusing(path):
        image = _open(data)
        width, height = _stored_size(image)
        _check_size(path, width, height, len(data))
        return Header(width, height, _orientation(image, data))


def _read(path: Path | str) -> bytearray:
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise BadImage(path, "not a regular file")
            if about.st_size > MOST_BYTES:
                raise BadImage(path, f"{about.st_size / 2**30:.0f} GiB, more than any image that is read")
            data = bytearray(file.read())
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise BadImage(path, "no such file" if missing else error.strerror or str(error)) from None
    if not data:
        raise BadImage(path, "empty file (0 bytes)")
    return data


def _open_without_waiting(path: str, flags: int) -> int:
    """A named pipe must be refused, not waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _fast_jpeg(path: Path | str, data: bytearray) -> _Stored | None:
    """None where PIL must decode, or say what is wrong."""
    frame = _jpeg_frame(data)
    if frame is None or decode_jpeg is None:
        return None
    width, height, noted = frame
    _check_size(path, width, height, len(data))
    orientation = 1
    if noted:
        with _refusing(path):
            orientation = _orientation(_open(data), data)
    try:
        pixels = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError:
        return None
    return _Stored(pixels.permute(1, 2, 0), orientation, orientation)


def _jpeg_frame(data: bytearray) -> tuple[int, int, bool] | None:
    """Width, height and whether EXIF or XMP is present; None unless a JPEG of 8 bits in gray or RGB."""
    if data[:2] != b"\xff\xd8":
        return None
    at, noted = 2, False
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1, 0xC2):
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            plain = data[at + 4] == 8 and data[at + 9] in (1, 3) and width and height
            return (width, height, noted) if plain else None
        if marker < 0xC4 or 0xD0 <= marker <= 0xDA or marker == 0xFF:
            return None
        noted = noted or marker == 0xE1
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def _any(path: Path | str, data: bytearray, max_value: int | None) -> _Stored:
    with _refusing(path):
        image = _open(data)
        _check_size(path, *_stored_size(image), len(data))
        stated = _orientation(image, data)
        values = deep_values(image, lambda: _open(data))
        pixels = _eight_bit_pixels(image) if values is None else _scaled(path, values, max_value)
        # PIL turns TIFFs upright by itself, and then forgets what it undid.
        left = _orientation(image, data) if image.format == "TIFF" else stated
    return _Stored(torch.from_numpy(pixels), stated, left)


def _eight_bit_pixels(image: Image.Image) -> NDArray[np.uint8]:
    if "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns of palettes that go to RGB without this step
    return np.array(image.convert("RGB"))


def _scaled(path: Path | str, values: NDArray[np.generic], max_value: int | None) -> NDArray[np.uint8]:
    try:
        return to_eight_bits(values, max_value=max_value, folder=str(Path(path).parent))
    except ValueError as error:
        raise BadImage(path, str(error)) from None


def _open(data: bytearray) -> ImageFile:
    return Image.open(io.BytesIO(data))


def _check_size(path: Path | str, width: int, height: int, length: int) -> None:
    if reason := too_large(width, height, length):
        raise BadImage(path, reason)


def _stored_size(image: ImageFile) -> tuple[int, int]:
    """PIL states the upright size for TIFF, the stored one for all else."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        return int(tags[256]), int(tags[257])
    return image.size


def _orientation(image: ImageFile, data: bytearray) -> int:
    """1 where none is stated, or in notes that are broken themselves: the picture is good all the same."""
    if image.format == "PNG" and not any(note in data for note in PNG_NOTES):
        return 1
    try:
        stated = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a parser of foreign bytes fails in every way there is
        return 1
    return stated if stated in UPRIGHT else 1


@contextmanager
def _refusing(path: Path | str) -> Iterator[None]:
    """Decoders meet damaged bytes with every exception there is; each means that there is no picture."""
    try:
        with no_limit:
            yield
    except (BadImage, Warning):
        raise
    except UnidentifiedImageError:
        raise BadImage(path, f"not an image that can be read (accepted: {FORMATS})") from None
    except Exception as error:
        raise BadImage(path, f"damaged or cut short ({error})") from error
