"""Mean IoU of classes over pixels, summed over a whole set as Cityscapes sums it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from boxwise.data.targets import IGNORED


class Confusion:
    """Counts pixels by true and found class, on the device of what it is given; nothing waits for the device."""

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        self.classes = classes
        # After the pairs of classes: pixels that are ignored, then those of no class.
        self._table = torch.zeros(classes * classes + 2, dtype=torch.int64, device=device)

    def add(self, truth: Integer[Tensor, "*B H W"], found: Integer[Tensor, "*B H W"]) -> None:
        """Both hold classes 0 .. C-1; where `truth` is IGNORED, `found` is not looked at."""
        rows, columns, pairs = truth.long(), found.long(), self.classes**2
        known = (rows >= 0) & (rows < self.classes) & (columns >= 0) & (columns < self.classes)
        cells = torch.where(known, rows * self.classes + columns, pairs + 1)
        cells = torch.where(rows == IGNORED, pairs, cells).flatten()
        self._table.scatter_add_(0, cells, torch.ones_like(cells))  # bincount would wait for its length

    def counts(self) -> Int64[Tensor, "C C"]:
        """A row for each true class, a column for each found one; waits for the device.

        Raises ValueError where a pixel was of no class.
        """
        if stray := int(self._table[-1]):
            raise ValueError(
                f"{stray} pixels are of no class, neither 0 to {self.classes - 1} nor {IGNORED}: check how many "
                "classes the labels have"
            )
        return self._table[:-2].view(self.classes, self.classes)


def class_ious(counts: Int64[Tensor, "C C"]) -> list[float]:
    """IoU of each class in 0..100; -1 where it is neither there nor found."""
    shared = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    ious = torch.where(union > 0, 100 * shared / union.clamp(min=1), -1.0)
    return ious.tolist()


def mean_iou(confusion: Confusion) -> float:
    """The mean over the classes that are there or were found, in 0..100; -1 where there are none."""
    ious = [iou for iou in class_ious(confusion.counts()) if iou >= 0]
    return sum(ious) / len(ious) if ious else -1.0


def semantic_figures(confusion: Confusion, names: Sequence[str]) -> dict[str, float]:
    """mIoU, then the IoU of each class under its name, all in 0..100."""
    ious = class_ious(confusion.counts())
    return {"mIoU": mean_iou(confusion), **{f"IoU {n}": iou for n, iou in zip(names, ious, strict=True)}}
