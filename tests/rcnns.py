"""Pictures and comparisons that the tests of all R-CNNs share."""

from __future__ import annotations

from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from boxwise.nn import align

M = TypeVar("M", bound=nn.Module)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "fpn_channels": 16,
    "min_size": 64,
    "max_size": 96,
    "box_batch_size_per_image": 16,
    "rpn_post_nms_train": 40,
}
"""A detector on a pyramid that takes moments."""
SIZES: dict[str, Any] = {"min_size": 96, "max_size": 160}
FEW: dict[str, Any] = {
    **SIZES,
    "aligned": False,
    "anchor_sizes": (32, 64, 128, 256, 512),
    "box_batch_size_per_image": 8,
    "rpn_pre_nms_train": 300,
    "rpn_pre_nms_test": 200,
    "rpn_post_nms_train": 100,
    "rpn_post_nms_test": 20,
    "score_threshold": 0.01,
    "detections_per_image": 8,
}
"""Settings under which torchvision's models do the same, told as below."""
TOLD: dict[str, Any] = {
    **SIZES,
    "box_batch_size_per_image": 8,
    "rpn_pre_nms_top_n_train": 300,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 20,
    "box_score_thresh": 0.01,
    "box_detections_per_img": 8,
}


def pictures(keypoints: int = 17) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images with two things each, discs in their boxes; the second thing has no labelled keypoint."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 96, 120, generator=generator), torch.rand(3, 110, 96, generator=generator)]
    boxes = torch.tensor([[5.0, 8.0, 40.0, 60.0], [30.0, 20.0, 90.0, 80.0]])
    targets = []
    for i, image in enumerate(images):
        placed = boxes + i
        marks = placed[:, None, :2] + torch.rand(2, keypoints, 2, generator=generator) * 30
        shown = torch.tensor([2.0, 0.0])[:, None, None].expand(2, keypoints, 1)
        targets.append(
            {
                "boxes": placed,
                "labels": torch.tensor([1, 2]),
                "masks": discs(placed, image.shape[-2:]),
                "keypoints": torch.cat([marks * (shown > 0), shown], dim=-1),
            }
        )
    return images, targets


def discs(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The ellipse that fills each box, as pixels."""
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    left, top, right, bottom = (side[:, None, None] for side in boxes.unbind(1))
    along = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
    return (along[0] ** 2 + along[1] ** 2 <= 1).to(torch.uint8)


def block(
    images: list[Tensor], targets: list[dict[str, Tensor]]
) -> tuple[ImageList, list[dict[str, Tensor]]]:
    """The images as they come from a batch of ours, padded to one size."""
    height, width = (-(-max(i.shape[k] for i in images) // 32) * 32 for k in (1, 2))
    padded = torch.zeros(len(images), 3, height, width)
    for row, image in zip(padded, images):
        row[:, : image.shape[1], : image.shape[2]] = (image - 0.5) / 0.25
    return ImageList(padded, [tuple(i.shape[-2:]) for i in images]), targets


def awake(model: M) -> M:
    """`model` with its zero norms at one: the last of a timm ResNet's blocks, through which nothing of them learns."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight") and not parameter.any():
            nn.init.ones_(parameter)
    return model


def silent(model: nn.Module) -> list[str]:
    """Parameters that train and have met no gradient, or one of zeros."""
    return [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]


def assert_same_training(ours: nn.Module, theirs: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Losses and gradients of two models whose parameters `pairs` holds, both with torchvision's kernel of RoIAlign.

    tests/nn/test_align.py holds ours to it; its last digits turn some ReLU over, which the gradient shows.
    """
    images, targets = pictures()
    found = []
    with patch.object(align, "MOST_CELLS", 0):
        for model in (ours, theirs):
            model.zero_grad()
            torch.manual_seed(3)
            losses = model(
                [i.clone() for i in images], [{n: t.clone() for n, t in row.items()} for row in targets]
            )
            sum(losses.values()).backward()
            found.append(losses)
    assert found[0].keys() == found[1].keys()
    for name, loss in found[1].items():
        assert loss > 0
        torch.testing.assert_close(found[0][name], loss, atol=1e-5, rtol=1e-5)
    norm = torch.stack([b.grad.norm() for _, b in pairs]).norm()
    difference = torch.stack([(a.grad - b.grad).norm() for a, b in pairs]).norm()
    assert difference < 2e-4 * norm


@torch.no_grad()
def assert_same_finds(ours: nn.Module, theirs: nn.Module, *, least: int = 10) -> None:
    """What two models find, masks and keypoints included."""
    images, _ = pictures()
    found, expected = (model.eval()([i.clone() for i in images]) for model in (ours, theirs))
    assert sum(len(f["scores"]) for f in expected) > least
    for a, b in zip(found, expected):
        assert a.keys() == b.keys() and torch.equal(a["labels"], b["labels"])
        for name, given in b.items():
            torch.testing.assert_close(a[name], given, atol=1e-3, rtol=1e-4)
