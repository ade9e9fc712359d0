"""What was found, or is true, drawn into the pictures: boxes with names and scores, masks, keypoints."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from boxwise.data.coco import Category
from boxwise.data.outlines import Outline, rasterise
from boxwise.data.targets import Labelled, Labels
from boxwise.engine.atomic import written
from boxwise.shapes import Picture

Colour = tuple[int, int, int]
GAP = 6
"""Pixels between pictures."""
SHEET_SIDE = 640
"""Longest side of a picture on a sheet of many."""
NAMED_SIDE = 160
"""A shorter side below leaves no room for words."""
TINT = 0.45
"""Share of a mask's colour in the pixels that it covers."""
SURE = 0.5
"""Least score of what is drawn, unless told."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing to be drawn, in pixels of the source image."""

    box: tuple[float, float, float, float]
    """xyxy."""
    category: int
    """Place among the categories."""
    score: float | None = None
    outline: Outline | None = None
    keypoints: Sequence[float] | None = None
    """x, y and visibility of each, x and y naming the pixel; not drawn where visibility is 0."""


def found_things(results: Iterable[Mapping[str, Any]], categories: Sequence[Category]) -> list[Thing]:
    """Detections in COCO's form, those of one image."""
    place = {category.id: k for k, category in enumerate(categories)}
    things = []
    for one in results:
        x, y, width, height = one["bbox"]
        marks = one.get("keypoints")
        things.append(
            Thing(
                (x, y, x + width, y + height),
                place[one["category_id"]],
                one["score"],
                one.get("segmentation"),
                marks,
            )
        )
    return things


def true_things(labels: Labels) -> list[Thing]:
    """What is known of one picture, with outlines and keypoints where those were kept."""
    nothing = (None,) * len(labels.boxes)
    rows = zip(
        labels.boxes.tolist(),
        labels.labels.tolist(),
        labels.extras.get("segmentation", nothing),
        labels.extras.get("keypoints", nothing),
        strict=True,
    )
    return [Thing((*box,), label - 1, None, outline, marks) for box, label, outline, marks in rows]


def drawn(
    pixels: Picture,
    things: Sequence[Thing],
    categories: Sequence[Category],
    *,
    source: tuple[int, int] | None = None,
) -> UInt8[Tensor, "3 _h _w"]:
    """A copy of `pixels` with `things`, the large first and the small on top.

    Every category has its colour. `source` is the height and width that things refer to: those of `pixels`,
    unless told. Pictures that are too small for words get none.
    """
    size = (pixels.shape[1], pixels.shape[2])
    height, width = source or size
    scale = (size[1] / width, size[0] / height)
    canvas = pixels.permute(1, 2, 0).contiguous().numpy().copy()
    ordered = sorted(things, key=_area, reverse=True)
    for thing in ordered:
        if thing.outline:
            inside = rasterise(thing.outline, source=(height, width), size=size).numpy().astype(np.bool_)
            colour = np.array(hue(thing.category, len(categories)))
            canvas[inside] = ((1 - TINT) * canvas[inside] + TINT * colour).round().astype(np.uint8)
    image = Image.fromarray(canvas)
    pen = _Pen(image, words=min(size) >= NAMED_SIDE)
    for thing in ordered:
        pen.thing(thing, categories, scale)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def overlaid(
    pixels: Picture, classes: UInt8[Tensor, "H W"], *, count: int, background: int | None = 0
) -> UInt8[Tensor, "3 _h _w"]:
    """A copy of `pixels` tinted by the class of each, of `count`; `background` and what is no class stay plain."""
    colours = torch.tensor([hue(k, count) for k in range(count)], dtype=torch.float32)
    shown = classes < count
    if background is not None:
        shown &= classes != background
    tints = colours[classes.long().clamp(max=count - 1)].permute(2, 0, 1)
    mixed = ((1 - TINT) * pixels + TINT * tints).round().to(torch.uint8)
    return torch.where(shown, mixed, pixels)


def hue(kind: float, count: int) -> Colour:
    """The colour of one of `count` kinds."""
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(kind / max(count, 1), 0.85, 1.0))
    return red, green, blue


def detections_sheet(
    labelled: Labelled, *found: Sequence[Mapping[str, Any]], count: int, sure: float = SURE
) -> UInt8[Tensor, "3 _h _w"]:
    """The first `count` images: truth above, and below it what each of several detectors found.

    Shown are detections with a score of at least `sure`, and in any case the surest, as many as there are things:
    a detector of few steps is seldom sure. Small pictures are enlarged, so that there is room for words.
    """
    by_image: list[dict[int, list[Mapping[str, Any]]]] = []
    for one in found:
        by_image.append({})
        for result in sorted(one, key=lambda result: -result["score"]):
            by_image[-1].setdefault(result["image_id"], []).append(result)
    columns = []
    for i in range(min(count, len(labelled))):
        pixels, labels = labelled.read(i)
        source = (pixels.shape[1], pixels.shape[2])
        shown = _resized(pixels)
        rows = [true_things(labels)]
        for lists in by_image:
            mine = lists.get(labelled.image_id(i), [])
            kept = [one for k, one in enumerate(mine) if one["score"] >= sure or k < len(rows[0])]
            rows.append(found_things(kept, labelled.categories))
        pictures = [drawn(shown, things, labelled.categories, source=source) for things in rows]
        columns.append(torch.cat([framed(p, shown.shape[-2], shown.shape[-1]) for p in pictures], dim=1))
    height = max(c.shape[1] for c in columns)
    return torch.cat([framed(c, height - GAP, c.shape[2] - GAP) for c in columns], dim=2)


def framed(pixels: Tensor, height: int, width: int) -> Tensor:
    """White to the right and below, up to `height` and `width` and the gap."""
    right, below = width - pixels.shape[-1] + GAP, height - pixels.shape[-2] + GAP
    return torch.nn.functional.pad(pixels, (0, right, 0, below), value=255)


def write_picture(pixels: Tensor, out: Path) -> None:
    """uint8 (3, H, W) to PNG or JPEG, by the name's ending; whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with written(out) as file:
        file.write(encoded(pixels, out.suffix))


def encoded(pixels: UInt8[Tensor, "3 _h _w"], suffix: str) -> bytes:
    """A file's bytes: PNG or JPEG, as files that end in `suffix` are."""
    file = io.BytesIO()
    kind = "PNG" if suffix.lower() == ".png" else "JPEG"
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, kind, quality=92)
    return file.getvalue()


class _Pen:
    """Draws into an image, with lines and letters that fit its size."""

    def __init__(self, image: Image.Image, *, words: bool) -> None:
        self.width, self.height = image.size
        side = min(image.size)
        self.words, self.line = words, max(2, round(side / 300))
        self.draw = ImageDraw.Draw(image)
        self.font = ImageFont.load_default(max(10, round(side / 45)))

    def thing(self, thing: Thing, categories: Sequence[Category], scale: tuple[float, float]) -> None:
        colour = hue(thing.category, len(categories))
        across, down = scale
        x0, y0, x1, y1 = thing.box
        left, top = self._inside(x0 * across, y0 * down)
        right, bottom = self._inside(x1 * across - 1, y1 * down - 1)  # half-open: the last pixel is inside
        corners = (left, top, max(left, right), max(top, bottom))
        self.draw.rectangle(corners, outline=colour, width=self.line)
        category = categories[thing.category]
        if thing.keypoints is not None:
            self._skeleton([*_marks(thing.keypoints, scale)], category, colour)
        if self.words:
            score = "" if thing.score is None else f" {thing.score:.2f}"
            self._word(f"{category.name}{score}", left, top, colour)

    def _skeleton(self, marks: list[tuple[float, float] | None], category: Category, colour: Colour) -> None:
        for a, b in category.skeleton:
            if max(a, b) <= len(marks):
                start, end = marks[a - 1], marks[b - 1]
                if start and end:
                    self.draw.line([start, end], fill=colour, width=self.line)
        for k, at in enumerate(marks):
            if at:
                (x, y), r = at, self.line + 1
                self.draw.ellipse((x - r, y - r, x + r, y + r), fill=hue(k, len(marks)), outline="black")

    def _word(self, text: str, left: int, top: int, colour: Colour) -> None:
        """Above the box where there is room, else inside; never beyond the edges."""
        x0, y0, x1, y1 = self.draw.textbbox((0, 0), text, font=self.font)
        wide, tall = x1 - x0 + 4, y1 - y0 + 4
        x = max(0, min(left, self.width - wide))
        y = top - tall if top >= tall else min(top, max(0, self.height - tall))
        self.draw.rectangle((x, y, x + wide - 1, y + tall - 1), fill=colour)
        dark = 299 * colour[0] + 587 * colour[1] + 114 * colour[2] < 128_000
        self.draw.text((x + 2 - x0, y + 2 - y0), text, fill="white" if dark else "black", font=self.font)

    def _inside(self, x: float, y: float) -> tuple[int, int]:
        return min(max(round(x), 0), self.width - 1), min(max(round(y), 0), self.height - 1)


def _marks(keypoints: Sequence[float], scale: tuple[float, float]) -> Iterator[tuple[float, float] | None]:
    """Where each is, in pixels of the picture; none where it is not labelled."""
    for x, y, seen in zip(keypoints[::3], keypoints[1::3], keypoints[2::3], strict=True):
        yield ((x + 0.5) * scale[0] - 0.5, (y + 0.5) * scale[1] - 0.5) if seen > 0 else None


def _area(thing: Thing) -> float:
    left, top, right, bottom = thing.box
    return (right - left) * (bottom - top)


def _resized(pixels: Picture) -> UInt8[Tensor, "3 _h _w"]:
    """Shrunk to `SHEET_SIDE`, or enlarged by a whole number to `NAMED_SIDE` and beyond; most pictures stay."""
    height, width = pixels.shape[1:]
    scale = min(SHEET_SIDE / max(height, width), max(1.0, math.ceil(NAMED_SIDE / min(height, width))))
    if scale == 1:
        return pixels
    return T.resize(pixels, [max(1, round(height * scale)), max(1, round(width * scale))], antialias=True)
