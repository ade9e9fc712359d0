"""PASCAL VOC: an XML file an image, lists of images a split; boxes are 1-based and hold their last pixel."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from boxwise.data.coco_boxes import ORIGIN
from boxwise.data.coco_files import OUTSIDE, Json
from boxwise.data.listing import scan
from boxwise.data.problems import Problems

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
"""Of the challenge, in its order."""
YEAR = re.compile(r"VOC20\d\d")
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".webp", ".tif", ".tiff")
SIDES = ("xmin", "ymin", "xmax", "ymax")
LAYOUT = (
    "Annotations/*.xml, JPEGImages/* and ImageSets/Main/{train,val}.txt, one or several such folders VOC20??"
)


def voc_folders(root: Path) -> list[Path]:
    """The folders of the years in `root`, or in its VOCdevkit; `root` itself where it is one."""
    root = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    if _is_one(root):
        return [root]
    return [folder for folder in sorted(root.glob("VOC20[0-9][0-9]")) if _is_one(folder)]


def voc_images(root: Path) -> Path:
    """The folder that names of images start from."""
    folders = voc_folders(root)
    return folders[0] / "JPEGImages" if len(folders) == 1 else folders[0].parent


def voc_names(root: Path) -> list[str]:
    """The images to train on, relative to `voc_images`: those of the lists, or all where there are no lists."""
    folders, problems = voc_folders(root), Problems(root)
    if not any((folder / "ImageSets" / "Main").is_dir() for folder in folders):
        return scan(voc_images(root)).images
    names = [
        _within(folders, folder, _picture(folder / "JPEGImages", name))
        for folder, file in _lists(root, folders, "train")
        for name in _names(file, problems)
    ]
    problems.check()
    return names


def read_voc(root: Path, split: Literal["train", "val"]) -> tuple[Json, str]:
    """One split as COCO writes it, and a digest of lists and annotations.

    Of several years, trainval of each is to train on, and test of the first to measure on: 07+12 and test2007. So
    it is with one folder that has a test.txt; without one, train.txt and val.txt. Images and annotations are
    numbered from 1. Annotations carry `difficult` and their origin. Raises ValueError for all that is wrong in
    lists and files.
    """
    folders = voc_folders(root)
    digest, problems = hashlib.blake2b(digest_size=16), Problems(root)
    images: list[Json] = []
    found: list[list[Json]] = []
    for folder, file in _lists(root, folders, split):
        for name in _names(file, problems):
            digest.update(name.encode(errors="surrogateescape"))
            path = folder / "Annotations" / f"{name}.xml"
            image, objects = _read_xml(path, digest, problems)
            within = _within(folders, folder, _picture(folder / "JPEGImages", name))
            images.append({"id": len(images) + 1, "file_name": within, **image})
            found.append(objects)
    problems.check()
    names = _categories(folders, {o["name"] for objects in found for o in objects})
    ids = {name: k for k, name in enumerate(names, start=1)}
    annotations: list[Json] = []
    for image, objects in zip(images, found, strict=True):
        for o in objects:
            about = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": ids[o.pop("name")]}
            annotations.append(about | o)
    categories = [{"id": k, "name": name} for name, k in ids.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return content, digest.hexdigest()


def _is_one(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def _lists(root: Path, folders: list[Path], split: Literal["train", "val"]) -> Iterator[tuple[Path, Path]]:
    """Each folder of a split with its list. Raises ValueError where one is missing."""
    first = folders[0]
    tested = len(folders) > 1 or _list(first, "test").is_file()
    names = {"train": "trainval", "val": "test"} if tested else {"train": "train", "val": "val"}
    for folder in folders if split == "train" else [first]:
        file = _list(folder, names[split])
        if not file.is_file():
            raise ValueError(
                f"{file}: no such list; {root} needs it for its {split} split (names of images, one a line; "
                f"VOC's own archives of trainval and test hold it). Accepted: {LAYOUT}"
            )
        yield folder, file


def _list(folder: Path, name: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{name}.txt"


def _names(file: Path, problems: Problems) -> Iterator[str]:
    """Without the -1, 0 or 1 that lists of one class state behind each name."""
    for line in file.read_text(errors="surrogateescape").splitlines():
        name = re.sub(r"\s+-?[01]$", "", line.strip())
        if name and OUTSIDE.match(name):
            mend = "name files of Annotations/ without folder and ending"
            problems.add("names that are absolute or contain ..", f"{file}: {name!r}", mend=mend)
        elif name:
            yield name


def _within(folders: list[Path], folder: Path, picture: str) -> str:
    """The name of a picture of one of the folders, which only of several states its year."""
    return f"{folder.name}/JPEGImages/{picture}" if len(folders) > 1 else picture


def _picture(folder: Path, name: str) -> str:
    """With the ending that the file has; .jpg where there is none, so that it is missed by that name."""
    there = (name + suffix for suffix in SUFFIXES if (folder / (name + suffix)).is_file())
    return next(there, f"{name}.jpg")


def _read_xml(path: Path, digest: hashlib.blake2b, problems: Problems) -> tuple[Json, list[Json]]:
    """Size of the image and its objects; nothing where `problems` got what is wrong."""
    try:
        content = path.read_bytes()
    except OSError as error:
        mend = "put it there, or take its name off the list"
        problems.add("annotations that cannot be read", f"{path} ({error.strerror})", mend=mend)
        return {}, []
    digest.update(content)
    try:
        top = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctype()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        problems.add("annotations that are no plain XML", f"{path} ({error})", mend="write them anew")
        return {}, []
    objects = []
    for number, held in enumerate(top.iter("object"), start=1):
        name = (held.findtext("name") or "").strip()
        sides = [_number(held.findtext(f"bndbox/{side}")) for side in SIDES]
        if not name or None in sides:
            mend = "each <object> needs <name> and <bndbox> with xmin, ymin, xmax, ymax"
            problems.add("objects without name or box", f"{path}, object {number}", mend=mend)
            continue
        left, top_, right, bottom = (side or 0.0 for side in sides)
        width, height = right - left + 1, bottom - top_ + 1
        flag = int(_number(held.findtext("difficult")) == 1)
        box = {"bbox": [left - 1, top_ - 1, width, height], "area": width * height}
        corners = zip(SIDES, (left, top_, right, bottom), strict=True)
        read = ", ".join(f"{side} {value:g}" for side, value in corners)
        where = {ORIGIN: f"{path}, object {number} ({read})"}
        objects.append({"name": name, **box, "iscrowd": 0, "difficult": flag, **where})
    sizes = {key: _number(top.findtext(f"size/{key}")) for key in ("width", "height")}
    return {key: int(value) for key, value in sizes.items() if value}, objects


class _NoDoctype(ElementTree.TreeBuilder):
    """Entities, which can grow without bound or read files, are declared in a DOCTYPE: there is to be none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("a DOCTYPE, which is not accepted")


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _categories(folders: list[Path], met: set[str]) -> Iterable[str]:
    """VOC's own where they are all there is, else every name in the folders, sorted: equal in each split."""
    if all(YEAR.fullmatch(folder.name) for folder in folders) and met <= set(CLASSES):
        return CLASSES
    quiet = Problems(folders[0])
    files = (file for folder in folders for file in sorted((folder / "Annotations").glob("*.xml")))
    every = (o["name"] for file in files for o in _read_xml(file, hashlib.blake2b(), quiet)[1])
    return sorted(met.union(every))
