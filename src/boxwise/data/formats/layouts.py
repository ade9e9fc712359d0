"""Which layout a path holds, and where its labels and images are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from boxwise.data.coco import Format, Reader
from boxwise.data.coco_files import coco_split, image_folder, image_names, is_coco_root, read_json
from boxwise.data.formats import cityscapes, lvis, voc, yolo
from boxwise.data.listing import scan

LABELLED = (
    "--data takes a COCO root (annotations/instances_train*.json with train*/, val likewise), or FILE.json "
    f"with --images DIR and --val FILE.json; LVIS ({lvis.LAYOUT}); VOC ({voc.LAYOUT}); Cityscapes "
    f"({cityscapes.LAYOUT}); YOLO ({yolo.LAYOUT})"
)


@dataclass(frozen=True, slots=True)
class Source:
    """Labels of one split, still unread."""

    format: Format
    file: Path
    """What messages name."""
    folder: Path
    """Names of images are relative to it."""
    reader: Reader


def find_source(
    data: Path,
    split: Literal["train", "val"],
    *,
    images: Path | str | None = None,
    val: Path | str | None = None,
    extras: Collection[str] = (),
) -> Source:
    """Raises ValueError that names what is accepted where `data` holds none of it, or its parts are missing."""
    if not data.is_dir() and data.suffix.lower() == ".json":
        return _json(Path(val) if split == "val" and val is not None else data, images)
    found = _root(data, split, extras)
    if found is None:
        there = "no labels here" if data.exists() else "no such file or folder"
        raise ValueError(f"{data}: {there}; {LABELLED}")
    if images is not None or val is not None:
        raise ValueError(f"{data}: --images and --val go with --data FILE.json; {LABELLED}")
    return found


def holds_labels(data: Path) -> bool:
    """Whether `data` is meant to hold labels, if not whole ones; a folder of images or a list file is not."""
    if not data.is_dir() and data.suffix.lower() != ".txt":
        return True
    try:
        return any(_root(data, split, ()) is not None for split in ("train", "val"))
    except ValueError:  # of a layout that lacks a part
        return True


def _json(file: Path, images: Path | str | None) -> Source:
    if file.name.startswith("lvis_"):
        folder = lvis.lvis_images(file) if images is None else image_folder(file, images)
        return Source("lvis", file, folder, partial(lvis.read_lvis, file))
    return Source("coco", file, image_folder(file, images), partial(read_json, file))


def _root(data: Path, split: Literal["train", "val"], extras: Collection[str]) -> Source | None:
    if is_coco_root(data):
        found = coco_split(data, split, extras=extras)
        return Source("coco", found.file, found.folder, partial(read_json, found.file))
    if file := lvis.lvis_file(data, split):
        return Source("lvis", file, lvis.lvis_images(file), partial(lvis.read_lvis, file))
    if voc.voc_folders(data):
        return Source("voc", data, voc.voc_images(data), partial(voc.read_voc, data, split))
    if cityscapes.is_cityscapes(data):
        return Source("cityscapes", data, data, partial(cityscapes.read_cityscapes, data, split))
    if file := yolo.yolo_file(data):
        return Source("yolo", file, yolo.yolo_root(file), partial(yolo.read_yolo, file, split))
    return None


def train_images(root: Path) -> tuple[Path, list[str]] | None:
    """Folder and names of the images of a root's train split, labels unread; none for other folders than a root of
    LVIS, VOC, Cityscapes or YOLO."""
    if file := lvis.lvis_file(root, "train"):
        folder = lvis.lvis_images(file)
        return folder, image_names(lvis.read_lvis(file)[0], file, folder)
    if voc.voc_folders(root):
        return voc.voc_images(root), voc.voc_names(root)
    if cityscapes.is_cityscapes(root):
        folder = root / "leftImg8bit" / "train"
        return folder, scan(folder).images
    if file := yolo.yolo_file(root):
        return yolo.yolo_root(file), yolo.yolo_names(file)
    return None
