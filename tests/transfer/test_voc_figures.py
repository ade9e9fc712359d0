import copy

import numpy as np
import pytest

from boxwise.transfer.metrics import curves, figures
from boxwise.transfer.metrics.voc import voc_aps, voc_figures
from detections import found, random_detections

THRESHOLDS = [n / 100 for n in range(50, 100, 5)]


def with_difficult(truth: dict, results: list[dict], seed: int) -> tuple[dict, list[dict]]:
    """A fifth of the objects, on whole pixels as VOC has them."""
    rng = np.random.default_rng(seed)
    kept = [a for a in truth["annotations"] if not a["iscrowd"]]
    kept = [
        {**a, "bbox": [float(round(v)) for v in a["bbox"]], "difficult": int(rng.random() < 0.2)}
        for a in kept
    ]
    return {**truth, "annotations": kept}, results


def printed(box: list[float]) -> list[float]:
    """1-based with both edges inside, to a tenth of a pixel."""
    x, y, w, h = box
    return [float(f"{v:.1f}") for v in (x + 1, y + 1, x + w, y + h)]


def iou(a: list[float], b: list[float]) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0]) + 1
    high = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if wide <= 0 or high <= 0:
        return 0.0
    shared = wide * high
    return shared / ((a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - shared)


def slow(truth: dict, results: list[dict], category: int, threshold: float, points: str) -> float:
    """AP of one category at one threshold, in loops; NaN where the truth has no object of it."""
    objects = [a for a in truth["annotations"] if a["category_id"] == category]
    count = sum(not a["difficult"] for a in objects)
    if not count:
        return float("nan")
    mine = [r for r in results if r["category_id"] == category]
    mine.sort(key=lambda r: -float(f"{r['score']:.3f}"))
    taken: set[int] = set()
    right = wrong = 0
    curve = []
    for r in mine:
        best, most = None, -1.0
        for a in objects:
            if a["image_id"] == r["image_id"]:
                value = iou(printed(r["bbox"]), printed(a["bbox"]))
                if value > most:
                    best, most = a, value
        if best is None or most <= threshold or (not best["difficult"] and best["id"] in taken):
            wrong += 1
        elif not best["difficult"]:
            right += 1
            taken.add(best["id"])
        curve.append((right / count, right / max(right + wrong, 1)))
    if points == "eleven":
        ap = 0.0
        for recall in np.arange(0, 1.1, 0.1):
            ap += max((p for r, p in curve if r >= recall), default=0.0) / 11
        return ap
    ap = before = 0.0
    for k, (recall, _) in enumerate(curve):
        ap += (recall - before) * max(p for _, p in curve[k:])
        before = recall
    return ap


@pytest.mark.parametrize("points", ["area", "eleven"])
@pytest.mark.parametrize("seed", range(6))
def test_ap_equals_the_plain_loops(seed: int, points: str) -> None:
    """Breaks when a second detection of an object moves on to another, when difficult objects count in any way,
    when ties are broken otherwise, or when the curve is summed differently."""
    truth, results = with_difficult(*random_detections(seed, noise=0.03), seed)
    before = copy.deepcopy((truth, results))
    aps = voc_aps(truth, results, points=points)  # type: ignore[arg-type]
    for category in (c["id"] for c in truth["categories"]):
        expected = [slow(truth, results, category, t, points) for t in THRESHOLDS]
        if np.isnan(expected[0]):
            assert category not in aps
        else:
            assert aps[category] == pytest.approx(expected, abs=1e-12, rel=0)
    mean = 100 * np.mean(list(aps.values()), axis=0)
    metric = "voc" if points == "area" else "voc07"
    assert figures(metric, truth, results) == pytest.approx(  # type: ignore[arg-type]
        {"AP": mean.mean(), "AP50": mean[0], "AP75": mean[5]}
    )
    assert 0 < mean[8] < mean[0] < 100
    assert curves(truth, results, metric=metric)["AP"] == pytest.approx(mean)  # type: ignore[arg-type]
    assert (truth, results) == before


def objects(*boxes: list[float], difficult: tuple[int, ...] = ()) -> dict:
    annotations = [
        {"id": k, "image_id": 1, "category_id": 3, "bbox": box, "difficult": int(k in difficult)}
        for k, box in enumerate(boxes)
    ]
    return {
        "images": [{"id": 1, "width": 500, "height": 500}],
        "categories": [{"id": 3, "name": "dog"}],
        "annotations": annotations,
    }


A, B = [10.0, 10.0, 100.0, 100.0], [200.0, 200.0, 100.0, 100.0]


def ap50(truth: dict, results: list[dict], points: str = "area") -> float:
    return voc_figures(truth, results, points=points)["AP50"]  # type: ignore[arg-type]


def test_a_second_detection_is_wrong_and_a_difficult_object_is_nothing() -> None:
    """Breaks when duplicates are forgiven, or when difficult objects are missed, or found to one's credit."""
    first, again, other = found(1, 3, A, 0.9), found(1, 3, A, 0.8), found(1, 3, B, 0.7)
    assert ap50(objects(A, B), [first, again, other]) == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))
    assert ap50(objects(A, B, difficult=(1,)), [first]) == pytest.approx(100)
    assert ap50(objects(A, B, difficult=(0,)), [first, again, other]) == pytest.approx(100)
    assert ap50(objects(A, B), [first, other]) == pytest.approx(100)
    assert ap50(objects(A, B), []) == 0
    assert ap50(objects(A, difficult=(0,)), [first]) == -1


def test_an_overlap_of_exactly_the_threshold_is_wrong() -> None:
    """Breaks when the comparison takes in the threshold, as COCO's does: 100 x 50 of 100 x 100 is 0.5."""
    half, more = [10.0, 10.0, 100.0, 50.0], [10.0, 10.0, 100.0, 51.0]
    assert ap50(objects(A), [found(1, 3, half, 0.9)]) == 0
    assert ap50(objects(A), [found(1, 3, more, 0.9)]) == pytest.approx(100)


def test_scores_are_compared_as_printed() -> None:
    """Breaks when scores that differ in the fourth digit are ranked: the papers' evaluator saw them tied, and took
    them as they came."""
    wrong, right = found(1, 3, B, 0.9001), found(1, 3, A, 0.9004)
    assert ap50(objects(A), [wrong, right]) == pytest.approx(50)
    assert ap50(objects(A), [right, wrong]) == pytest.approx(100)


def test_eleven_points_read_the_curve_where_it_stands() -> None:
    """Breaks when the eleven recalls become exact tenths: 3 of 10 found reach 4 of the 11 then, and 3 as VOC 2007
    was measured."""
    boxes = [[10.0 + 40 * k, 10.0, 30.0, 30.0] for k in range(10)]
    hits = [found(1, 3, box, 0.9) for box in boxes[:3]]
    assert ap50(objects(*boxes), hits, "eleven") == pytest.approx(100 * 3 / 11)
    assert ap50(objects(*boxes), hits, "area") == pytest.approx(30)


def test_voc_measures_boxes_alone() -> None:
    """Breaks when masks asked for are silently left out."""
    with pytest.raises(ValueError, match="voc07 measures bbox, not segm"):
        figures("voc07", objects(A), [], kinds=("bbox", "segm"))


def test_a_truth_without_objects_has_no_curve() -> None:
    """Breaks when an empty test set ends a comparison after its training."""
    assert curves(objects(), [found(1, 3, A, 0.9)], metric="voc")["AP"] == [-1] * 10
