"""Linear support vector machines on frozen maps: which classes does an image of VOC 2007 show?

Goyal et al., "Scaling and Benchmarking Self-Supervised Visual Representation Learning", ICCV 2019,
https://arxiv.org/abs/1905.01235, as DetCo measures with it (ICCV 2021, https://arxiv.org/abs/2102.04803, tables 2
and 8).

    x = x / (|x| + 1e-5)                                       # a row an image, of one level of maps
    for each class, with y = 1 where it is shown, else -1:     # difficult ones alone: -1
        cost = the one of the greatest mean AP over folds of the training images, the first among equals
        w, b = the least of |w|^2 / 2 + b^2 / 2 + cost * sum(weight(y) * max(0, 1 - y * (w . x + b)) ** 2)
        AP = average_precision(w . x + b, y)                   # test images; difficult ones alone: left out
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int8
from pydantic import Field
from torch import Tensor

from boxwise.config import Above, Count, settings
from boxwise.data.cores import cores
from boxwise.transfer.metrics.voc import area
from boxwise.transfer.probes.looks import Still

if TYPE_CHECKING:  # sklearn takes a second, which only those who judge wait for
    from sklearn.svm import LinearSVC

Level = Literal["c2", "c3", "c4", "c5"]

NO_FIGURE = -1.0
"""The AP of a class that cannot be measured, and the mean of none."""
EPSILON = 1e-5


@settings
class SVM:
    """A linear support vector machine for each class, on pooled maps of a frozen backbone."""

    name: Literal["svm"] = "svm"
    backbone: str = "resnet50"
    """torchvision's resnet18, 34, 50 or 101, or any timm backbone with feature maps."""
    still: Still = Still(squeeze=True)
    """How pictures are seen: the shorter side at 256 pixels, then squeezed to a square of 224."""
    levels: Annotated[tuple[Level, ...], Field(min_length=1)] = ("c2", "c3", "c4", "c5")
    """Maps that are measured, each by itself: c2 to c5 are the papers' res2 to res5."""
    costs: Annotated[tuple[Above, ...], Field(min_length=1)] = (
        1.0,
        10.0,
        100.0,
        *(0.5**n for n in range(4, 20)),
    )
    """What an error may weigh against the width of the margin; each class takes its best, the first among equals."""
    folds: Annotated[int, Field(ge=2)] = 3
    """Parts of the training images, each left out once to choose the cost."""
    tolerance: Above = 1e-4
    """Violation of the optimum at which the solver stops."""
    iterations: Count = 2000
    """Most passes of the solver; it stops there, converged or not."""
    positive_weight: Above = 2.0
    """What a positive weighs against a negative."""

    def problems(self) -> Iterator[str]:
        """What cannot be, one sentence each."""
        yield from self.still.problems()


class Pool(NamedTuple):
    """An average pool, in cells, and the side of the map that it was made for."""

    kernel: int
    stride: int
    side: int

    @property
    def bins(self) -> int:
        """A side, of what it makes of that map."""
        return (self.side - self.kernel) // self.stride + 1


POOLS: Mapping[Level, Pool] = {
    "c2": Pool(16, 8, 56),
    "c3": Pool(13, 5, 28),
    "c4": Pool(8, 3, 14),
    "c5": Pool(6, 1, 7),
}
"""For images of 224 pixels; of a ResNet-50 they leave 9216, 8192, 9216 and 8192 numbers an image."""


def pooled(
    maps: Mapping[Level, Float[Tensor, "_B _C _h _w"]], pools: Mapping[Level, Pool] = POOLS
) -> dict[Level, Float[Tensor, "_B _d"]]:
    """A row an image, of each level: channel by channel, each its bins row by row.

    A map of another size than its pool was made for is parted into as many bins, as even as its cells allow.
    """
    return {level: _pool(cells, pools[level]).flatten(1) for level, cells in maps.items()}


def _pool(cells: Tensor, pool: Pool) -> Tensor:
    if cells.shape[-2:] == (pool.side, pool.side):
        return F.avg_pool2d(cells, pool.kernel, pool.stride)
    return F.adaptive_avg_pool2d(cells, pool.bins)


@dataclass(frozen=True, slots=True)
class Judged:
    """What the classes came to, in the order of the columns of the answers."""

    aps: tuple[float, ...]
    """In 0..100; -1 where the training images or the test images show no positive, or the former no negative."""
    costs: tuple[float | None, ...]
    """That were chosen; none where there is no AP."""

    @property
    def mean(self) -> float:
        """Over the classes that have an AP; -1 where none has."""
        measured = [ap for ap in self.aps if ap != NO_FIGURE]
        return sum(measured) / len(measured) if measured else NO_FIGURE


def judged(
    train_x: Float32[np.ndarray, "n d"],
    train_y: Int8[np.ndarray, "n k"],
    test_x: Float32[np.ndarray, "m d"],
    test_y: Int8[np.ndarray, "m k"],
    *,
    config: SVM,
    seed: int = 0,
    jobs: int | None = None,
) -> Judged:
    """The AP of every class, of features with a row an image.

    Answers: 1 where an image shows the class, 0 where it does not, -1 where it shows difficult ones alone. `jobs`:
    processes, one a core where none; each holds its class's features in float64 and in the solver's own table, 24
    bytes a number. Their count changes no figure.
    """
    from sklearn.utils.parallel import Parallel, delayed

    rows, test_rows = _unit(train_x), _unit(test_x)
    classes = train_y.shape[1]
    # Processes: threads would share liblinear's one random generator, and no run would equal another.
    made = Parallel(n_jobs=min(jobs or cores(), classes))(
        delayed(_class)(rows, train_y[:, k] == 1, test_rows, test_y[:, k], config, seed)
        for k in range(classes)
    )
    return Judged(aps=tuple(ap for ap, _ in made), costs=tuple(cost for _, cost in made))


def _class(
    rows: Float32[np.ndarray, "n d"],
    shown: Bool[np.ndarray, " n"],
    test_rows: Float32[np.ndarray, "m d"],
    test_y: Int8[np.ndarray, " m"],
    config: SVM,
    seed: int,
) -> tuple[float, float | None]:
    """AP and cost of one class."""
    from sklearn.exceptions import ConvergenceWarning

    if not shown.any() or shown.all() or not (test_y == 1).any():
        return NO_FIGURE, None
    signs, told = np.where(shown, 1, -1), test_y != -1
    with warnings.catch_warnings():
        # The protocol stops at its number of passes; at its larger costs most solutions are not there yet.
        warnings.simplefilter("ignore", ConvergenceWarning)
        cost = _chosen(rows, signs, config, seed)
        scores = machine(cost, config, seed).fit(rows, signs).decision_function(test_rows[told])
    return 100 * average_precision(scores, test_y[told] == 1), cost


def _chosen(rows: np.ndarray, signs: np.ndarray, config: SVM, seed: int) -> float:
    """The best cost on folds with equal shares of positives; that nearest to 1 where a fold would have none."""
    from sklearn.model_selection import cross_val_score

    if min((signs == 1).sum(), (signs == -1).sum()) < config.folds:
        return min(config.costs, key=lambda cost: abs(math.log(cost)))
    means = [
        cross_val_score(
            machine(cost, config, seed),
            rows,
            signs,
            cv=config.folds,
            scoring="average_precision",
            error_score="raise",
        ).mean()
        for cost in config.costs
    ]
    return config.costs[int(np.argmax(means))]


def machine(cost: float, config: SVM, seed: int) -> LinearSVC:
    """The classifier of one class, for signs of 1 and -1."""
    from sklearn.svm import LinearSVC

    return LinearSVC(
        C=cost,
        loss="squared_hinge",
        dual=True,
        tol=config.tolerance,
        max_iter=config.iterations,
        class_weight={1: config.positive_weight, -1: 1.0},
        intercept_scaling=1.0,
        random_state=seed,
    )


def average_precision(scores: Float[np.ndarray, " n"], shown: Bool[np.ndarray, " n"]) -> float:
    """In 0..1: the area below the monotone curve, the surest first, ties as they come. One at least is shown."""
    hits = np.cumsum(shown[np.argsort(-scores, kind="stable")])
    assert hits[-1] > 0
    return area(hits / hits[-1], hits / np.arange(1, len(hits) + 1))


def _unit(rows: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + EPSILON)
