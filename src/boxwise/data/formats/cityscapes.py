"""Cityscapes: a picture of numbers an image, for instances and for classes; polygons where there is none."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int32, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from boxwise.data.coco_files import Json
from boxwise.data.decode import BadImage
from boxwise.data.outlines import packed

CLASSES = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground"),
    *("road", "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge"),
    *("tunnel", "pole", "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky"),
    *("person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
"""By label id."""
THINGS = {k: CLASSES[k] for k in (24, 25, 26, 27, 28, 31, 32, 33)}
"""The eight that are measured as instances, by label id."""
COUNTABLE = (*THINGS, 29, 30)
"""The label ids of classes whose things are numbered: caravans and trailers too, which are not measured."""
TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, *THINGS)
"""The label ids of the nineteen classes of semantic segmentation, in the order of their train ids."""
SEMANTIC = tuple(CLASSES[k] for k in TRAINED)
VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""The label ids of classes that nothing is measured on: what is found there is not wrong."""
IGNORED = 255
COUNTED = 1000
"""A pixel of the n-th thing of a class is label id * 1000 + n; below, of a class as a whole: a group, or stuff."""
PHOTO = "_leftImg8bit.png"
LAYOUT = (
    f"leftImg8bit/{{train,val}}/CITY/*{PHOTO} with gtFine/ likewise (*_instanceIds.png or *_polygons.json)"
)


def is_cityscapes(root: Path) -> bool:
    """Whether there are leftImg8bit/ and gtFine/."""
    return (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir()


def read_cityscapes(root: Path, split: Literal["train", "val"]) -> tuple[Json, str]:
    """One split as COCO writes it, and a digest of the pictures of instances.

    Categories keep their label ids. Outlines are run lengths, boxes the least around them; what hides behind
    another thing is no part of them. Groups of things are crowds. Images bear their pixels of no measured class
    as `void`. Raises ValueError for all that is missing.
    """
    folder = root / "leftImg8bit" / split
    photos = sorted(folder.glob(f"*/*{PHOTO}"))
    if not photos:
        raise ValueError(f"{folder}: no */*{PHOTO}; accepted is {LAYOUT}")
    names = [photo.relative_to(root).as_posix() for photo in photos]
    with ThreadPoolExecutor() as pool:  # decoding frees the interpreter
        found = list(pool.map(partial(_read, root), names))
    digest = hashlib.blake2b(digest_size=16)
    images: list[Json] = []
    annotations: list[Json] = []
    for k, (name, (size, mark, objects, void)) in enumerate(zip(names, found, strict=True), start=1):
        digest.update(os.fsencode(name) + mark)
        images.append({"id": k, "file_name": name, "width": size[1], "height": size[0], "void": void})
        annotations += [
            {"id": len(annotations) + j, "image_id": k, **o} for j, o in enumerate(objects, start=1)
        ]
    categories = [{"id": k, "name": name} for k, name in THINGS.items()]
    return {"images": images, "annotations": annotations, "categories": categories}, digest.hexdigest()


def train_ids(root: Path, name: str) -> UInt8[np.ndarray, "h w"]:
    """Of the image `name`, 0 to 18 for the classes of `SEMANTIC`, 255 elsewhere. Raises BadImage without labels."""
    file = _beside(root, name, "_gtFine_labelIds.png")
    ids = (
        _pixels(file)
        if file.is_file()
        else _painted(_beside(root, name, "_gtFine_polygons.json"), counted=False)
    )
    table = np.full(len(CLASSES) + 1, IGNORED, dtype=np.uint8)
    table[list(TRAINED)] = np.arange(len(TRAINED))
    return table[np.clip(ids, 0, len(CLASSES))]


def _beside(root: Path, name: str, ending: str) -> Path:
    below = name.removeprefix("leftImg8bit/").removesuffix(PHOTO)
    return root / "gtFine" / f"{below}{ending}"


def _read(root: Path, name: str) -> tuple[tuple[int, int], bytes, list[Json], Json]:
    """Height and width, a digest, the things and the void of one image."""
    file = _beside(root, name, "_gtFine_instanceIds.png")
    outlines = _beside(root, name, "_gtFine_polygons.json")
    try:
        ids = _pixels(file) if file.is_file() else _painted(outlines, counted=True)
    except BadImage as bad:
        raise ValueError(f"{bad}; accepted is {LAYOUT}") from None
    mark = hashlib.blake2b(np.ascontiguousarray(ids).data, digest_size=16).digest()
    nowhere = np.flatnonzero(np.isin(ids.T.ravel(), VOID))
    void = packed({"size": [*ids.shape], "counts": _runs(nowhere, ids.size)})
    return (ids.shape[0], ids.shape[1]), mark, list(_things(ids)), void


def _pixels(file: Path) -> Int32[np.ndarray, "h w"]:
    try:
        with Image.open(file) as picture:
            return np.array(picture, dtype=np.int32)
    except Exception as error:  # decoders meet damaged bytes with every exception there is
        raise BadImage(file, f"damaged or cut short ({error})") from error


def _painted(file: Path, *, counted: bool) -> Int32[np.ndarray, "h w"]:
    """The picture of numbers that polygons stand for: later ones lie on top of earlier ones."""
    try:
        held = json.loads(file.read_bytes())
        picture = Image.new("I", (held["imgWidth"], held["imgHeight"]), 0)
        pencil, met = ImageDraw.Draw(picture), dict.fromkeys(COUNTABLE, 0)
        for o in held["objects"]:
            if o.get("deleted"):
                continue
            name = o["label"]
            group = name not in CLASSES and name.endswith("group")
            name = name.removesuffix("group") if group else name
            if name not in CLASSES:
                continue  # a license plate, which is no class
            value = CLASSES.index(name)
            if counted and value in met and not group:
                number, met[value] = met[value], met[value] + 1
                value = value * COUNTED + number
            pencil.polygon([(x, y) for x, y in o["polygon"]], fill=value)
    except OSError as error:
        raise BadImage(file, error.strerror or str(error)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadImage(file, f"no outlines of Cityscapes ({type(error).__name__}: {error})") from None
    return np.array(picture, dtype=np.int32)


def _things(ids: NDArray[np.int32]) -> Iterator[Json]:
    """Things and groups, by number; each as box and run lengths."""
    height = ids.shape[0]
    down = ids.T.ravel()  # COCO's runs go down the columns
    kinds = np.where(down >= COUNTED, down // COUNTED, down)
    places = np.flatnonzero(np.isin(kinds, list(THINGS)))
    values = down[places]
    places = places[np.argsort(values, kind="stable")]
    for value, count, end in zip(*_groups(values), strict=True):
        mine = places[end - count : end]
        columns, rows = mine // height, mine % height
        left, top = int(columns[0]), int(rows.min())
        yield {
            "category_id": int(value // COUNTED if value >= COUNTED else value),
            "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows.max()) + 1 - top],
            "area": int(count),
            "iscrowd": int(value < COUNTED),
            "segmentation": packed({"size": [*ids.shape], "counts": _runs(mine, ids.size)}),
        }


def _groups(values: NDArray[np.int32]) -> tuple[list[int], list[int], list[int]]:
    """Every value, how often it is there, and where it ends in sorted order."""
    found, counts = np.unique(values, return_counts=True)
    return found.tolist(), counts.tolist(), np.cumsum(counts).tolist()


def _runs(places: NDArray[np.int64], total: int) -> list[int]:
    """Run lengths, unset pixels first, of rising places of set ones."""
    if not places.size:
        return [total]
    breaks = np.flatnonzero(np.diff(places) > 1)
    starts = places[np.concatenate([[0], breaks + 1])]
    ends = places[np.concatenate([breaks, [len(places) - 1]])] + 1
    edges = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [total]])
    runs = np.diff(edges).tolist()
    return runs if runs[-1] else runs[:-1]
