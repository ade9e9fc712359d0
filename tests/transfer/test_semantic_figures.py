import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as scripts
from cityscapesscripts.helpers.labels import labels, trainId2label
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from boxwise.data.targets import IGNORED
from boxwise.transfer.metrics.semantic import Confusion, class_ious, mean_iou, semantic_figures

CLASSES = 19


def scenes(seed: int, images: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Truth with ignored pixels, and what was found: mostly right, and nowhere two of the classes. The third is
    not there either, the fourth only found."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, CLASSES, (images, 24, 32), generator=generator)
    guess = torch.randint(0, CLASSES, truth.shape, generator=generator)
    found = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, guess)
    truth[(truth == 2) | (truth == 3)] = 7
    found[(found == 2) | (found == 5)] = 8
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = IGNORED
    return truth, found


def slow(truth: torch.Tensor, found: torch.Tensor) -> list[float]:
    """IoU of each class in loops over pixels; -1: neither there nor found."""
    pairs = [p for p in zip(truth.flatten().tolist(), found.flatten().tolist()) if p[0] != IGNORED]
    ious = []
    for k in range(CLASSES):
        both = sum(t == k and f == k for t, f in pairs)
        either = sum(t == k or f == k for t, f in pairs)
        ious.append(100 * both / either if either else -1.0)
    return ious


def confusion(truth: torch.Tensor, found: torch.Tensor) -> Confusion:
    counted = Confusion(CLASSES)
    for one, other in zip(truth.split(3), found.split(3)):
        counted.add(one.to(torch.uint8), other)
    return counted


def test_iou_equals_the_loops() -> None:
    """Breaks when ignored pixels count, when batches are averaged instead of summed, or when a class that is only
    found, or that is nowhere, is taken for the other."""
    truth, found = scenes(0)
    expected, counted = slow(truth, found), confusion(truth, found)
    assert class_ious(counted.counts()) == pytest.approx(expected, abs=1e-12)
    assert (expected[2], expected[3], expected[5]) == (-1, 0, 0)
    known = [iou for iou in expected if iou >= 0]
    assert len(known) == 18 and mean_iou(counted) == pytest.approx(sum(known) / 18)
    names = [trainId2label[k].name for k in range(CLASSES)]
    figures = semantic_figures(counted, names)
    assert list(figures) == ["mIoU", *(f"IoU {n}" for n in names)]
    assert figures["mIoU"] == mean_iou(counted) and figures["IoU bicycle"] == pytest.approx(expected[18])


def test_iou_equals_the_scripts_of_cityscapes(tmp_path: Path) -> None:
    """Breaks when the sum over a city is another than the one that is reported."""
    truth, found = scenes(1)
    to_id = np.zeros(256, dtype=np.uint8)
    to_id[:CLASSES] = [trainId2label[k].id for k in range(CLASSES)]
    to_id[IGNORED] = next(label.id for label in labels if label.name == "static")
    args = copy.copy(scripts.args)
    args.evalInstLevelScore, args.evalPixelAccuracy, args.JSONOutput, args.quiet = False, False, False, True
    said, known = [], []
    for k, (one, other) in enumerate(zip(truth.numpy(), found.numpy())):
        known.append(str(tmp_path / f"truth_{k}.png"))
        said.append(str(tmp_path / f"found_{k}.png"))
        Image.fromarray(to_id[one]).save(known[-1])
        Image.fromarray(to_id[other]).save(said[-1])
    expected = scripts.evaluateImgLists(said, known, args)
    counted = confusion(truth, found)
    assert mean_iou(counted) == pytest.approx(100 * expected["averageScoreClasses"], abs=1e-10, rel=0)
    for k, iou in enumerate(class_ious(counted.counts())):
        score = expected["classScores"][trainId2label[k].name]
        assert iou == pytest.approx(-1 if np.isnan(score) else 100 * score, abs=1e-10, rel=0)


def test_a_pixel_of_no_class_is_an_error() -> None:
    """Breaks when a class too many in the labels, or in the model, is counted for a neighbour or dropped."""
    truth, found = scenes(2)
    for stray in ((torch.where(truth == 4, 19, truth), found), (truth, found.where(found != 18, 19))):
        with pytest.raises(ValueError, match="pixels are of no class, neither 0 to 18 nor 255"):
            mean_iou(confusion(*stray))


def test_nothing_to_judge() -> None:
    """Breaks when no pixel becomes a mean of 0."""
    nothing = torch.full((1, 4, 4), IGNORED)
    assert mean_iou(confusion(nothing, torch.zeros_like(nothing))) == -1


class Waits(TorchDispatchMode):
    """Counts the calls for which a host waits for its device: numbers read, and results whose size is not known."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name() in (
            "aten::_local_scalar_dense",
            "aten::bincount",
            "aten::nonzero",
            "aten::unique_dim",
        )
        return func(*args, **(kwargs or {}))


def test_counting_never_waits_for_the_device() -> None:
    """Twin of the check with CUDA's own alarm below; breaks with bincount, a mask as index, or a check by value."""
    truth, found = scenes(3)
    with Waits() as waits:
        counted = confusion(truth, found)
        assert waits.count == 0
        mean_iou(counted)
        assert waits.count > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_counting_never_waits_for_cuda() -> None:
    truth, found = scenes(3)
    counted, there = Confusion(CLASSES, "cuda"), (truth.cuda(), found.cuda())
    torch.cuda.set_sync_debug_mode("error")
    try:
        counted.add(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(counted.counts().cpu(), confusion(truth, found).counts())
