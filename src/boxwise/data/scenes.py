"""Procedural scenes with boxes, masks and classes: the built-in data set, drawn from numbers alone.

A scene holds two to four things of eight classes (`CLASSES`) that hide one another, among clutter, on a
textured ground, under uneven light and with noise. Outline, parts and markings tell the classes apart;
colours and textures are drawn without regard to the class. A thing that would be mostly hidden is never
painted, so every thing in the picture has its box.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from boxwise.data.scene_files import START, write_scenes
from boxwise.data.scene_stage import CLASSES, draw
from boxwise.shapes import Picture

__all__ = ["CLASSES", "START", "Scene", "scene", "write_scenes"]


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture and the things it shows, nearest first."""

    image: Picture
    boxes: Float[Tensor, "N 4"]
    """xyxy in pixels, tight around the visible mask."""
    labels: Int[Tensor, " N"]
    """1 is CLASSES[0]."""
    masks: Bool[Tensor, "N S S"]
    """Visible pixels; no two overlap."""


def scene(index: int, *, seed: int = 0, size: int = 128) -> Scene:
    """Scene `index` of the endless series `seed`, `size` pixels square: the same bits on every call.

    `size` is at least 32. The same index at another size is another picture.
    """
    drawn = draw(index, seed=seed, size=size)
    return Scene(*(torch.from_numpy(x) for x in (drawn.image, drawn.boxes, drawn.labels, drawn.masks)))
