"""Training a detector, as the one loop wants it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from boxwise.shapes import Image, Scalar
from boxwise.transfer.detectors.base import Detector, Targets
from boxwise.transfer.samples import DetectionBatch


class Detection(nn.Module):
    """A detector behind batches that workers have resized: normalises on the device and calls its parts.

    torchvision's own `forward` would resize again and copy image by image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        for name in ("mean", "std"):
            rgb = torch.tensor(getattr(detector, name)).view(3, 1, 1)
            self.register_buffer(name, rgb, persistent=False)

    def forward(self, batch: DetectionBatch) -> dict[str, Scalar]:
        """The terms of the detector's loss, and their sum as "loss"."""
        losses = self.detector.losses(self._images(batch), batch.targets())
        return losses | {"loss": torch.stack([*losses.values()]).sum()}

    def detect(self, batch: DetectionBatch) -> Targets:
        """What is found in each image, in pixels of the batch; for evaluation mode."""
        return self.detector.detect(self._images(batch))

    def normalise(self, batch: DetectionBatch) -> Image:
        """Float images with mean 0 and deviation 1, and zeros beyond each."""
        images = (batch.images.to(self.mean.dtype) / 255 - self.mean) / self.std
        for image, (height, width) in zip(images, batch.sizes, strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        return images

    def _images(self, batch: DetectionBatch) -> ImageList:
        return ImageList(self.normalise(batch), [*batch.sizes])


class DetectionTask:
    """A detector as the engine's task."""

    def __init__(self, detector: Detector) -> None:
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
