"""Pictures that are decoded once and kept as bytes, for many runs over the same images."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from boxwise.data.cores import cores
from boxwise.data.decode import BadImage
from boxwise.data.targets import Labelled
from boxwise.shapes import Picture


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """Decoded pictures of one table, end to end in one tensor: worker processes share it, forked or not."""

    block: UInt8[Tensor, " bytes"]
    first: Int64[np.ndarray, " n"]
    """Where the picture of each row of the table begins; -1 where it is not kept."""
    shape: Int64[np.ndarray, "n 2"]
    """Height and width, upright."""
    orientation: Int64[np.ndarray, " n"]
    """What decoding has undone."""

    def picture(self, row: int) -> tuple[Picture, int] | None:
        """A copy, which the caller may write into, as `decode_oriented` gave it; None where it is not kept."""
        begin, (height, width) = int(self.first[row]), self.shape[row].tolist()
        if begin < 0:
            return None
        lines = self.block[begin : begin + 3 * height * width].view(height, width, 3)
        return lines.permute(2, 0, 1).clone(), int(self.orientation[row])


@dataclass(frozen=True, slots=True, eq=False)
class Kept(Labelled):
    """A labelled set whose pictures come from memory, as far as they are kept there."""

    pixels: Pixels = field(kw_only=True)

    def decoded(self, index: int) -> tuple[Picture, int]:
        kept = self.pixels.picture(int(self.index[index]))
        return Labelled.decoded(self, index) if kept is None else kept


def held(labelled: Labelled, pixels: Pixels) -> Kept:
    """`labelled` with its pictures from `pixels`, which must be of the same table."""
    assert len(pixels.first) == len(labelled.table.names), "pixels of another table"
    return Kept(**{f.name: getattr(labelled, f.name) for f in fields(Labelled)}, pixels=pixels)


def decoded_bytes(labelled: Labelled) -> int:
    """What its pictures take once decoded, by the sizes in the json."""
    return int(labelled.table.sizes[labelled.index].prod(axis=1).sum()) * 3


def decode_all(labelled: Labelled) -> Pixels:
    """Decodes every picture of `labelled`, each file once.

    A file that cannot be read, or is not of the json's size, is not kept: whoever reads it meets its error.
    """
    count = len(labelled.table.names)
    pixels = Pixels(
        block=torch.empty(decoded_bytes(labelled), dtype=torch.uint8),
        first=np.full(count, -1, dtype=np.int64),
        shape=np.zeros((count, 2), dtype=np.int64),
        orientation=np.ones(count, dtype=np.int64),
    )
    places = np.concatenate([[0], np.cumsum(labelled.table.sizes[labelled.index].prod(axis=1) * 3)])
    for i, found in enumerate(_pictures(labelled)):
        if found is None or found[0].numel() != places[i + 1] - places[i]:
            continue
        (picture, orientation), row = found, int(labelled.index[i])
        pixels.block[places[i] : places[i + 1]] = picture.permute(1, 2, 0).reshape(-1)
        pixels.first[row], pixels.orientation[row] = places[i], orientation
        pixels.shape[row] = picture.shape[1:]
    return pixels


def _pictures(labelled: Labelled, *, chunk: int = 64) -> Iterator[tuple[Picture, int] | None]:
    """In order, decoded by threads; a chunk at a time, so that few wait beside the block."""

    def read(index: int) -> tuple[Picture, int] | None:
        try:
            return labelled.decoded(index)
        except BadImage:
            return None

    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(labelled), chunk):
            yield from pool.map(read, range(start, min(start + chunk, len(labelled))))
