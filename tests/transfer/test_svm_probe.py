import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from boxwise.strict import SettingsError, dump_yaml, load_yaml, plain, read
from boxwise.transfer.probes.svm import SVM, Judged, average_precision, judged, machine, pooled

pytestmark = pytest.mark.filterwarnings("ignore:Liblinear failed to converge")  # the reference's

Answered = tuple[np.ndarray, np.ndarray]


def answered(seed: int, images: int, *, classes: int = 4, width: int = 12, noise: float = 1.0) -> Answered:
    """Rows of all lengths, one of them 0, and answers that they tell in part; a tenth are difficult."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).normal(size=(width, classes))
    x = rng.normal(size=(images, width))
    shown = x @ truth + noise * rng.normal(size=(images, classes)) > np.linspace(0.5, 4, classes)
    y = np.where(rng.random((images, classes)) < 0.1, -1, shown)
    x *= rng.uniform(0.01, 50, size=(images, 1))
    x[0] = 0
    return x.astype(np.float32), y.astype(np.int8)


def slow_ap(scores: list[float], shown: list[bool]) -> float:
    """At each one that is shown, the best precision at its rank or a later one; their mean."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])  # keeps the order of ties
    precisions = [sum(shown[i] for i in order[: n + 1]) / (n + 1) for n in range(len(order))]
    best = [max(precisions[n:]) for n, i in enumerate(order) if shown[i]]
    return sum(best) / len(best)


def slow(train: Answered, test: Answered, config: SVM, seed: int) -> Judged:
    """Loops over classes, costs and folds, of classes that all can be measured."""
    rows, test_rows = (np.stack([row / (math.sqrt(row @ row) + 1e-5) for row in x]) for x, _ in (train, test))
    aps, costs = [], []

    def fitted(cost: float, part: np.ndarray) -> LinearSVC:
        weights = {1: config.positive_weight, -1: 1}
        model = LinearSVC(C=cost, class_weight=weights, dual=True, tol=config.tolerance, random_state=seed)
        return model.set_params(max_iter=config.iterations).fit(rows[part], signs[part])

    for k in range(train[1].shape[1]):
        signs = np.array([1 if answer == 1 else -1 for answer in train[1][:, k]])
        best, most = config.costs[0], -1.0
        for cost in config.costs:
            figures = []
            for part, left in StratifiedKFold(config.folds).split(rows, signs):
                scores = fitted(cost, part).decision_function(rows[left])
                figures.append(average_precision_score(signs[left], scores))
            if np.mean(figures) > most:
                best, most = cost, np.mean(figures)
        scores = fitted(best, np.arange(len(rows))).decision_function(test_rows)
        told = [i for i in range(len(scores)) if test[1][i, k] != -1]
        aps.append(100 * slow_ap([scores[i] for i in told], [test[1][i, k] == 1 for i in told]))
        costs.append(best)
    return Judged(aps=tuple(aps), costs=tuple(costs))


def test_judged_equals_the_plain_loops() -> None:
    """Breaks when rows are scaled otherwise or the row of zeros divides by 0, when a cost is chosen on other folds, by
    another figure or once for all classes, when the seed goes astray, when the last fit misses images, or when the AP
    is another one."""
    train, test = answered(2, 120), answered(3, 150)
    config = SVM(iterations=20)  # so few that the seed and the form of the problem show
    found, expected = judged(*train, *test, config=config, seed=3, jobs=1), slow(train, test, config, 3)
    assert found.costs == expected.costs
    assert found.aps == pytest.approx(expected.aps, abs=1e-10, rel=0)
    assert len(set(found.costs)) == 4
    assert 20 < min(found.aps) < max(found.aps) < 99
    assert found.mean == pytest.approx(np.mean(found.aps))


def test_a_machine_is_the_optimum_of_the_formula() -> None:
    """Breaks when positives weigh 1, when the hinge is not squared, or when the intercept is free of the penalty."""
    x, y = answered(2, 60, classes=1)
    x, signs = x.astype(np.float64) / 25, np.where(y[:, 0] == 1, 1, -1)
    cost, weights = 0.3, np.where(signs == 1, 3.0, 1.0)

    def objective(wb: np.ndarray) -> float:
        slack = np.maximum(0, 1 - signs * (x @ wb[:-1] + wb[-1]))
        return wb @ wb / 2 + cost * (weights * slack**2).sum()

    best = minimize(objective, np.zeros(x.shape[1] + 1), tol=1e-12).x
    config = SVM(positive_weight=3.0, tolerance=1e-9, iterations=100_000)
    model = machine(cost, config, seed=0).fit(x, signs)
    assert model.coef_[0] == pytest.approx(best[:-1], abs=1e-4)
    assert model.intercept_[0] == pytest.approx(best[-1], abs=1e-4)
    assert np.abs(best).min() > 1e-3


def at(*degrees: float) -> np.ndarray:
    """Points of the unit circle."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1).astype(np.float32)


def column(*answers: int) -> np.ndarray:
    return np.array(answers, dtype=np.int8)[:, None]


PLAIN = (at(*[0] * 4, *[90] * 4), column(*[1] * 4, *[0] * 4))
"""What is nearer to 0 degrees is surer."""


def test_difficult_images_are_negatives_in_training_and_skipped_in_the_test() -> None:
    """Breaks when a difficult image is left out of training, or is a positive there: then 60 degrees come before 5;
    and when it counts in the test, where it is surest: as wrong the AP is 50, as right 91.7."""
    taught = at(*[45] * 6, 45, *[90] * 6), column(*[1] * 6, 0, *[-1] * 6)
    assert judged(*taught, at(60, 5), column(0, 1), config=SVM(), jobs=1).aps == (100,)
    asked = at(0, 20, 40, 60), column(-1, 1, 0, 1)
    assert judged(*PLAIN, *asked, config=SVM(), jobs=1).aps == pytest.approx((100 * (0.5 + 0.5 * 2 / 3),))


def test_of_equal_costs_the_first_is_taken() -> None:
    """Breaks when ties go to the last one, or to the least."""
    for costs in ((10.0, 1.0, 100.0), (1.0, 100.0, 10.0)):
        found = judged(*PLAIN, at(0, 90), column(1, 0), config=SVM(costs=costs), jobs=1)
        assert found.costs == costs[:1]


@pytest.mark.parametrize("rare", [1, 0])
def test_a_class_too_rare_for_the_folds_takes_the_cost_nearest_to_one(rare: int) -> None:
    """Breaks when folds without a positive, or without a negative, are drawn, or when nearest is not by factor."""
    train = at(0, 10, 70, 80, 90, 100), column(rare, rare, *[1 - rare] * 4)
    test = at(5, 85), column(rare, 1 - rare)
    found = judged(*train, *test, config=SVM(costs=(0.25, 2.0, 16.0)), jobs=1)
    assert found == Judged(aps=(100,), costs=(2.0,))
    assert judged(*train, *test, config=SVM(costs=(16.0,), folds=2), jobs=1).costs == (16.0,)


def test_a_class_that_cannot_be_measured_is_left_out_of_the_mean() -> None:
    """Breaks when a class without positives ends the run, or counts as 0 or as -1."""
    train_y = np.repeat(PLAIN[1], 5, axis=1)
    test_y = np.repeat(column(1, 0, 1, 0), 5, axis=1)
    train_y[:, 1] = [0, -1] * 4  # none to learn from
    train_y[:, 2] = 1  # nothing else to learn from
    test_y[:, 3] = [-1, 0, -1, 0]  # none to find
    found = judged(PLAIN[0], train_y, at(0, 30, 60, 90), test_y, config=SVM(), jobs=1)
    ap = pytest.approx(100 * (0.5 + 0.5 * 2 / 3))
    assert found.aps == (ap, -1, -1, -1, ap)
    assert found.costs == (1.0, None, None, None, 1.0)
    assert found.mean == ap
    none = judged(PLAIN[0], train_y[:, 1:4], at(0, 30, 60, 90), test_y[:, 1:4], config=SVM(), jobs=1)
    assert (none.aps, none.mean) == ((-1, -1, -1), -1)


def test_the_number_of_processes_changes_nothing() -> None:
    """Breaks when classes are fitted in threads: liblinear's random numbers are one row for them all, and shows where
    the solver is stopped short."""
    train, test = (answered(seed, 300, classes=10, width=80, noise=3.0) for seed in (4, 5))
    config = SVM(costs=(1e4, 1e3), iterations=200)
    assert judged(*train, *test, config=config, jobs=2) == judged(*train, *test, config=config, jobs=1)


@pytest.mark.parametrize(
    ("shown", "ap"),
    [
        ([1, 1, 0, 0], 1),
        ([0, 0, 1], 1 / 3),
        ([1, 0, 1, 0], 0.5 + 0.5 * 2 / 3),
        ([0, 1, 1], 2 / 3),  # precision rises: 1/2 at the first found becomes 2/3
        ([1, 0, 0, 1, 1], (1 + 3 / 5 + 3 / 5) / 3),
        ([0, 1, 0, 1, 1, 0, 0, 1], (3 / 5 * 3 + 4 / 8) / 4),
    ],
)
def test_average_precision_by_hand(shown: list[int], ap: float) -> None:
    """Breaks when the curve is summed as it stands, or at eleven recalls, or when the least sure come first."""
    scores = np.linspace(3, -3, len(shown))
    turned = np.random.default_rng(0).permutation(len(shown))
    found = average_precision(scores[turned], np.array(shown, dtype=bool)[turned])
    assert found == pytest.approx(ap, abs=1e-12)


def test_ties_go_by_their_order() -> None:
    """Breaks when equal scores are sorted by a sort that mixes them."""
    rng = np.random.default_rng(0)
    scores, shown = rng.integers(3, size=400) / 2, rng.random(400) < 0.3
    assert average_precision(scores, shown) == pytest.approx(slow_ap([*scores], [*shown]), abs=1e-12)
    assert average_precision(np.zeros(5), np.array([0, 1, 0, 0, 0], dtype=bool)) == 0.5


def test_maps_of_a_resnet50_at_224_are_pooled_by_the_protocols_windows() -> None:
    """Breaks when a kernel or a stride is another one, or when bins of a channel do not lie together."""
    generator = torch.Generator().manual_seed(0)
    sides, channels = {"c2": 56, "c3": 28, "c4": 14, "c5": 7}, {"c2": 256, "c3": 512, "c4": 1024, "c5": 2048}
    maps = {level: torch.rand(2, channels[level], s, s, generator=generator) for level, s in sides.items()}
    rows = pooled(maps)  # type: ignore[arg-type]
    windows = {"c2": (16, 8), "c3": (13, 5), "c4": (8, 3), "c5": (6, 1)}
    assert rows.keys() == maps.keys()
    for level, (kernel, stride) in windows.items():
        assert torch.equal(rows[level], F.avg_pool2d(maps[level], kernel, stride, 0).reshape(2, -1))
    assert [row.shape[1] for row in rows.values()] == [9216, 8192, 9216, 8192]
    assert rows["c5"][1, 4 * 3 + 1].item() == pytest.approx(maps["c5"][1, 3, :6, 1:].mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("level", "bins", "h", "w"),
    [("c2", 6, 16, 16), ("c3", 4, 8, 28), ("c4", 3, 20, 13), ("c5", 2, 8, 8), ("c5", 2, 1, 7)],
)
def test_maps_of_other_sizes_give_as_many_bins(level: str, bins: int, h: int, w: int) -> None:
    """Breaks when other images or backbones end the run, change the width of rows, or leave out cells."""
    cells = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def part(i: int, side: int) -> slice:
        return slice(i * side // bins, math.ceil((i + 1) * side / bins))

    expected = [
        cells[1, c, part(i, h), part(j, w)].mean().item()
        for c in range(3)
        for i in range(bins)
        for j in range(bins)
    ]
    assert pooled({level: cells})[level][1].tolist() == pytest.approx(expected, abs=1e-12)  # type: ignore


def test_settings_survive_yaml(tmp_path: Path) -> None:
    """Breaks when a cost changes on its way through a file, or when another protocol becomes the default."""
    config = SVM(backbone="convnext_tiny", levels=("c5",), positive_weight=1.5)
    for each in (SVM(), config, replace(config, costs=(0.1,), folds=5)):
        assert read(SVM, plain(each)) == each
        (tmp_path / "svm.yaml").write_text(dump_yaml(each))
        assert read(SVM, load_yaml(tmp_path / "svm.yaml")) == each
    known = plain(SVM())
    assert known["costs"] == [1e0, 1e1, 1e2] + [0.0625 / 2**n for n in range(16)]
    assert known["levels"] == ["c2", "c3", "c4", "c5"]
    numbers = [known[key] for key in ("folds", "tolerance", "iterations", "positive_weight")]
    assert numbers == [3, 1e-4, 2000, 2.0]
    for wrong in ({"folds": 1}, {"costs": []}, {"costs": [0.0]}, {"levels": []}, {"levels": ["c1"]}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            read(SVM, wrong)
