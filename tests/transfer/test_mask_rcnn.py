"""Mask R-CNN on a pyramid, held to torchvision's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2

from boxwise.transfer.detectors.mask_rcnn import MaskRCNNFPN, mask_loss, mask_targets
from boxwise.transfer.detectors.rcnn import PyramidRCNN
from rcnns import (
    FEW,
    MEAN,
    SMALL,
    STD,
    TOLD,
    assert_same_finds,
    assert_same_training,
    block,
    pictures,
)


def small(**changes: Any) -> PyramidRCNN:
    torch.manual_seed(0)
    return MaskRCNNFPN(**{**SMALL, **changes}).build(classes=2, mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def pair() -> tuple[PyramidRCNN, nn.Module]:
    torch.manual_seed(0)
    ours = MaskRCNNFPN(**FEW, roi_canonical_size=224).build(classes=4, mean=MEAN, std=STD)
    theirs = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=5, **TOLD)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_losses_gradients_and_finds_equal_torchvisions(pair: tuple[PyramidRCNN, nn.Module]) -> None:
    """Breaks when masks are read at another size, from other boxes, or of another class; names are compared too."""
    ours, theirs = (model.train() for model in pair)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert_same_training(ours, theirs, list(zip(ours.parameters(), theirs.parameters())))
    assert_same_finds(ours, theirs)


def test_without_norms_names_are_those_of_torchvisions_first_version() -> None:
    """Breaks when a norm stays, or a bias is lost with it."""
    told = MaskRCNNFPN(head="2fc", fpn_norm="none", mask_norm="none")
    with torch.device("meta"):
        ours = told.build(classes=4, mean=MEAN, std=STD)
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5)
    assert {n: t.shape for n, t in ours.state_dict().items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }


def test_targets_lie_where_features_are_read() -> None:
    """Breaks when aligned features are taught masks that are half a pixel off, as torchvision's are."""
    masks = torch.zeros(2, 12, 12, dtype=torch.uint8)
    masks[1, 3:7, 2:9] = 1
    rows = torch.tensor([[1.0, 1, 2, 9, 10]])
    aligned = mask_targets(masks, rows, size=8, aligned=True)
    assert torch.equal(aligned[0], masks[1, 2:10, 1:9].float())
    shifted = mask_targets(masks, rows, size=8, aligned=False)
    assert shifted[0, :6, 3].tolist() == [0.5, 1, 1, 1, 0.5, 0]
    halved = mask_targets(masks, torch.tensor([[1.0, 0, 0, 12, 12]]), size=6, aligned=True)
    assert halved[0].tolist()[1] == [0, 0.5, 0.5, 0.5, 0.25, 0]


def test_the_loss_is_that_of_each_rows_own_class() -> None:
    """Breaks when classes compete, or rows are weighed by their class."""
    logits, wanted = torch.randn(3, 4, 2, 2), torch.rand(3, 2, 2)
    labels = torch.tensor([2, 1, 2])
    slow = 0.0
    for row, label in enumerate(labels):
        p = logits[row, label].sigmoid()
        slow -= (wanted[row] * p.log() + (1 - wanted[row]) * (1 - p).log()).sum() / 12
    torch.testing.assert_close(mask_loss(logits, labels, wanted), slow)


def test_images_without_things_teach_masks_nothing() -> None:
    """Breaks when an empty batch makes a loss or a statistic NaN, or leaves parameters without a gradient."""
    images, targets = pictures()
    for target in targets:
        target |= {name: rows[:0] for name, rows in target.items()}
    model = small().train()
    before = {n: b.clone() for n, b in model.named_buffers() if "mask_head" in n and "running" in n}
    losses = model.losses(*block(images, targets))
    assert losses["mask"] == 0 and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []  # zeros there are what is wanted
    after = dict(model.named_buffers())
    assert len(before) == 8 and all(torch.equal(after[n], b) for n, b in before.items())


def test_masks_are_probabilities_over_boxes() -> None:
    """Breaks when masks are stretched over boxes in half precision, or where nothing is found."""
    model = small(score_threshold=0.0, detections_per_image=5).eval()
    images, _ = block(*pictures())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model.detect(images)
    assert [f["masks"].shape for f in found] == [(5, 1, 28, 28)] * 2
    assert all(
        f["masks"].dtype == torch.float32 and 0 <= f["masks"].min() < f["masks"].max() <= 1 for f in found
    )
    none = small(score_threshold=1.0).eval().detect(images)
    assert [f["masks"].shape for f in none] == [(0, 1, 28, 28)] * 2
