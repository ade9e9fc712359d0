"""LVIS v1: COCO's own photos, named by their address, with 1203 categories of which each image states a few."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from boxwise.data.coco_files import Json, entries, read_json

LAYOUT = (
    "lvis_v1_{train,val}.json, there or in annotations/, with train2017/ and val2017/ there or in images/"
)


def lvis_file(root: Path, split: Literal["train", "val"]) -> Path | None:
    """The lvis_v1_SPLIT.json of `root`."""
    places = (root, root / "annotations")
    return next((f for p in places if (f := p / f"lvis_v1_{split}.json").is_file()), None)


def lvis_images(file: Path) -> Path:
    """Where COCO's train2017/ lies, beside the json or in the folder around it. Raises ValueError where not."""
    for folder in (file.parent, file.parent.parent):
        for place in (folder, folder / "images"):
            if any((place / name).is_dir() for name in ("train2017", "val2017")):
                return place
    raise ValueError(
        f"{file}: COCO's train2017/ and val2017/ are not beside it; put or link them there, or pass "
        "--data FILE.json --images DIR, DIR the folder of both"
    )


def read_lvis(file: Path) -> tuple[Json, str]:
    """The json as it is, but with names of files: the last two parts of each address, train2017/000000000009.jpg.

    A json that names files itself keeps them. Federated labels, neg_category_ids and
    not_exhaustive_category_ids, stay with their images, and frequencies with categories.
    """
    raw, digest = read_json(file)
    for image in entries(raw, file, "images", id=int):
        address = image.get("coco_url")
        if isinstance(address, str):
            image["file_name"] = "/".join(address.split("/")[-2:])
    return raw, digest
