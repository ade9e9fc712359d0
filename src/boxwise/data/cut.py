"""The worker's half of a view: where it is cut from one decoded picture, and the cut itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from boxwise.config import Share, Span, settings
from boxwise.data.augment import Photo
from boxwise.data.cutout import Cutout
from boxwise.shapes import Picture

TRIES = 10
"""Rectangles drawn before the whole picture, as far as its shape allows, is taken."""


@settings
class Crop:
    """A random part of the picture, resized to a square."""

    size: Annotated[int, Field(gt=0)] = 224
    """Side of the view, in pixels."""
    scale: Span = (0.2, 1.0)
    """Least and largest share of the picture's area."""
    ratio: Span = (3 / 4, 4 / 3)
    """Least and largest width / height of the part; equally likely on a logarithmic scale."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How the part is resized; always antialiased."""
    flip: Share = 0.5
    """Share of views mirrored left-right."""
    whole: bool = False
    """Take the whole picture, squeezed to a square, instead of a random part."""
    like: int | None = None
    """Take the same part as this earlier view (counted from 0), at a size and with a flip of its own."""
    flip_like: int | None = None
    """Mirror whenever this earlier view (counted from 0) is mirrored."""


@settings
class Paste:
    """The view is a composite, as InsLoc's: the part, pasted on another picture that is squeezed to the view."""

    paste_size: Literal["frame", "sides"] = "frame"
    """frame: the part in proportion, fitted between two drawn sides (the code); sides: squeezed to them (the paper)."""
    augment: Literal["composite", "foreground"] = "composite"
    """What colour and blur change: the whole view (the code), or the pasted part alone (the paper)."""
    backgrounds: Literal["apart", "any"] = "apart"
    """apart: never the picture itself, nor the background of another of its views (the paper); any: whichever of
    the micro-batch (the code, which drew from the whole set)."""


@settings
class ViewSpec:
    """How one view of an image is made."""

    crop: Crop = Crop()
    photo: Photo = Photo()
    auto_augment: bool = False
    """First change the cut part by a random rule of AutoAugment's for ImageNet, some of which turn or shear it."""
    cutout: Cutout = Cutout()
    paste: Paste | None = None
    """Paste the part on another picture; `crop.size` is then the side of the whole."""


class Cut(NamedTuple):
    """Where one view is cut: whole source pixels, and whether it is mirrored afterwards."""

    left: int
    top: int
    width: int
    height: int
    flip: bool

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in source pixels: what `View.crop` holds."""
        return (self.left, self.top, self.left + self.width, self.top + self.height)


def draw_cuts(
    rngs: Sequence[np.random.Generator], crops: Sequence[Crop], *, width: int, height: int
) -> list[Cut]:
    """The geometry of all views of one picture, in order; each is drawn from its own generator."""
    cuts: list[Cut] = []
    for rng, crop in zip(rngs, crops, strict=True):
        cut = draw_cut(rng, crop, width=width, height=height)
        if crop.like is not None:
            cut = cuts[crop.like]._replace(flip=cut.flip)
        if crop.flip_like is not None:
            cut = cut._replace(flip=cuts[crop.flip_like].flip)
        cuts.append(cut)
    return cuts


def draw_cut(rng: np.random.Generator, crop: Crop, *, width: int, height: int) -> Cut:
    """The geometry of one view of a picture of `width` x `height` pixels.

    Area share and log aspect ratio are uniform and the place is uniform over the whole pixels, as in
    torchvision's RandomResizedCrop. When no rectangle of TRIES fits into the picture, the largest centred one
    whose ratio lies within `crop.ratio` is taken.
    """
    flip = bool(rng.random() < crop.flip)
    if crop.whole:
        return Cut(0, 0, width, height, flip)
    low, high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    for share, log_ratio, x, y in rng.random((TRIES, 4)):
        area = width * height * (crop.scale[0] + share * (crop.scale[1] - crop.scale[0]))
        ratio = math.exp(low + log_ratio * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Cut(int(x * (width - w + 1)), int(y * (height - h + 1)), w, h, flip)
    return _centred(crop, width, height, flip)


def _centred(crop: Crop, width: int, height: int, flip: bool) -> Cut:
    least, most = crop.ratio
    w, h = width, height
    if width / height < least:
        h = min(height, max(1, round(width / least)))
    elif width / height > most:
        w = min(width, max(1, round(height * most)))
    return Cut((width - w) // 2, (height - h) // 2, w, h, flip)


def cut_view(picture: Picture, cut: Cut, crop: Crop) -> UInt8[Tensor, "3 S S"]:
    """The part of `picture` at `cut`, antialiased to `crop.size` squared, not yet mirrored.

    The part is cut out first, so that nothing outside it bleeds in. uint8 throughout, with the three colours of a
    pixel together in memory, as decoders leave them: a third faster than by planes, several times as fast as
    floats.
    """
    part = picture[:, cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
    return resized(part, (crop.size, crop.size), crop.interpolation)


def resized(
    picture: Picture, size: tuple[int, int], mode: Literal["bilinear", "bicubic"] = "bilinear"
) -> UInt8[Tensor, "3 h w"]:
    """`picture`, antialiased to `size` (height, width)."""
    together = picture[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(together, size, mode=mode, antialias=True, align_corners=False)[0]
