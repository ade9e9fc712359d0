"""The two stages of an R-CNN: torchvision's sampling, matching and suppression, with losses whose turning point is
a setting, and a second stage that others can add to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from boxwise.shapes import Scalar
from boxwise.transfer.detectors.base import Targets

BETA = 1 / 9
"""Where torchvision's box losses turn from square to straight, in units of a box's own targets."""
Features = Mapping[str, Float[Tensor, "B _C _h _w"]]
Sizes = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Sampled:
    """Boxes that a step learns from, one entry an image."""

    boxes: Sequence[Float[Tensor, "_n 4"]]
    matched: Sequence[Int[Tensor, " _n"]]
    """The thing of the image that each box is nearest to."""
    labels: Sequence[Int[Tensor, " _n"]]
    """Its class; 0: the box holds no thing."""
    deltas: Sequence[Float[Tensor, "_n 4"]]
    """From each box to its thing's."""

    def positives(self) -> Sampled:
        """Those that hold a thing."""
        return self.only([labels > 0 for labels in self.labels])

    def only(self, keep: Sequence[Bool[Tensor, " _n"]]) -> Sampled:
        """Those that `keep` names."""
        rows = self.boxes, self.matched, self.labels, self.deltas
        return Sampled(*([t[kept] for t, kept in zip(row, keep, strict=True)] for row in rows))


class Proposals(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's first stage, whose loss turns from square to straight at `beta`."""

    beta: float = BETA

    def compute_loss(
        self, objectness: Tensor, deltas: Tensor, labels: Sequence[Tensor], wanted: Sequence[Tensor]
    ) -> tuple[Scalar, Scalar]:
        """Both are means over the anchors drawn, positive or not."""
        positive, negative = (torch.where(torch.cat([*rows]))[0] for rows in self.fg_bg_sampler(labels))
        drawn = torch.cat([positive, negative])
        straight = F.smooth_l1_loss(
            deltas[positive], torch.cat([*wanted])[positive], beta=self.beta, reduction="sum"
        )
        scores = objectness.flatten()[drawn]
        things = F.binary_cross_entropy_with_logits(scores, torch.cat([*labels])[drawn].to(scores))
        return things, straight / drawn.numel()


class BoxHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's second stage in steps. Subclasses read more in the boxes than their class and corners."""

    beta: float = BETA

    def forward(
        self, features: Features, proposals: Sequence[Tensor], sizes: Sizes, targets: Targets | None = None
    ) -> tuple[Targets, dict[str, Scalar]]:
        """Losses in training, else what is found: torchvision's interface."""
        if not self.training:
            return self.find(features, proposals, sizes), {}
        assert targets is not None, "training needs targets"
        sampled = Sampled(*self.select_training_samples(proposals, targets))
        crops = self.crops(features, sampled.boxes, sizes)
        return [], self.box_losses(crops, sampled) | self.losses(features, crops, sampled, sizes, targets)

    def find(self, features: Features, proposals: Sequence[Tensor], sizes: Sizes) -> Targets:
        """Boxes, labels and scores of each image, the surest first, and what a subclass adds."""
        judged = self.judge(self.crops(features, proposals, sizes))
        kept = self.postprocess_detections(*judged, proposals, sizes)
        found = [{"boxes": b, "labels": i, "scores": s} for b, s, i in zip(*kept, strict=True)]
        self.more(features, found, sizes)
        return found

    def crops(self, features: Features, boxes: Sequence[Tensor], sizes: Sizes) -> Float[Tensor, "M C s s"]:
        """What the boxes are judged by."""
        return self.box_roi_pool(features, boxes, sizes)

    def judge(
        self, crops: Float[Tensor, "M C s s"]
    ) -> tuple[Float[Tensor, "M classes"], Float[Tensor, "M corners"]]:
        """Scores of background and all classes, and the deltas of each of them."""
        return self.box_predictor(self.box_head(crops))

    def box_losses(self, crops: Float[Tensor, "M C s s"], sampled: Sampled) -> dict[str, Scalar]:
        """Means over all boxes drawn; corners are learned for the right class of those that hold a thing."""
        scores, deltas = self.judge(crops)
        labels, wanted = torch.cat([*sampled.labels]), torch.cat([*sampled.deltas])
        held = torch.where(labels > 0)[0]
        right = deltas.unflatten(1, (-1, 4))[held, labels[held]]
        corners = F.smooth_l1_loss(right, wanted[held], beta=self.beta, reduction="sum")
        return {
            "loss_classifier": F.cross_entropy(scores, labels),
            "loss_box_reg": corners / labels.numel(),
        }

    def losses(
        self, features: Features, crops: Tensor, sampled: Sampled, sizes: Sizes, targets: Targets
    ) -> dict[str, Scalar]:
        """Of what else is read in the boxes."""
        return {}

    def more(self, features: Features, found: Targets, sizes: Sizes) -> None:
        """Adds to each image's `found` what else is read in its boxes."""
