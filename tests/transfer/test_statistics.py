"""Statistics of norms, measured anew, against means written out."""

from typing import Any

import torch
from torch import nn

from boxwise.data.targets import Labelled
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.samples import DetectionBatch, TrainSamples, collate
from boxwise.transfer.statistics import remeasured
from boxwise.transfer.task import Detection

SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "fpn_channels": 16,
    "head": "2fc",
    "min_size": 64,
    "max_size": 96,
    "rpn_post_nms_train": 20,
    "rpn_pre_nms_train": 50,
}


def trained(**settings: Any) -> tuple[Detection, FasterRCNNFPN]:
    """A detector whose running statistics are of no use."""
    torch.manual_seed(0)
    config = FasterRCNNFPN(**(SMALL | settings))
    module = Detection(config.build(classes=2, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)))
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.fill_(7.0)
            norm.running_var.fill_(9.0)
    return module, config


def batches(drawn: Labelled, config: FasterRCNNFPN) -> list[DetectionBatch]:
    samples = TrainSamples(drawn, config, seed=0)
    return [collate([samples.sample(i, 0) for i in pair]) for pair in ((0, 1), (3, 4), (5, 0))]


def test_statistics_are_the_means_of_the_batches(drawn: Labelled) -> None:
    """Breaks when old averages stay in the new statistics, or late batches weigh more than early ones."""
    module, config = trained()
    stem = module.detector.backbone.body
    maps = [stem.conv1(module.normalise(batch)).detach() for batch in batches(drawn, config)]
    weights = [p.clone() for p in module.parameters()]
    count = remeasured(module, batches(drawn, config))
    means = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    variances = torch.stack([m.transpose(0, 1).flatten(1).var(1) for m in maps]).mean(0)
    torch.testing.assert_close(stem.bn1.running_mean, means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stem.bn1.running_var, variances, rtol=1e-4, atol=1e-5)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert count == len(norms) == 28 and {norm.momentum for norm in norms} == {0.1}
    assert all(int(norm.num_batches_tracked) == 3 for norm in norms)
    assert all(torch.equal(a, b) for a, b in zip(weights, module.parameters(), strict=True))
    assert all(p.grad is None for p in module.parameters())


def test_norms_that_are_frozen_or_not_reached_keep_theirs(drawn: Labelled) -> None:
    """Breaks when a frozen norm is measured, or one that no batch reached is left with mean 0 and variance 1."""
    module, config = trained(frozen_stages=2)
    module.detector.spare = nn.BatchNorm1d(3, momentum=0.3)
    nn.init.constant_(module.detector.spare.running_mean, 5.0)
    kept = module.detector.backbone.body.layer1[0].bn1
    before = kept.running_mean.clone()
    count = remeasured(module, batches(drawn, config)[:1])
    spare = module.detector.spare
    assert spare.running_mean.tolist() == [5.0] * 3 and (spare.momentum, int(spare.num_batches_tracked)) == (
        0.3,
        0,
    )
    assert torch.equal(kept.running_mean, before) and before.unique().tolist() == [0.0]
    assert count == 28 - 5
    assert module.detector.backbone.body.layer2[0].bn1.running_mean.max() < 7
