"""Statistics of norms, measured anew, against means written out."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from boxwise.data.targets import Labelled
from boxwise.transfer import statistics
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.samples import DetectionBatch, TrainSamples, collate
from boxwise.transfer.statistics import Moments, remeasured
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


def plain(maps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of the batches' means, and the mean of their second moments around it."""
    mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    moments = [(m - mean.view(-1, 1, 1)).square().mean((0, 2, 3)) for m in maps]
    return mean, torch.stack(moments).mean(0)


def test_statistics_are_those_of_the_batches(drawn: Labelled) -> None:
    """Breaks when old averages stay in the new statistics, late batches weigh more than early ones, or variance is
    taken around each batch's own mean."""
    module, config = trained()
    stem = module.detector.backbone.body
    given = batches(drawn, config)
    given[1] = replace(given[1], images=255 - given[1].images // 2)  # means that differ much
    maps = [stem.conv1(module.normalise(batch)).detach() for batch in given]
    weights = [p.clone() for p in module.parameters()]
    count = remeasured(module, given)
    mean, var = plain(maps)
    assert not torch.allclose(var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0), rtol=0.1)
    torch.testing.assert_close(stem.bn1.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stem.bn1.running_var, var, rtol=1e-4, atol=1e-5)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert count == len(norms) == 28 and {norm.momentum for norm in norms} == {0.1}
    assert all(int(norm.num_batches_tracked) == 3 for norm in norms)
    assert all(torch.equal(a, b) for a, b in zip(weights, module.parameters(), strict=True))
    assert all(p.grad is None for p in module.parameters())
    assert not any(m._forward_pre_hooks for m in norms)


def test_a_seed_decides_them(drawn: Labelled) -> None:
    """Breaks when a box head's statistics hang on draws of before: a run that was killed would end elsewhere."""
    found = []
    for seed, before in ((1, 5), (1, 6), (2, 6)):
        module, config = trained(head="4conv1fc", box_batch_size_per_image=4)
        torch.manual_seed(before)
        remeasured(module, batches(drawn, config), seed=seed)
        found.append(module.detector.roi_heads.box_head[0][1].running_mean.clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_the_batches_of_all_ranks_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when each rank ends with its own statistics, or one that met fewer batches counts as much."""
    maps = [torch.randn(4, 3, 2, side) * (1 + side) + 10 * side for side in (1, 2, 3)]
    norms, kept, sent = [nn.BatchNorm2d(3) for _ in range(2)], [], []
    for norm, met in zip(norms, (maps[:1], maps[1:]), strict=True):
        kept.append(Moments(norm))
        for x in (*met, torch.zeros(0, 3, 2, 2)):
            kept[-1].add(norm, (x,))
    monkeypatch.setattr(statistics, "gather", lambda share: sent.append(share) or share)
    for norm, moments in zip(norms, kept, strict=True):
        moments.into(norm)
    monkeypatch.setattr(statistics, "gather", lambda share: torch.cat(sent))
    mean, var = plain(maps)
    for norm, moments in zip(norms, kept, strict=True):
        assert moments.into(norm)
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, var)
        assert int(norm.num_batches_tracked) == 3


def test_a_small_variance_around_a_large_mean_is_kept() -> None:
    """Breaks when squares are summed in float32: their difference would be noise."""
    norm = nn.BatchNorm2d(1)
    moments, maps = Moments(norm), [1e4 + 0.1 * torch.randn(8, 1, 8, 8) for _ in range(4)]
    for x in maps:
        moments.add(norm, (x,))
    moments.into(norm)
    exact = torch.cat(maps).double().var(correction=0)
    torch.testing.assert_close(norm.running_var.double()[0], exact, rtol=0.02, atol=0)


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
