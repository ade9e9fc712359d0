"""Proposals while they are being made: parts that only grow, one a process, joined into one file in the end.

A record is its length, its checksum, a JSON line with the name, then the boxes. A process may be killed at any byte:
what it had not finished writing is cut off when it comes back, and overlooked by all others.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from boxwise.data.names import Names
from boxwise.data.proposals import Stamp, Table, write_header
from boxwise.data.sources import Files

HEAD = 8


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """The boxes of one image, or why there are none."""

    name: str
    stamp: Stamp
    width: int
    height: int
    rects: NDArray[np.int64]
    """(N, 4) left, top, width, height."""
    reason: str = ""
    """Why the file could not be read."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies, and what the joined file holds of it beside the boxes."""

    part: int
    start: int
    end: int
    stamp: Stamp
    width: int
    height: int
    count: int
    reason: str


class Parts:
    """The records in `folder`, of all processes; `refresh` takes in what has come since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, Place] = {}
        self._files: list[Path] = []
        self._read: list[int] = []
        """Bytes of each that are known."""
        self._open: dict[int, IO[bytes]] = {}

    def refresh(self) -> bool:
        """Whether there was anything new."""
        for path in sorted(self.folder.glob("*.part")):
            if path not in self._files:
                self._files.append(path)
                self._read.append(0)
        grown = False
        for part, path in enumerate(self._files):
            for start, end, body in _records(path, self._read[part]):
                name, place = _place(body, part, start, end)
                self.places[name] = place
                self._read[part] = end
                grown = True
        return grown

    def made(self, place: Place) -> Made:
        """The record there."""
        file = self._open.get(place.part)
        if file is None:
            file = self._open[place.part] = self._files[place.part].open("rb")
        file.seek(place.start + HEAD)
        return _unpacked(file.read(place.end - place.start - HEAD))

    def close(self) -> None:
        """Lets go of the files that `made` has opened."""
        while self._open:
            self._open.popitem()[1].close()

    def done(self, images: Files, index: int) -> bool:
        """Whether there is a record of the image, made of a file of this length."""
        place = self.places.get(images.name(index))
        if place is None:
            return False
        try:
            return images.path(index).stat().st_size == place.stamp.length
        except OSError:
            return place.stamp.length < 0


class Part:
    """The growing file of one process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            ends = [end for _, end, _ in _records(path, 0)]
            os.truncate(path, ends[-1] if ends else 0)
        self._file = path.open("ab")

    def add(self, made: Made) -> None:
        body = _packed(made)
        self._file.write(len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def join(parts: Parts, images: Files, file: IO[bytes], generator: dict[str, Any]) -> None:
    """Writes the proposals of `images`, which all have records, in their order. Holds one image's boxes at a time."""
    places = [parts.places[images.name(i)] for i in range(len(images))]
    count = len(places)
    first = np.concatenate([[0], np.cumsum([p.count for p in places], dtype=np.int64)]).astype(np.int64)
    pixels = np.array([(p.width, p.height) for p in places], dtype=np.uint32).reshape(count, 2)
    kind = np.dtype(np.uint32 if (pixels > np.iinfo(np.uint16).max).any() else np.uint16)
    bad = {images.name(row): place.reason for row, place in enumerate(places) if place.reason}
    names = Names.of(images.names[i] for i in range(count))
    arrays: dict[str, NDArray[Any]] = {
        "first": first,
        "length": np.array([p.stamp.length for p in places], dtype=np.int64),
        "digest": np.array([p.stamp.digest for p in places], dtype=np.uint64),
        "ends": names.ends,
        "pixels": pixels,
    }
    text = np.frombuffer(names.block, dtype=np.uint8)
    shapes = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    shapes |= {"boxes": (kind, (int(first[-1]), 4)), "names": (text.dtype, text.shape)}
    about = {"generator": generator, "fingerprint": images.fingerprint(), "bad_images": bad}
    write_header(file, shapes, about)
    for array in arrays.values():
        file.write(array.tobytes())
    for place in places:
        rects = parts.made(place).rects
        file.write(np.concatenate([rects[:, :2], rects[:, :2] + rects[:, 2:]], axis=1).astype(kind).tobytes())
    file.write(text.tobytes())


def kept(table: Table, row: int) -> Made:
    """A row of a finished file as a record."""
    boxes = np.asarray(table.boxes[table.first[row] : table.first[row + 1]], dtype=np.int64)
    stamp, (width, height) = Stamp(int(table.length[row]), int(table.digest[row])), table.pixels[row].tolist()
    rects = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    name = table.names[row]
    return Made(name, stamp, width, height, rects, table.bad.get(name, ""))


def _packed(made: Made) -> bytes:
    head = {
        "name": made.name,
        "length": made.stamp.length,
        "digest": made.stamp.digest,
        "width": made.width,
        "height": made.height,
        "count": len(made.rects),
        "reason": made.reason,
    }
    return json.dumps(head).encode() + b"\n" + made.rects.astype("<u4").tobytes()


def _place(body: bytes, part: int, start: int, end: int) -> tuple[str, Place]:
    head = json.loads(body.partition(b"\n")[0])
    stamp = Stamp(head["length"], head["digest"])
    return head["name"], Place(
        part, start, end, stamp, head["width"], head["height"], head["count"], head["reason"]
    )


def _unpacked(body: bytes) -> Made:
    line, _, boxes = body.partition(b"\n")
    head = json.loads(line)
    return Made(
        name=head["name"],
        stamp=Stamp(head["length"], head["digest"]),
        width=head["width"],
        height=head["height"],
        rects=np.frombuffer(boxes, dtype="<u4").reshape(-1, 4).astype(np.int64),
        reason=head["reason"],
    )


def _records(path: Path, start: int) -> Iterator[tuple[int, int, bytes]]:
    """Start, end and body of each whole record from `start` on."""
    with path.open("rb") as file:
        file.seek(start)
        while len(head := file.read(HEAD)) == HEAD:
            size, checksum = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
            body = file.read(size)
            if len(body) < size or zlib.crc32(body) != checksum:
                return
            yield start, start + HEAD + size, body
            start += HEAD + size
