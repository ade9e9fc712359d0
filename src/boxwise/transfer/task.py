"""Training a detector, as the one loop wants it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList

from boxwise.shapes import Image, Scalar
from boxwise.transfer.samples import DetectionBatch

TERMS = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "rpn_box",
    "loss_classifier": "classifier",
    "loss_box_reg": "box",
}
"""torchvision's names of the four losses, and ours."""


class Detection(nn.Module):
    """A detector behind batches that workers have resized: normalises on the device and calls its parts.

    torchvision's own `forward` would resize again and copy image by image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.detector = detector
        for name in ("mean", "std"):
            rgb = torch.tensor(getattr(detector.transform, f"image_{name}")).view(3, 1, 1)
            self.register_buffer(name, rgb, persistent=False)

    def forward(self, batch: DetectionBatch) -> dict[str, Scalar]:
        """The four losses of Faster R-CNN, and their sum as "loss"."""
        images, features = self._encode(batch)
        targets = batch.targets()
        proposals, first = self.detector.rpn(images, features, targets)
        _, second = self.detector.roi_heads(features, proposals, images.image_sizes, targets)
        losses = {TERMS[name]: loss for name, loss in {**first, **second}.items()}
        return losses | {"loss": torch.stack([*losses.values()]).sum()}

    def detect(self, batch: DetectionBatch) -> list[dict[str, Tensor]]:
        """Boxes, labels and scores of each image, in pixels of the batch; for evaluation mode."""
        images, features = self._encode(batch)
        proposals, _ = self.detector.rpn(images, features)
        found, _ = self.detector.roi_heads(features, proposals, images.image_sizes)
        return found

    def normalise(self, batch: DetectionBatch) -> Image:
        """Float images with mean 0 and deviation 1, and zeros beyond each."""
        images = (batch.images.to(self.mean.dtype) / 255 - self.mean) / self.std
        for image, (height, width) in zip(images, batch.sizes, strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        return images

    def _encode(self, batch: DetectionBatch) -> tuple[ImageList, dict[str, Tensor]]:
        images = self.normalise(batch)
        return ImageList(images, [*batch.sizes]), self.detector.backbone(images)


class DetectionTask:
    """A detector as the engine's task."""

    def __init__(self, detector: FasterRCNN) -> None:
        self.module = Detection(detector)

    def prepare(self, load: DetectionBatch, device: torch.device) -> DetectionBatch:
        return load.to(device)

    def images(self, load: DetectionBatch) -> int:
        return len(load)

    def after_step(self, step: int, total: int, *, ok: Scalar | None) -> None:
        """Nothing follows a detector."""

    def figures(self) -> Mapping[str, Tensor]:
        """Nothing beside the losses."""
        return {}
