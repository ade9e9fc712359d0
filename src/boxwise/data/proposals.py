"""Proposed boxes of a whole image set in one file: written once, mapped into memory by every worker.

The file is a safetensors file, so that anything can read it and nothing in it can run. Of n images with m boxes:

    boxes    uint16 (m, 4)   xyxy, source pixels, right and bottom exclusive; uint32 where an image is that large
    first    int64 (n + 1)   boxes first[i] to first[i + 1] are those of image i; none stand for the whole image
    pixels   uint32 (n, 2)   width and height; 0 where the file could not be read
    length   int64 (n)       bytes of the image file
    digest   uint64 (n)      of its length and its first and last 4096 bytes
    ends     int64 (n)       where each name ends in `names`
    names    uint8           paths relative to the data's root, one after the other

and, as JSON under "boxwise" in its metadata: the generator with its settings, the set's fingerprint, images that could
not be read with their reasons. A box takes 8 bytes, an image about 80 besides: 1.3 million images of 60 boxes, 0.7 GB.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from boxwise.data.names import Names
from boxwise.data.sources import Files

FORMAT = 1
KINDS = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64, "I64": np.int64}
CODES = {np.dtype(kind): code for code, kind in KINDS.items()}
FACTS = {"format", "generator", "fingerprint", "bad_images"}
EDGE = 4096
"""Bytes at either end of an image file that its digest covers."""
SAMPLE = 64
"""Images whose digests are compared when a file is opened, spread over the set; `check` compares all."""
SHOWN = 3
AGAIN = "; bring it up to date with boxwise proposals --overwrite, which keeps the boxes of all other images"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells an image file from another at the cost of two short reads."""

    length: int
    digest: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Raises OSError."""
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(str(length).encode(), digest_size=8)
            digest.update(file.read(EDGE))
            if length > EDGE:
                file.seek(max(EDGE, length - EDGE))
                digest.update(file.read(EDGE))
        return cls(length, int.from_bytes(digest.digest(), "little"))


class Table:
    """A proposal file as arrays that are read from the disk when they are looked at.

    Raises ValueError, on opening, for anything that `write` has not made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        about, arrays = _mapped(path)
        self.generator: dict[str, Any] = about["generator"]
        self.fingerprint: str = about["fingerprint"]
        self.bad: dict[str, str] = about["bad_images"]
        self.boxes, self.first = arrays["boxes"], arrays["first"]
        self.pixels, self.length, self.digest = arrays["pixels"], arrays["length"], arrays["digest"]
        self.names = Names(bytes(arrays["names"]), arrays["ends"])

    def __len__(self) -> int:
        return len(self.length)

    def rows(self, images: Files) -> Int64[np.ndarray, " n"]:
        """The row of each image, -1 where there is none of that name."""
        own, theirs = self.names, images.names
        if own.block == theirs.block and np.array_equal(own.ends, theirs.ends):
            return np.arange(len(theirs))
        row_of = {own[row]: row for row in range(len(own))}
        return np.array([row_of.get(theirs[i], -1) for i in range(len(theirs))], dtype=np.int64)

    def holds(self, row: int, path: Path) -> bool:
        """Whether the file at `path` is the one that the boxes of `row` were made for."""
        try:
            return Stamp.of(path) == Stamp(int(self.length[row]), int(self.digest[row]))
        except OSError:
            return bool(self.length[row] < 0)


class Proposals:
    """The boxes of an image set, by the index of the image. Crosses to other processes as a path."""

    def __init__(self, path: Path, rows: Int64[np.ndarray, " n"] | None) -> None:
        self.path, self.table = path, Table(path)
        self._rows = rows
        """None: the file's own order."""

    @classmethod
    def open(cls, path: Path | str, images: Files) -> Proposals:
        """The proposals in `path` for `images`.

        Raises ValueError that says which images the file lacks, and which have changed since: by length, and for
        `SAMPLE` of them by content.
        """
        path = Path(path)
        table = Table(path)
        rows = table.rows(images)
        _refuse_missing(path, table, images, rows)
        if table.fingerprint != images.fingerprint():
            changed = [i for i in range(len(rows)) if _length(images.path(i)) != table.length[rows[i]]]
            _refuse_changed(path, images, changed)
        tried = sorted({k * len(rows) // SAMPLE for k in range(SAMPLE)}) if len(rows) else []
        _refuse_changed(path, images, [i for i in tried if not table.holds(int(rows[i]), images.path(i))])
        straight = len(rows) == len(table) and bool((rows == np.arange(len(rows))).all())
        return cls(path, None if straight else rows)

    def __len__(self) -> int:
        return len(self.table) if self._rows is None else len(self._rows)

    def boxes(self, index: int) -> Float32[np.ndarray, "N 4"]:
        """xyxy, source pixels, right and bottom exclusive; none where the whole image is the only proposal."""
        row = index if self._rows is None else int(self._rows[index])
        table = self.table
        return np.asarray(table.boxes[table.first[row] : table.first[row + 1]], dtype=np.float32)

    def __getstate__(self) -> tuple[Path, Int64[np.ndarray, " n"] | None]:
        return self.path, self._rows

    def __setstate__(self, state: tuple[Path, Int64[np.ndarray, " n"] | None]) -> None:
        self.__init__(*state)  # type: ignore[misc]


def write_header(
    file: IO[bytes], arrays: Mapping[str, tuple[np.dtype[Any], Sequence[int]]], about: Any
) -> None:
    """The head of a safetensors file; the bytes of `arrays` follow in their order."""
    head: dict[str, Any] = {"__metadata__": {"boxwise": json.dumps({"format": FORMAT, **about})}}
    at = 0
    for name, (dtype, shape) in arrays.items():
        end = at + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        head[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def _mapped(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Metadata and arrays of `path`, with their sizes agreeing."""
    wrong = f"{path}: not a file of proposals"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; make it with boxwise proposals DATA --out {path}")
    try:
        with safe_open(path, framework="numpy"):  # checks that the arrays lie within the file, without a gap
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(size))
        about = json.loads(head.pop("__metadata__")["boxwise"])
        arrays = {name: _array(path, 8 + size, one) for name, one in head.items()}
        whole = about["format"] == FORMAT and _agree(arrays) and about.keys() >= FACTS
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{wrong} ({type(error).__name__}: {error}); make it with boxwise proposals"
        ) from None
    if not whole:
        raise ValueError(f"{wrong} of this version of boxwise; make it again with boxwise proposals")
    return about, arrays


def _array(path: Path, start: int, one: dict[str, Any]) -> NDArray[Any]:
    shape, kind = tuple(one["shape"]), KINDS[one["dtype"]]
    if 0 in shape:  # nothing to map
        return np.zeros(shape, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r", offset=start + one["data_offsets"][0], shape=shape)


def _agree(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether every row has its values, and ends rise to the length of what they cut."""
    n, first, ends = len(arrays["length"]), arrays["first"], arrays["ends"]
    shapes = {"first": (n + 1,), "pixels": (n, 2), "length": (n,), "digest": (n,), "ends": (n,)}
    return bool(
        all(arrays[name].shape == shape for name, shape in shapes.items())
        and first.dtype == ends.dtype == np.int64
        and arrays["boxes"].shape[1:] == (4,)
        and arrays["names"].ndim == 1
        and first[0] == 0
        and first[-1] == len(arrays["boxes"])
        and (np.diff(first) >= 0).all()
        and (np.diff(ends, prepend=0) >= 0).all()
        and (ends[-1] if n else 0) == len(arrays["names"])
    )


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _refuse_missing(path: Path, table: Table, images: Files, rows: NDArray[np.int64]) -> None:
    lacking = np.flatnonzero(rows < 0)
    if not len(lacking):
        return
    names = ", ".join(images.name(int(i)) for i in lacking[:SHOWN])
    more = ", ..." if len(lacking) > SHOWN else ""
    root = (
        f"; it names images such as {table.names[0]}: was it made for another folder?" if len(table) else ""
    )
    raise ValueError(
        f"{path}: no proposals for {len(lacking)} of {len(images)} images ({names}{more})"
        f"{root if len(lacking) == len(images) else AGAIN}"
    )


def _refuse_changed(path: Path, images: Files, changed: Sequence[int]) -> None:
    if changed:
        names = ", ".join(images.name(i) for i in changed[:SHOWN])
        more = ", ..." if len(changed) > SHOWN else ""
        raise ValueError(
            f"{path}: {len(changed)} images have changed since their boxes were made ({names}{more}){AGAIN}"
        )
