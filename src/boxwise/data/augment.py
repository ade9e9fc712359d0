"""The device's half of a view: flip, colour, blur, solarise, normalise, every image with its own draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from boxwise.config import Above, Amount, Share, Span, settings
from boxwise.data import blur, colour
from boxwise.geometry.views import View
from boxwise.shapes import Image

Operation = Literal["jitter", "gray", "blur", "solarize"]
Part = Float[Tensor, "B 1 H W"]
NUMBERS = 13
"""Uniform numbers that the draws of one image are made of."""


@settings
class Photo:
    """What is done to the pixels of a view. The defaults are MoCo-v2's."""

    brightness: Amount = 0.4
    """Factor drawn from 1 - brightness to 1 + brightness."""
    contrast: Amount = 0.4
    """Factor drawn from 1 - contrast to 1 + contrast; blends with the mean luma of the view."""
    saturation: Amount = 0.4
    """Factor drawn from 1 - saturation to 1 + saturation; blends with the luma of each pixel."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Turn drawn from -hue to hue, in parts of the colour circle."""
    jitter: Share = 0.8
    """Share of views whose brightness, contrast, saturation and hue are changed, in an order drawn anew."""
    gray: Share = 0.2
    """Share of views that lose their colour."""
    blur: Share = 0.5
    """Share of views blurred."""
    blur_kind: Literal["pil", "gauss23", "resize"] = "pil"
    """pil: MoCo, InsLoc, SoCo, ReSim; gauss23: BYOL, SCRL's paper; resize: SCRL's code."""
    sigma: Span = (0.1, 2.0)
    """Weakest and strongest blur, in pixels of the view; resize draws one of three sizes instead."""
    solarize: Share = 0.0
    """Share of views whose grey levels from 128 up are inverted."""
    order: tuple[Operation, ...] = ("jitter", "gray", "blur", "solarize")
    """What is done first; what is left out is never done."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from red, green, blue in [0, 1]."""
    std: tuple[Above, Above, Above] = (0.229, 0.224, 0.225)
    """What red, green and blue are divided by afterwards."""


@dataclass(frozen=True, slots=True)
class PhotoDraws:
    """What is done to each view of a batch, as numbers on the host: no device is asked who drew what."""

    jitter: Bool[Tensor, " B"]
    factors: Float[Tensor, "B 4"]
    """Of brightness, contrast and saturation; then the turn of the hue."""
    order: Int[Tensor, "B 4"]
    """Places in `factors`, in the order in which they are applied."""
    gray: Bool[Tensor, " B"]
    blur: Bool[Tensor, " B"]
    strength: Float[Tensor, " B"]
    """Sigma in pixels of the view; for the resize blur, what the size is divided by."""
    solarize: Bool[Tensor, " B"]

    def __getitem__(self, images: slice) -> PhotoDraws:
        """The draws of some of the images."""
        return PhotoDraws(**{field.name: getattr(self, field.name)[images] for field in fields(self)})


def draw_photo(noise: Float[Tensor, "B 13"], photo: Photo) -> PhotoDraws:
    """Turns NUMBERS uniform numbers an image into its draws.

    Each number has one use, so that another share or range in the settings leaves every other draw as it was.
    """
    width = torch.tensor([photo.brightness, photo.contrast, photo.saturation, photo.hue])
    least = (torch.tensor([1.0, 1.0, 1.0, 0.0]) - width).clamp(min=torch.tensor([0.0, 0.0, 0.0, -0.5]))
    most = torch.tensor([1.0, 1.0, 1.0, 0.0]) + width
    if photo.blur_kind == "resize":
        strength = torch.tensor(blur.SHRINKS)[(noise[:, 11] * len(blur.SHRINKS)).long()]
    else:
        strength = photo.sigma[0] + noise[:, 11] * (photo.sigma[1] - photo.sigma[0])
    return PhotoDraws(
        jitter=noise[:, 0] < photo.jitter,
        factors=least + noise[:, 1:5] * (most - least),
        order=noise[:, 5:9].argsort(dim=1),
        gray=noise[:, 9] < photo.gray,
        blur=noise[:, 10] < photo.blur,
        strength=strength,
        solarize=noise[:, 12] < photo.solarize,
    )


def augment(
    view: View, draws: PhotoDraws, photo: Photo, *, within: Float[Tensor, "B 4"] | None = None
) -> View:
    """The view that a network sees: mirrored where `view.flip` says so, changed as drawn, normalised.

    `within`, boxes of whole pixels of the mirrored view, limits the change to those as if nothing lay around them.

    A GPU takes the batch as one. A CPU takes image after image: each stays in its cache, and comes out the
    same to the last bit in whichever batch it stands.
    """
    out = torch.empty(view.image.shape, dtype=torch.float32, device=view.image.device)
    mean, std = (_sent(torch.tensor(numbers)[:, None, None], out) for numbers in (photo.mean, photo.std))
    step = _at_once(out.device, len(out))
    for start in range(0, len(out), step):
        some = slice(start, start + step)
        pixels, straight = out[some], view.image[some]
        torch.div(_mirrored(straight, view.flip[some]), 255, out=pixels)
        part = None if within is None else _inside(within[some], pixels)
        changed = pixels if within is None else _spread(within[some], pixels)
        for name in photo.order:
            _OPERATIONS[name](changed, draws[some], photo, part)
        if part is not None:
            pixels.lerp_(changed, part)
        pixels.sub_(mean).div_(std)
    return replace(view, image=out)


def _at_once(device: torch.device, count: int) -> int:
    return 1 if device.type == "cpu" else count


def _mirrored(image: UInt8[Tensor, "B 3 H W"], flip: Bool[Tensor, " B"]) -> UInt8[Tensor, "B 3 H W"]:
    if image.device.type == "cpu" and len(flip) == 1:  # nothing waits, and selecting is slow there
        return image.flip(-1) if flip else image
    return torch.where(flip[:, None, None, None], image.flip(-1), image)


def _inside(boxes: Float[Tensor, "B 4"], pixels: Image) -> Part:
    """1 for the pixels inside each image's box, else 0."""
    left, top, right, bottom = boxes[..., None].unbind(1)
    x, y = (torch.arange(side, device=boxes.device) for side in (pixels.shape[-1], pixels.shape[-2]))
    across, down = (x >= left) & (x < right), (y >= top) & (y < bottom)
    return (down[:, None, :, None] & across[:, None, None, :]).to(pixels.dtype)


def _spread(boxes: Float[Tensor, "B 4"], pixels: Image) -> Image:
    """What is inside each image's box, its outermost pixels repeated over all that lies around it."""
    left, top, right, bottom = boxes.long()[..., None].unbind(1)
    x, y = (torch.arange(side, device=boxes.device) for side in (pixels.shape[-1], pixels.shape[-2]))
    x, y = x.maximum(left).minimum(right - 1), y.maximum(top).minimum(bottom - 1)
    rows = pixels.gather(2, y[:, None, :, None].expand_as(pixels))
    return rows.gather(3, x[:, None, None, :].expand_as(pixels))


def _jitter(pixels: Image, draws: PhotoDraws, photo: Photo, part: Part | None) -> None:
    widths = (photo.brightness, photo.contrast, photo.saturation, photo.hue)
    jitter, order = draws.jitter.tolist(), draws.order.tolist()
    for place in range(4):
        for i, operation in enumerate(_JITTER):
            rows = [n for n, places in enumerate(order) if jitter[n] and places[place] == i]
            if rows and widths[i] > 0:
                factor = _sent(draws.factors[rows, i].reshape(-1, 1, 1, 1), pixels)
                change = partial(operation, factor=factor)
                if part is not None and operation is colour.contrast_:
                    mine = part.index_select(0, _sent(torch.tensor(rows), part))
                    change = partial(colour.contrast_, factor=factor, part=mine)
                _change(pixels, rows, change)


def _gray(pixels: Image, draws: PhotoDraws, photo: Photo, part: Part | None) -> None:
    _change(pixels, _drawn(draws.gray), colour.gray_)


def _blur(pixels: Image, draws: PhotoDraws, photo: Photo, part: Part | None) -> None:
    rows, strength = _drawn(draws.blur), draws.strength.tolist()
    if photo.blur_kind == "resize":
        for shrink in sorted({strength[n] for n in rows}):
            _change(pixels, [n for n in rows if strength[n] == shrink], partial(blur.resize_, shrink=shrink))
    else:
        kind = blur.pil_ if photo.blur_kind == "pil" else blur.gauss23_
        _change(pixels, rows, partial(kind, sigma=draws.strength[rows]))


def _solarize(pixels: Image, draws: PhotoDraws, photo: Photo, part: Part | None) -> None:
    _change(pixels, _drawn(draws.solarize), colour.solarize_)


_JITTER = (colour.brightness_, colour.contrast_, colour.saturation_, colour.hue_)
_OPERATIONS: dict[Operation, Callable[[Image, PhotoDraws, Photo, Part | None], None]] = {
    "jitter": _jitter,
    "gray": _gray,
    "blur": _blur,
    "solarize": _solarize,
}


def _change(pixels: Image, rows: list[int], operation: Callable[[Image], None]) -> None:
    """Changes some images of a batch in place; the rest is not computed at all."""
    if len(rows) == len(pixels):
        operation(pixels)
    elif rows:
        there = _sent(torch.tensor(rows), pixels)
        some = pixels.index_select(0, there)
        operation(some)
        pixels.index_copy_(0, there, some)


def _drawn(flags: Bool[Tensor, " B"]) -> list[int]:
    return [n for n, flag in enumerate(flags.tolist()) if flag]


def _sent(numbers: Tensor, like: Tensor) -> Tensor:
    """A few numbers, to where `like` is, without waiting for the device."""
    return numbers.to(like.device, non_blocking=True)
