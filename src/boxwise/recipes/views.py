"""Views that several recipes share."""

from __future__ import annotations

from boxwise.data.augment import Photo
from boxwise.data.cut import Crop, ViewSpec

MOCO_VIEW = ViewSpec(
    crop=Crop(scale=(0.2, 1.0)),
    photo=Photo(
        brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, gray=0.2, blur=0.5, blur_kind="pil"
    ),
)
"""MoCo-v2's view, which SimSiam shares; its blur is the image library's, of radius sigma."""
