"""What boxes to propose for an image: selective search, random, a grid, or those of a COCO json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from PIL import Image

from boxwise.data.coco_files import Json, entries
from boxwise.data.decode import read_header
from boxwise.data.ground_truth import turn_of
from boxwise.data.orientation import upright_boxes
from boxwise.data.selective_search import Values, selective_search

Pixels = UInt8[np.ndarray, "H W 3"]
Rects = Int64[np.ndarray, "_ 4"]
"""left, top, width, height."""

LEAST_SIDE, MOST_RATIO, SHARES = 32, 3.0, (0.3, 0.8)
"""SoCo's filters: pixels of a side, length by width, and the box's root area as a share of the image's."""
GRID_SHARES, GRID_RATIOS = (0.35, 0.5, 0.7), (0.5, 1.0, 2.0)
ROUNDS = 32
"""Draws of `count` random boxes, of which some pass the filters."""


@runtime_checkable
class Generator(Protocol):
    """Settings that make boxes; they are written into the file."""

    @property
    def name(self) -> str: ...

    def rects(self, pixels: Pixels, name: str) -> Rects:
        """Boxes of the image of that name, in its pixels. None at all stands for the whole image."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectiveSearch:
    """SoCo's proposals."""

    name: Literal["selective-search"] = "selective-search"
    scale: float = 300.0
    """Felzenszwalb's: larger makes larger segments."""
    sigma: float = 0.9
    """Pixels of blur before the segmentation."""
    min_size: int = 100
    """Pixels of the smallest segment."""
    values: Values = "unit"
    """Histograms as the package selectivesearch makes them of an image in [0, 1], or SoCo's own of bytes."""
    megapixels: float = 4.0
    """Larger images are shrunk to this for the search: it takes 300 bytes a pixel."""

    def rects(self, pixels: Pixels, name: str) -> Rects:
        height, width = pixels.shape[:2]
        factor = max(1.0, (width * height / (self.megapixels * 1e6)) ** 0.5)
        if factor > 1:
            size = (max(1, round(width / factor)), max(1, round(height / factor)))
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
        found = selective_search(
            pixels, scale=self.scale, sigma=self.sigma, min_size=self.min_size, values=self.values
        )
        if factor > 1:
            found = (found * np.tile([width / size[0], height / size[1]], 2)).astype(np.int64)
        return fitting(found, width, height)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomBoxes:
    """Uniform in size and place among those that pass SoCo's filters: its ablation."""

    name: Literal["random"] = "random"
    count: int = 64
    """Boxes an image."""
    seed: int = 0

    def rects(self, pixels: Pixels, name: str) -> Rects:
        height, width = pixels.shape[:2]
        key = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
        draw = np.random.Generator(np.random.Philox(key=self.seed << 64 | int.from_bytes(key, "little")))
        shape = (ROUNDS * self.count, 2)
        frame = np.array([width, height])
        least = np.minimum(frame, LEAST_SIDE)
        sides = draw.integers(least, frame, shape, endpoint=True)
        place = draw.integers(0, frame - sides, endpoint=True)
        return fitting(np.concatenate([place, sides], axis=1), width, height)[: self.count]


@dataclass(frozen=True, slots=True, kw_only=True)
class GridBoxes:
    """Three sizes and three shapes, half a box apart, those of them that pass SoCo's filters."""

    name: Literal["grid"] = "grid"

    def rects(self, pixels: Pixels, name: str) -> Rects:
        height, width = pixels.shape[:2]
        found = []
        for share in GRID_SHARES:
            for ratio in GRID_RATIOS:
                side = share * (width * height) ** 0.5
                w, h = round(side * ratio**0.5), round(side / ratio**0.5)
                if w <= width and h <= height and w and h:
                    x, y = (_spread(total, one) for total, one in ((width, w), (height, h)))
                    x, y = (a.ravel() for a in np.meshgrid(x, y))
                    found.append(np.stack([x, y, np.full_like(x, w), np.full_like(y, h)], axis=1))
        every = np.concatenate(found) if found else np.zeros((0, 4), dtype=np.int64)
        return fitting(every, width, height)


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoBoxes:
    """Boxes of a COCO json, labels or predictions, as they are."""

    boxes: Mapping[str, Float64[np.ndarray, "N 4"]]
    """xyxy by file name."""
    digest: str
    """Of the json."""
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Width and height of the picture that the boxes lie in, by file name, where the json says them."""
    name: Literal["coco-json"] = "coco-json"
    score: float = 0.0
    """The least that a prediction needs."""

    def turned(self, name: str, path: Path, width: int, height: int) -> CocoBoxes:
        """The same, with the boxes of one image in its upright picture of `width` by `height`.

        Raises BadImage for a file that its camera turned and that is of another size than the json says.
        """
        if self.sizes.get(name, (width, height)) == (width, height) or name not in self.boxes:
            return self
        stored = read_header(path)
        if stored.orientation == 1:
            return self
        turn = turn_of(path, self.sizes[name], (stored.width, stored.height), stored.orientation)
        upright = upright_boxes(self.boxes[name], turn, width=stored.width, height=stored.height)
        return replace(self, boxes={name: upright})

    def rects(self, pixels: Pixels, name: str) -> Rects:
        height, width = pixels.shape[:2]
        mine = self.boxes.get(name, np.zeros((0, 4)))
        mine = np.clip(np.round(mine), 0, np.tile([width, height], 2)).astype(np.int64)
        found = np.concatenate([mine[:, :2], mine[:, 2:] - mine[:, :2]], axis=1)
        return found[(found[:, 2] > 0) & (found[:, 3] > 0)]


def stated(generator: Generator) -> dict[str, Any]:
    """A generator's settings as JSON."""
    if isinstance(generator, CocoBoxes):
        return {"name": generator.name, "digest": generator.digest, "score": generator.score}
    return asdict(generator)  # type: ignore[call-overload]


def fitting(rects: Rects, width: int, height: int) -> Rects:
    """SoCo's choice: by side, shape and size; if none, by side and shape; if none, by side alone."""
    w, h = rects[:, 2], rects[:, 3]
    large = (w >= LEAST_SIDE) & (h >= LEAST_SIDE)
    ratio = w / np.maximum(h, 1)
    shaped = large & (ratio >= 1.0 / MOST_RATIO) & (ratio <= MOST_RATIO)
    share = np.sqrt(w * h) / np.sqrt(width * height)
    whole = shaped & (share >= SHARES[0]) & (share <= SHARES[1])
    return rects[_first_not_empty(whole, shaped, large)]


def _first_not_empty(*choices: Bool[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    return next((chosen for chosen in choices if chosen.any()), choices[-1])


def _spread(total: int, one: int) -> Int64[np.ndarray, " n"]:
    """Starts of boxes of length `one` in `total`, from end to end, at most half a box apart."""
    steps = int(np.ceil((total - one) / (one / 2))) + 1
    return np.round(np.linspace(0, total - one, steps)).astype(np.int64)


def coco_boxes(file: Path, *, images: Path | None = None, score: float = 0.0) -> CocoBoxes:
    """The boxes of `file`: a COCO json with its images, or a list of detections of the images that `images` names.

    Raises ValueError that says what is wrong with either.
    """
    raw, digest = _read(file)
    labelled = raw if isinstance(raw, dict) else _read(images)[0] if images is not None else None
    if not isinstance(labelled, dict):
        raise ValueError(
            f"{file}: a list of detections; pass --data as the COCO json that names their images"
        )
    listed = raw if isinstance(raw, list) else raw.get("annotations")
    listed_images = entries(labelled, file, "images", id=int, file_name=str)
    names = {i["id"]: i["file_name"] for i in listed_images}
    sizes = {i["file_name"]: (i["width"], i["height"]) for i in listed_images if _sized(i)}
    annotations = entries({"annotations": listed}, file, "annotations", image_id=int, bbox=list)
    found: dict[str, list[list[float]]] = {}
    for row, one in enumerate(annotations):
        if one["image_id"] not in names:
            raise ValueError(
                f"{file}: entry {row} is of image {one['image_id']}, which no list of images names"
            )
        if len(one["bbox"]) != 4 or not np.isfinite(np.array(one["bbox"], dtype=np.float64)).all():
            raise ValueError(f"{file}: entry {row}: a bbox is [x, y, width, height], got {one['bbox']}")
        if float(one.get("score", 1.0)) >= score and not one.get("iscrowd"):
            x, y, w, h = one["bbox"]
            found.setdefault(names[one["image_id"]], []).append([x, y, x + w, y + h])
    return CocoBoxes(
        boxes={k: np.array(v, dtype=np.float64) for k, v in found.items()},
        digest=digest,
        sizes=sizes,
        score=score,
    )


def _sized(image: Json) -> bool:
    return all(type(image.get(side)) is int for side in ("width", "height"))


def _read(file: Path) -> tuple[Json | list[Any], str]:
    try:
        content = file.read_bytes()
        return json.loads(content), hashlib.blake2b(content, digest_size=8).hexdigest()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); pass a COCO json") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}); pass a COCO json") from None
