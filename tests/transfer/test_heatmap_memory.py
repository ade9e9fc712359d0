"""Keypoints where networks are trained with their channels last in memory, as every run does."""

from __future__ import annotations

import torch
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import keypointrcnn_loss

from boxwise.transfer.detectors.precision import KeypointPredictor


def test_heatmaps_are_rows_whatever_the_order_of_memory() -> None:
    """Breaks when `run.channels_last`, on by default, ends a run of keypoints at torchvision's `view`."""
    torch.manual_seed(0)
    ours = KeypointPredictor(8, 3).to(memory_format=torch.channels_last)
    theirs = KeypointRCNNPredictor(8, 3)
    theirs.load_state_dict(ours.state_dict())
    features = torch.randn(2, 8, 6, 6)
    heatmaps = ours(features.to(memory_format=torch.channels_last))
    torch.testing.assert_close(heatmaps, theirs(features))
    boxes, marks = torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 2), torch.tensor([[[4.0, 4.0, 2.0]] * 3])
    loss = keypointrcnn_loss(heatmaps, [boxes], [marks], [torch.zeros(2, dtype=torch.long)])
    assert torch.isfinite(loss) and loss > 0
