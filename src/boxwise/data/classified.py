"""Pictures with one class each, in folders named after the classes; and what is measured on where no split says so."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from boxwise.data.decode import FORMATS
from boxwise.data.formats.layouts import holds_labels
from boxwise.data.listing import SUFFIXES, Scan, scan
from boxwise.data.names import Names, draw
from boxwise.data.problems import Problems
from boxwise.data.sources import Files, open_images, refuse_unreadable
from boxwise.shapes import Picture

__all__ = ["Classified", "open_classified", "open_held_out"]

SPLITS = ("val", "valid", "validation", "test")
"""Folders beside train/; the first that is there is measured on."""
ACCEPTED = (
    "--data takes a folder that holds a folder of images for each class, or train/ and val/ that do (ImageNet's "
    "layout); --val takes a folder of class folders"
)


@dataclass(frozen=True, slots=True, eq=False)
class Classified:
    """Pictures with one class each. Cheap to send to worker processes."""

    files: Files
    labels: Int64[np.ndarray, " n"]
    """Of each file, its place in `classes`."""
    classes: tuple[str, ...]
    """Names of the folders of the training side, sorted."""

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Picture:
        """Raises BadImage where the file gives no picture."""
        return self.files.read(index)

    def name(self, index: int) -> str:
        """The file, relative to the folder of class folders, with forward slashes."""
        return self.files.name(index)

    def path(self, index: int) -> Path:
        return self.files.path(index)

    def fingerprint(self) -> str:
        """Of the names and sizes of the files and their labels, in order; equal for a copy at another place."""
        digest = hashlib.blake2b(self.files.fingerprint().encode(), digest_size=16)
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | Int64[np.ndarray, " k"]) -> Classified:
        """The images at these places, in this order; the classes stay."""
        places = np.asarray(indices, dtype=np.int64)
        return replace(self, files=self.files.subset(places), labels=self.labels[places])


def open_classified(
    data: Path | str,
    *,
    val: Path | str | None = None,
    held_out: float,
    seed: int,
    max_value: int | None = None,
) -> tuple[Classified, Classified]:
    """What is trained on and what is measured on, of a folder of class folders or of train/ and a split beside it.

    `val`, a folder of class folders, is measured on in place of the split. Without either the share `held_out` of
    each class is, by `draw` with `seed`: at least one image and never all, none of a class of one image. All
    images below the folder of a class are of that class. Raises ValueError with path and mend for other layouts,
    for fewer than two classes, for classes to measure on that are not trained on, and where no image can be read.
    """
    data = Path(data)
    _check_folder(data)
    if holds_labels(data):
        raise ValueError(f"{data}: a root of images with boxes, not of class folders; {ACCEPTED}")
    train, measured = _sides(data, val)
    if measured is None:
        _check_share(data, held_out)
        every = _opened(train, max_value=max_value)
        kept, held = _held_out(every.files.names, every.labels, share=held_out, seed=seed)
        if not len(held):
            raise ValueError(
                f"{train}: no class has two images, one of them to measure on; add some or pass --val"
            )
        return every.subset(kept), every.subset(held)
    _check_folder(measured)
    trained = _opened(train, max_value=max_value)
    against = _opened(measured, max_value=max_value, classes=trained.classes)
    _check_apart(trained.files, against.files)
    return trained, against


def open_held_out(
    data: Path | str,
    *,
    images: Path | str | None = None,
    val: Path | str | None,
    held_out: float,
    seed: int,
    max_value: int | None = None,
) -> tuple[Files, Files]:
    """What is trained on and what is measured on, of all that `open_images` takes, labels unread.

    A plain folder that holds train/ and a split beside it is those two. `val`, anything that `open_images` takes
    too (as a json with the same `images`), is measured on in place of the split. Without either the share
    `held_out` is, by `draw` with `seed`. Raises ValueError as `open_images` does, and where a side would be empty.
    """
    data = Path(data)
    if data.is_dir() and not holds_labels(data) and (data / "train").is_dir() and (split := _split(data)):
        data, val = data / "train", split if val is None else val
    if val is not None:
        trained = open_images(data, images=images, max_value=max_value)
        named = images if Path(val).suffix.lower() == ".json" else None
        against = open_images(val, images=named, max_value=max_value)
        _check_apart(trained, against)
        return trained, against
    _check_share(data, held_out)
    every = open_images(data, images=images, max_value=max_value)
    kept, held = _held_out(every.names, np.zeros(len(every), dtype=np.int64), share=held_out, seed=seed)
    if not len(held):
        raise ValueError(f"{data}: one image, and another is needed to measure on; add images or pass --val")
    return every.subset(kept), every.subset(held)


def _held_out(
    names: Iterable[str], groups: Int64[np.ndarray, " n"], *, share: float, seed: int
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " h"]]:
    """Places to train on, and those held out of their groups. A name that a list repeats is on one side."""
    members: defaultdict[int, dict[str, None]] = defaultdict(dict)
    names = list(names)
    for name, group in zip(names, groups.tolist(), strict=True):
        members[group][name] = None
    held = set[str]()
    for own in map(list, members.values()):
        count = min(max(1, round(share * len(own))), len(own) - 1)
        held.update(own[k] for k in draw(own, count, seed=seed))
    out = np.array([name in held for name in names], dtype=np.bool_)
    return np.flatnonzero(~out), np.flatnonzero(out)


def _sides(data: Path, val: Path | str | None) -> tuple[Path, Path | None]:
    """The folders of class folders to train on and to measure on, the second where there is one."""
    split = None if val is None else Path(val)
    if not (data / "train").is_dir():
        return data, split
    found, others = _split(data), [name for name in _folders(data) if name != "train"]
    if others and found is None:  # trains may be among the things to tell apart
        if inside := _folders(data / "train"):
            raise ValueError(
                f"{data}: train/ may be a split (it holds {inside[0]}/) or a class (beside it lies {others[0]}/); "
                f"pass --data {data / 'train'} if it is a split, or rename it"
            )
        return data, split
    return data / "train", split or found


def _split(root: Path) -> Path | None:
    return next((root / name for name in SPLITS if (root / name).is_dir()), None)


def _opened(root: Path, *, max_value: int | None, classes: tuple[str, ...] = ()) -> Classified:
    """All images of the class folders of `root`, in `classes` or else its own."""
    found, folders = scan(root), _folders(root)
    _check_layout(root, found, folders)
    classes = classes or tuple(folders)
    if len(classes) < 2:
        raise ValueError(
            f"{root}: one class ({classes[0]}), and two are needed; add class folders. {ACCEPTED}"
        )
    number, problems = {name: k for k, name in enumerate(classes)}, Problems(root)
    for name in sorted(set(folders) - set(classes)):
        mend = "name the folders as those that are trained on, or remove them"
        problems.add("classes that are not trained on", name, mend=mend)
    problems.check()
    labels = np.array([number[name.partition("/")[0]] for name in found.images], dtype=np.int64)
    files = Files(root, Names.of(found.images), max_value)
    refuse_unreadable(root, len(files), files.path, max_value=max_value)
    return Classified(files, labels, classes)


def _folders(root: Path) -> list[str]:
    """Folders in `root` as `scan` sees them, sorted; a link to a folder that is gone is one without images."""
    with os.scandir(root) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        return sorted(entry.name for entry in shown if entry.is_dir() or _lost(entry))


def _lost(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not entry.is_file() and Path(entry.name).suffix.lower() not in SUFFIXES


def _check_layout(root: Path, found: Scan, folders: list[str]) -> None:
    direct = [name for name in found.images if "/" not in name]
    if not folders:
        lying = f", but {len(direct)} images such as {direct[0]}" if direct else ""
        mend = "sort the images into a folder for each class, as those of ImageNet's val split must be too"
        raise ValueError(f"{root}: no class folders{lying}; {mend}. {ACCEPTED}")
    problems = Problems(root)
    for name in direct:
        mend = "move each into the folder of its class, or away"
        problems.add("images beside the class folders", name, mend=mend)
    for name in sorted(set(folders) - {name.partition("/")[0] for name in found.images}):
        other = next((other for other in found.others if other.startswith(f"{name}/")), None)
        mend = f"remove the folder, or put images into it (accepted are {FORMATS})"
        example = name if other is None else f"{name} (only others such as {other})"
        problems.add("class folders without images", example, mend=mend)
    problems.check()


def _check_folder(place: Path) -> None:
    if not place.is_dir():
        there = "a file, not a folder" if place.exists() else "no such folder"
        raise ValueError(f"{place}: {there}; {ACCEPTED}")


def _check_share(data: Path, held_out: float) -> None:
    if not 0 < held_out < 1:
        raise ValueError(
            f"{data}: held_out is {held_out}; pass a share above 0 and below 1, or images to measure on as --val"
        )


def _check_apart(trained: Files, against: Files) -> None:
    """Raises ValueError if some images are on both sides; that both sides are the same images may be wanted."""
    places = {path: index for index, path in enumerate(_paths(against))}
    both = [places[path] for path in _paths(trained) if path in places]
    problems = Problems(against.root)
    for index in both if not len(both) == len(trained) == len(against) else ():
        mend = f"pass others as --val, or move them out of {trained.root}"
        problems.add("images that are trained on too", against.name(index), mend=mend)
    problems.check()


def _paths(files: Files) -> Iterable[str]:
    """Equal for the same file, whatever links lead to the root."""
    root = os.path.realpath(files.root)
    return (os.path.normpath(os.path.join(root, name)) for name in files.names)
