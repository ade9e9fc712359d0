"""DensePose R-CNN on a pyramid: for every pixel of a person, the part of the body's surface and the place upon it.

Guler, Neverova, Kokkinos, "DensePose: Dense Human Pose Estimation in the Wild", CVPR 2018,
https://arxiv.org/abs/1802.00434, as detectron2's project of that name builds it and DetCo and ReSim measure it: eight
convolutions of 512 channels over 28 x 28 cells of a box, read from a map that the whole pyramid is decoded to, then
transposed convolutions to body, part, u and v, stretched to 112 x 112. The losses are in `surface_losses`.

A mirror changes which part is seen and where u and v run on it, by tables that this library does not have: pictures
are not flipped in training. detectron2 flips them, with those tables.

The layout of DensePose-COCO's annotations is read as published, and held to made-up ones: real annotations have not
been tried here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from boxwise.config import settings
from boxwise.geometry.boxes import iou
from boxwise.nn.encoder import Encoder
from boxwise.shapes import Scalar
from boxwise.transfer.detectors.base import Kind, Targets
from boxwise.transfer.detectors.heads import BoxHead
from boxwise.transfer.detectors.pooler import RoIPooler
from boxwise.transfer.detectors.rcnn import LEVELS, OnPyramid
from boxwise.transfer.detectors.stages import BoxHeads, Features, Sampled, Sizes
from boxwise.transfer.detectors.surface_layers import Decoder, SurfacePredictor, surface_head
from boxwise.transfer.detectors.surface_losses import (
    Surfaces,
    joined,
    points_in,
    surface_losses,
    wanted_body,
)


class DensePoseHeads(BoxHeads):
    """Boxes, and the surface of the person in each."""

    densepose_decoder: Decoder | None
    densepose_roi_pool: RoIPooler
    densepose_head: nn.Module
    densepose_predictor: SurfacePredictor
    min_iou: float
    weights: tuple[float, float, float]

    def losses(
        self, features: Features, crops: Tensor, sampled: Sampled, sizes: Sizes, targets: Targets
    ) -> dict[str, Scalar]:
        """In boxes that lie well on a person whose surface is annotated."""
        well = self._well(sampled.positives(), targets)
        found = self.surfaces(features, well.boxes, sizes)
        cells, first, points = found.part.shape[-1], 0, []
        for boxes, matched, target in zip(well.boxes, well.matched, targets, strict=True):
            points.append(points_in(boxes, matched, target["dp_points"], cells=cells, first=first))
            first += len(boxes)
        chosen = [*zip(targets, well.matched, strict=True)]
        body = wanted_body(
            torch.cat([*well.boxes]),
            torch.cat([t["dp_boxes"][matched] for t, matched in chosen]),
            torch.cat([t["dp_body"][matched] for t, matched in chosen]),
            cells=cells,
            classes=found.body.shape[1],
        )
        return surface_losses(found, body, joined(points), images=len(targets), weights=self.weights)

    def more(self, features: Features, found: Targets, sizes: Sizes) -> None:
        """Adds "densepose" (n, B + 3 P, S, S): what is read in each box, B of the body, P each of part, u and v."""
        read = self.surfaces(features, [one["boxes"] for one in found], sizes)
        whole = torch.cat([read.body, read.part, read.u, read.v], dim=1)
        for one, rows in zip(found, whole.split([len(one["boxes"]) for one in found]), strict=True):
            one["densepose"] = rows

    def surfaces(self, features: Features, boxes: Sequence[Tensor], sizes: Sizes) -> Surfaces:
        """What is read in `boxes`, never below float32."""
        if self.densepose_decoder is not None:
            features = {"0": self.densepose_decoder(features)}
        crops = self.densepose_roi_pool(features, boxes, sizes)
        read: Surfaces = self.densepose_predictor(self.densepose_head(crops))
        return read

    def _well(self, sampled: Sampled, targets: Targets) -> Sampled:
        """Boxes that overlap an annotated person by more than `min_iou`."""
        keep = []
        for boxes, matched, target in zip(sampled.boxes, sampled.matched, targets, strict=True):
            frames = target["dp_boxes"][matched]
            known = (frames[:, 2:] > frames[:, :2]).all(1)
            overlap = iou(boxes[:, None], target["boxes"][matched][:, None])[:, 0, 0]  # row by row
            keep.append(known & (overlap > self.min_iou))
        return sampled.only(keep)


@settings
class DensePoseRCNN(OnPyramid):
    """DensePose R-CNN on a pyramid; detectron2's layers, weights of losses and thresholds by default."""

    name: Literal["densepose_rcnn"] = "densepose_rcnn"
    head: BoxHead = "2fc"
    """What boxes are judged by: two linear layers (2fc), or four convolutions with BatchNorm and one linear layer,
    which SoCo and InsLoc pretrain (4conv1fc)."""
    aligned: bool = False
    """RoIAlign shifted by half a cell to read where the box is; off, as in detectron2's DensePose."""
    flip: float = 0.0
    """A mirror needs tables of the surface that are not here: 0."""
    rpn_post_nms_train: int = 1000
    """Proposals kept of each image after suppression, in training."""
    body_classes: Literal[2, 15] = 2
    """Ground and body (2), or ground and fourteen coarse parts (15)."""
    cells: int = 28
    """Cells a side that surfaces are read from; their maps have four times as many."""
    channels: int = 512
    """Of each of the head's eight convolutions."""
    decoder: bool = True
    """Read surfaces from one map that all levels are decoded to, not from the level of the box's size."""
    min_iou: float = 0.7
    """Least overlap of a box with its person for its surface to be learned there."""
    body_weight: float = 5.0
    part_weight: float = 1.0
    place_weight: float = 0.01
    """Of u and v, whose losses are summed over points: those of two images."""

    def kinds(self) -> tuple[Kind, ...]:
        return ("bbox", "densepose")

    def extras(self) -> tuple[str, ...]:
        """DensePose's fields, and the box that they count from before it is clipped to its picture."""
        return (*OnPyramid.extras(self), "bbox")

    def problems(self, *, pretrained: bool) -> Iterator[str]:
        yield from OnPyramid.problems(self, pretrained=pretrained)
        yield from self.outside({"min_iou": (0, 1)})
        yield from self.below_one(["cells", "channels"])
        if self.flip > 0:
            yield (
                "detector.flip: a mirrored person shows other parts, u and v, by tables that are not here; "
                "set detector.flip: 0"
            )

    def heads(self, backbone: Encoder, classes: int) -> DensePoseHeads:
        stage = self.second_stage(DensePoseHeads, **self.judging(backbone, classes))
        finest = next(iter(LEVELS.values()))
        stage.densepose_decoder = Decoder(self.fpn_channels) if self.decoder else None
        stage.densepose_roi_pool = (
            RoIPooler(
                {finest: backbone.strides["p2"]},
                output_size=self.cells,
                sampling_ratio=self.sampling_ratio,
                aligned=self.aligned,
            )
            if self.decoder
            else self.pooler(backbone, size=self.cells)
        )
        stage.densepose_head = surface_head(self.fpn_channels, self.channels)
        stage.densepose_predictor = SurfacePredictor(self.channels, self.body_classes)
        stage.min_iou = self.min_iou
        stage.weights = self.body_weight, self.part_weight, self.place_weight
        return stage
