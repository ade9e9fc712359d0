"""How often a trained probe is right."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from boxwise.config import settings
from boxwise.transfer.probes.accuracy import accuracy
from boxwise.transfer.probes.base import Probe, ProbeConfig, Reader
from boxwise.transfer.probes.looks import ProbeBatch


class Told(Reader):
    """Reads the scores that a picture's first line of red holds, once for each of its boxes where there are any."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.exact = width, []

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        self.exact.append(not torch.is_autocast_enabled("cpu"))
        lines = images[:, 0, 0, : self.width]
        return lines[boxes[:, 0].long()] if len(boxes) else lines

    def backbone(self) -> nn.Module:
        return self


@settings
class Telling(ProbeConfig):
    """A probe whose scores are told."""

    name: Literal["telling"] = "telling"
    width: int = 7

    def open(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def reader(self) -> Reader:
        return Told(self.width)


def telling(width: int, *, normalised: bool = False) -> Probe:
    config = Telling(width=width, normalised=normalised)
    probe = config.build(classes=width, mean=(0, 0, 0), std=(1 / 255,) * 3)
    nn.init.eye_(probe.classifier.weight)
    return probe


def told(ranks: list[int], width: int) -> ProbeBatch:
    """One picture for each of `ranks`, at which, counted from 1, its right class stands."""
    images = torch.zeros(len(ranks), 3, 8, 8, dtype=torch.uint8)
    classes = torch.arange(len(ranks)) % width
    for i, rank in enumerate(ranks):
        order = [k for k in range(width) if k != classes[i]]
        order.insert(rank - 1, int(classes[i]))
        for place, k in enumerate(order):
            images[i, 0, 0, k] = 200 - 20 * place
    return ProbeBatch(images, classes, torch.zeros(0, 5), tuple(range(len(ranks))))


def test_accuracy_counts_every_row_once() -> None:
    """Breaks when batches are averaged, the last of which is smaller, when top5 counts the sixth or not the fifth, when
    shares are of 1, or when classes that are asked about often weigh more in the balanced figure."""
    batches = [told([1, 5, 6, 2], 7), told([1, 1, 7, 1], 7), told([6], 7)]
    found = accuracy(telling(7), batches, device="cpu")
    balanced = pytest.approx(100 * (2 / 3 + 1 / 2 + 0 / 2 + 1 / 2) / 4)
    figures = {"top1": pytest.approx(400 / 9), "top5": pytest.approx(600 / 9), "balanced": balanced}
    assert found == figures | {"rows": 9, "images": 9}


@pytest.mark.parametrize("width", [2, 5])
def test_there_is_no_top5_of_five_classes(width: int) -> None:
    """Breaks when 100 is shown as a figure, or more classes are asked for than there are."""
    balanced = {2: pytest.approx(100 * (1 / 3 + 1 / 2) / 2), 5: pytest.approx(40)}[width]
    assert accuracy(telling(width), [told([1, 2, 2, 1, 2], width)], device="cpu") == {
        "top1": 40,
        "balanced": balanced,
        "rows": 5,
        "images": 5,
    }
    assert accuracy(telling(6), [told([6, 5], 6)], device="cpu") == {
        "top1": 0,
        "top5": 50,
        "balanced": 0,
        "rows": 2,
        "images": 2,
    }


def test_every_box_counts_as_much() -> None:
    """Breaks when the shares are of images, or images are averaged that show one box or many."""
    one, many = told([1, 6], 7), told([2, 1, 3], 7)
    boxes = torch.tensor([[0.0, 1, 2, 3, 4], [0, 0, 0, 8, 8], [0, 2, 2, 5, 6], [2, 1, 1, 4, 4]])
    many = replace(many, boxes=boxes, classes=many.classes[[0, 0, 0, 2]])
    boxes = torch.tensor([[0.0, 1, 2, 3, 4], [1, 0, 0, 8, 8]])
    found = accuracy(telling(7), [many, replace(one, boxes=boxes)], device="cpu")
    figures = {"top1": pytest.approx(100 / 6), "top5": pytest.approx(500 / 6), "rows": 6, "images": 5}
    assert found == figures | {"balanced": pytest.approx(25 / 3)}


def test_there_is_no_accuracy_of_nothing() -> None:
    """Breaks with a division by 0, or with 0 for what was not measured."""
    nothing = {"top1": -1, "top5": -1, "balanced": -1, "rows": 0, "images": 0}
    assert accuracy(telling(7), [], device="cpu") == nothing
    assert accuracy(telling(7), [told([], 7)], device="cpu") == nothing


@pytest.mark.parametrize("mode", [True, False])
def test_a_measurement_teaches_nothing_and_leaves_the_mode(mode: bool) -> None:
    """Breaks when rows are normalised by their own batch, whose statistics stay behind; when a probe comes back in
    another mode, after a bad batch too; and when bfloat16 is asked for in vain."""
    probe = telling(7, normalised=True).train(mode)
    probe.norm.running_mean[0] = 500  # so that class 0 is never the surest
    before = copy.deepcopy(probe.state_dict())
    found = accuracy(probe, [told([1, 1, 1, 1], 7)], device="cpu", precision="bf16")
    assert found == {
        "top1": 75,
        "top5": 75,
        "balanced": 75,
        "rows": 4,
        "images": 4,
    } and probe.reader.exact == [False]
    assert probe.training is mode
    assert all(torch.equal(t, before[n]) for n, t in probe.state_dict().items())

    def broken() -> Any:
        raise OSError("gone")
        yield

    with pytest.raises(OSError, match="gone"):
        accuracy(probe, broken(), device="cpu")
    assert probe.training is mode and accuracy(probe, [], device="cpu")["rows"] == 0
    accuracy(probe, [told([1], 7)], device="cpu")
    assert probe.reader.exact == [False, True]
