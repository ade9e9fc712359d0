"""What an image set is: a folder, a list file, the train split of a labelled set, or a COCO json with its images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from boxwise.data.coco_files import coco_split, image_folder, image_names, is_coco_root, read_json
from boxwise.data.decode import FORMATS, BadImage, decode
from boxwise.data.formats.layouts import train_images
from boxwise.data.listing import read_list, scan
from boxwise.data.names import Names
from boxwise.shapes import Picture

__all__ = ["BadImage", "Files", "Images", "decode", "open_images"]

ACCEPTED = (
    "--data takes a folder of images (nested as you like), a list file (.txt) of files and folders, a COCO "
    "root (annotations/instances_train*.json), a root of LVIS, VOC, Cityscapes or YOLO, or FILE.json with "
    "--images DIR"
)
TRIED = 32
"""Pictures tried before a whole set counts as unreadable."""


@runtime_checkable
class Images(Protocol):
    """Pictures in a fixed order. Cheap to send to worker processes."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Picture:
        """Raises BadImage where the file gives no picture."""
        ...

    def name(self, index: int) -> str:
        """The file, relative to the root of the set, with forward slashes."""
        ...

    def fingerprint(self) -> str:
        """Changes when files come, go, or change their names or sizes."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """Image files below `root`; an absolute name stands for itself."""

    root: Path
    names: Names
    max_value: int | None = None
    """The white of 16-bit images."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Picture:
        return decode(self.path(index), max_value=self.max_value)

    def name(self, index: int) -> str:
        return self.names[index]

    def path(self, index: int) -> Path:
        return self.root / self.names[index]

    def fingerprint(self) -> str:
        """Of the names and sizes of the files in their order; equal for a copy at another place."""
        return fingerprint(self.root, self.names)

    def subset(self, indices: Sequence[int] | Int64[np.ndarray, " k"]) -> Files:
        """The files at these places, in this order."""
        return replace(self, names=Names.of(self.names[int(index)] for index in indices))


def open_images(data: Path | str, *, images: Path | str | None = None, max_value: int | None = None) -> Files:
    """The pictures of a folder and all below it, a list file, the train split of a root of COCO, LVIS, VOC,
    Cityscapes or YOLO, or a COCO json.

    `images` is the folder of the files that a json names. Raises ValueError with path and mend where there is
    nothing to read: no such place, no images, or none among `TRIED` that can be decoded.
    """
    data = Path(data)
    kind = data.suffix.lower()
    if images is not None and (kind != ".json" or data.is_dir()):
        raise ValueError(f"{data}: --images goes with --data FILE.json only; {ACCEPTED}")
    if data.is_dir():
        root, names = _coco_train(data) if is_coco_root(data) else train_images(data) or _folder(data)
    elif not data.exists():
        raise ValueError(f"{data}: no such file or folder; {ACCEPTED}")
    elif kind == ".json":
        root, names = _json(data, images)
    elif kind == ".txt":
        root, names = data.parent, read_list(data)
    elif listed := train_images(data):
        root, names = listed
    else:
        raise ValueError(f"{data}: neither a folder nor a .txt, .json or .yaml file; {ACCEPTED}")
    if not names:
        raise ValueError(f"{data}: names no images; {ACCEPTED}")
    found = Files(root, Names.of(names), max_value)
    refuse_unreadable(data, len(found), found.path, max_value=max_value)
    return found


def refuse_unreadable(data: Path, count: int, path: Callable[[int], Path], *, max_value: int | None) -> None:
    """Raises ValueError if no picture of up to `TRIED`, evenly spread over `count`, can be decoded."""
    if max_value is not None and max_value < 1:
        raise ValueError(
            f"max_value is {max_value}; it is the value of white in 16-bit images, 4095 for 12 bits"
        )
    tried = sorted({i * count // TRIED for i in range(TRIED)})
    first: BadImage | None = None
    for index in tried:
        try:
            decode(path(index), max_value=max_value)
            return
        except BadImage as bad:
            first = first or bad
    raise ValueError(
        f"{data}: none of {len(tried)} images tried can be read (the first: {first}); accepted are {FORMATS}"
    )


def fingerprint(root: Path, names: Names) -> str:
    """32 hexadecimal digits of names and file sizes, in order."""
    sizes = np.array([_size(root / names[i]) for i in range(len(names))], dtype=np.int64)
    digest = hashlib.blake2b(names.block, digest_size=16)
    digest.update(names.ends.tobytes())
    digest.update(sizes.tobytes())
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _folder(folder: Path) -> tuple[Path, list[str]]:
    found = scan(folder)
    if not found.images:
        others = f", only others such as {found.others[0]}" if found.others else ""
        raise ValueError(f"{folder}: no images{others}; accepted are {FORMATS}. {ACCEPTED}")
    return folder, found.images


def _coco_train(root: Path) -> tuple[Path, list[str]]:
    """A folder of train images is taken whole; of a folder that splits share, what the json names."""
    split = coco_split(root, "train")
    return _json(split.file, split.folder) if split.shared else _folder(split.folder)


def _json(file: Path, images: Path | str | None) -> tuple[Path, list[str]]:
    folder = image_folder(file, images)
    return folder, image_names(read_json(file)[0], file, folder)
