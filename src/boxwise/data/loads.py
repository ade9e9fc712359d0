"""A micro-batch of views on its way: as a worker hands it over, and on the host, ready for the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from boxwise.data.augment import PhotoDraws, augment, draw_photo
from boxwise.data.cut import ViewSpec
from boxwise.data.cutout import cut_out
from boxwise.data.objects import Known
from boxwise.data.workers import Bad
from boxwise.geometry.views import Batch, View


@dataclass(frozen=True, slots=True)
class Load:
    """A micro-batch on the host: bytes, geometry, and every draw as a number."""

    batch: Batch
    """Views as cut, uint8, not yet mirrored. `batch.index` names the pictures that were read."""
    photos: tuple[PhotoDraws, ...]
    specs: tuple[ViewSpec, ...]
    bad: tuple[Bad, ...]
    """Images that could not be read; others, drawn for the purpose, stand in their places."""
    holes: tuple[Tensor, ...] = ()
    """Of each view, the draws of `cut_out` for its known objects, (B, N, 4); empty where none are known."""

    def ready(self, device: torch.device | str) -> Batch:
        """The batch as a method takes it: on `device`, augmented, normalised."""
        batch = self.batch.to(device)
        made = zip(batch.views, self.photos, self.specs, strict=True)
        views = [augment(view, draws, spec.photo, within=_part(view, spec)) for view, draws, spec in made]
        for i, noise in enumerate(self.holes):
            views[i] = cut_out(views[i], noise.to(device, non_blocking=True), self.specs[i].cutout)
        return replace(batch, views=tuple(views))


def _part(view: View, spec: ViewSpec) -> Float[Tensor, "B 4"] | None:
    """The only part of a view that colour and blur change, in its pixels; none: all of it."""
    if spec.paste is None or spec.paste.augment == "composite":
        return None
    assert view.objects is not None, "a composite knows where it was pasted"
    return view.place(view.objects)[:, 0]


class CutViews(NamedTuple):
    """What a worker hands over. Arrays travel as bytes, tensors each take a file handle: only the large are tensors."""

    pixels: tuple[Tensor, ...]
    """Of each view, uint8 (B, 3, S, S)."""
    crop: NDArray[np.float32]
    """(views, B, 4), source pixels."""
    flip: NDArray[np.bool_]
    """(views, B)."""
    noise: NDArray[np.float32]
    """(views, B, NUMBERS), for the draws of `augment`."""
    source: NDArray[np.int64]
    """Rows of the image set."""
    draws: dict[str, Tensor]
    bad: tuple[Bad, ...]
    known: tuple[Known, ...] = ()
    """Of each view; empty where no objects are known."""
    pasted: Mapping[int, NDArray[np.float32]] = {}
    """Of each view that is a composite, the pasted parts, (B, 1, 4) pixels of the view, not mirrored."""

    def load(self, specs: tuple[ViewSpec, ...]) -> Load:
        crop, flip, noise, index = map(torch.from_numpy, (self.crop, self.flip, self.noise, self.source))
        known = [[*map(torch.from_numpy, one[:2])] for one in self.known] or [[]] * len(specs)
        for i, boxes in self.pasted.items():
            known[i] = [torch.from_numpy(boxes)]
        views = tuple(View(pixels, crop[i], flip[i], *known[i]) for i, pixels in enumerate(self.pixels))
        photos = tuple(draw_photo(noise[i], spec.photo) for i, spec in enumerate(specs))
        holes = tuple(torch.from_numpy(one.holes) for one in self.known)
        return Load(Batch(views, index, self.draws), photos, specs, self.bad, holes)
