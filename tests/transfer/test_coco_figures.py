import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from boxwise.transfer.metrics import FIGURES, by_category, coco_figures, curves, figures
from detections import found, random_detections, with_keypoints, with_masks

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


def judge(
    truth: dict, results: list[dict], kind: str = "bbox", sigmas: list[float] | None = None
) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), kind)
        if sigmas is not None:
            judge.params.kpt_oks_sigmas = np.array(sigmas)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def same(found: dict[str, float], expected: COCOeval, kind: str = "bbox") -> None:
    assert list(found) == list(FIGURES[kind])
    for (name, value), known in zip(found.items(), expected.stats.tolist()):
        assert value == pytest.approx(100 * known if known >= 0 else -1, abs=1e-12 * 100, rel=0), name


@pytest.mark.parametrize("seed", range(8))
def test_figures_equal_pycocotools(seed: int) -> None:
    """Breaks when boxes are judged by other rules than every published number was, or when what was given is
    written into, as both libraries do."""
    truth, results = random_detections(seed)
    before = copy.deepcopy((truth, results))
    found = coco_figures(truth, results)
    assert 0 < found["AP"] < 100
    same(found, judge(truth, results))
    assert (truth, results) == before


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_masks_equal_pycocotools(seed: int) -> None:
    """Breaks when outlines, counts or found masks are read differently, or when the area of a found mask is taken
    from its box: then other detections fall out of the figures by size."""
    truth, results = with_masks(*random_detections(seed))
    before = copy.deepcopy((truth, results))
    found = coco_figures(truth, results, "segm")
    assert 0 < found["mask_AP"] < 100
    same(found, judge(truth, [{k: v for k, v in r.items() if k != "bbox"} for r in results], "segm"), "segm")
    assert (truth, results) == before
    boxes = coco_figures(truth, results)
    assert boxes["APs"] != found["mask_APs"]
    same(boxes, judge(truth, results))  # masks beside the boxes change nothing for them


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_keypoints_equal_pycocotools(seed: int) -> None:
    """Breaks when unlabelled points count, when objects without points are missed instead of ignored, or when the
    20 detections an image that COCO allows become 100."""
    truth, results = with_keypoints(*random_detections(seed, noise=0.05), seed)
    found = coco_figures(truth, results, "keypoints")
    assert 0 < found["kp_AP"] < 100
    same(found, judge(truth, results, "keypoints"), "keypoints")


def test_objects_without_keypoints_may_leave_them_out() -> None:
    """Breaks when an object whose json has no keypoints is another thing than one whose keypoints are all
    unlabelled, or when the json must count them."""
    truth, results = with_keypoints(*random_detections(1, noise=0.05), 1)
    expected = coco_figures(truth, results, "keypoints")
    for annotation in truth["annotations"]:
        if annotation.pop("num_keypoints") == 0:
            del annotation["keypoints"]
    assert coco_figures(truth, results, "keypoints") == expected


def test_other_numbers_of_keypoints_are_measured_with_one_sigma() -> None:
    """Breaks when a set that is not of persons cannot be measured, or borrows the sigmas of eyes and hips."""
    truth, results = with_keypoints(*random_detections(2, noise=0.05), 2, count=5)
    found = coco_figures(truth, results, "keypoints")
    same(found, judge(truth, results, "keypoints", [0.05] * 5), "keypoints")
    with pytest.raises(ValueError, match="have 4 or 5 keypoints"):
        coco_figures(truth, [{**results[0], "keypoints": [1.0] * 12}], "keypoints")


def test_figures_equal_pycocotools_above_a_hundred_detections_an_image() -> None:
    """At most 100 count, and AR1 and AR10 see fewer."""
    truth, results = random_detections(3, images=4, classes=1, noise=0.3)
    rng = np.random.default_rng(0)
    many = [
        {**r, "bbox": [*(np.array(r["bbox"]) + rng.normal(0, 2, 4)).clip(1)], "score": float(rng.random())}
        for r in results
        for _ in range(40)
    ]
    many = [{**r, "bbox": [float(v) for v in r["bbox"]]} for r in many]
    assert max(sum(r["image_id"] == i["id"] for r in many) for i in truth["images"]) > 150
    same(coco_figures(truth, many), judge(truth, many))


def one_object(side: float, **changes: object) -> dict:
    annotation = {
        "id": 1,
        "image_id": 5,
        "category_id": 9,
        "bbox": [10, 10, side, side],
        "area": side**2,
        "iscrowd": 0,
    }
    return {
        "images": [{"id": 5, "width": 640, "height": 640}],
        "categories": [{"id": 9, "name": "thing"}],
        "annotations": [{**annotation, **changes}],
    }


HIT = [found(5, 9, [10, 10, 50, 50], 0.5)]


def test_perfect_and_absent_detections() -> None:
    """Breaks when nothing to find is taken for nothing found, or the other way round."""
    figures = coco_figures(one_object(50), HIT)
    perfect = {"AP", "AP50", "AP75", "APm", "AR1", "AR10", "AR100", "ARm"}
    assert {n for n, v in figures.items() if v == pytest.approx(100)} == perfect
    assert {n for n, v in figures.items() if v == -1} == {"APs", "APl", "ARs", "ARl"}
    nothing = coco_figures(one_object(50), [])
    assert {n for n, v in nothing.items() if v == 0} == perfect
    assert {n for n, v in nothing.items() if v == -1} == {"APs", "APl", "ARs", "ARl"}


@pytest.mark.parametrize("kind", FIGURES)
def test_a_truth_without_objects_has_no_figures(kind: str) -> None:
    """Breaks when an empty test set ends a run after its training."""
    empty = {**one_object(50), "annotations": []}
    assert set(coco_figures(empty, [], kind).values()) == {-1.0}  # type: ignore[arg-type]


def test_an_object_of_id_0_can_be_found() -> None:
    """pycocotools and its kin take id 0 for "unmatched": a json that counts from 0 loses an object."""
    assert coco_figures(one_object(50, id=0), HIT)["AP"] == pytest.approx(100)


def test_a_half_overlap_counts_where_it_should() -> None:
    """IoU 0.82: found at the 7 thresholds .5 to .8 of 10."""
    hit = [found(5, 9, [10, 10, 50, 41], 0.5)]
    figures = coco_figures(one_object(50), hit)
    assert figures["AP"] == pytest.approx(70) and figures["AP75"] == pytest.approx(100)
    curve = curves(one_object(50), hit)
    assert curve["iou"] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert curve["AP"] == pytest.approx([100] * 7 + [0] * 3)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_curve_over_iou_is_what_pycocotools_averages(kind: str) -> None:
    """Breaks when the curve mixes in an area range or another number of detections, or ends in another AP."""
    truth, results = with_masks(*random_detections(4, noise=0.08))
    curve = curves(truth, results, kind)  # type: ignore[arg-type]
    kept = [{k: v for k, v in r.items() if k != "bbox"} for r in results] if kind == "segm" else results
    precision = judge(truth, kept, kind).eval["precision"][..., 0, 2]
    expected = [100 * p[p > -1].mean() for p in precision]
    assert curve["AP"] == pytest.approx(expected, abs=1e-10, rel=0)
    whole = coco_figures(truth, results, kind)[FIGURES[kind][0]]  # type: ignore[arg-type, index]
    assert np.mean(curve["AP"]) == pytest.approx(whole)
    assert curve["AP"][0] > curve["AP"][-1]


def test_ap_of_each_category_by_its_id() -> None:
    """Breaks when categories are counted instead of named by id: sets with gaps in their ids get each other's AP."""
    truth, results = random_detections(5, noise=0.05)
    truth["categories"].reverse()
    found = by_category(truth, results)
    assert list(found) == [9, 7, 5, 3, 1] and found[9] == -1
    for category in (1, 3, 5, 7):
        part = [a for a in truth["annotations"] if a["category_id"] == category]
        alone = coco_figures(
            {**truth, "annotations": part}, [r for r in results if r["category_id"] == category]
        )
        assert found[category] == pytest.approx(alone["AP"])
    assert np.mean([found[c] for c in (1, 3, 5, 7)]) == pytest.approx(coco_figures(truth, results)["AP"])


def test_kinds_stand_side_by_side() -> None:
    """Breaks when a kind overwrites another's figures, or depends on which were asked for with it."""
    truth, results = with_keypoints(*with_masks(*random_detections(6)), 6)
    every = figures("coco", truth, results, kinds=("keypoints", "segm", "bbox"))
    assert list(every) == [name for kind in ("bbox", "segm", "keypoints") for name in FIGURES[kind]]
    assert len(every) == 34
    for kind in FIGURES:
        assert {n: every[n] for n in FIGURES[kind]} == coco_figures(truth, results, kind)
    assert figures("coco", truth, results) == coco_figures(truth, results)


def test_what_was_not_found_or_not_annotated_is_named() -> None:
    """Breaks when a missing mask is measured as a bad one."""
    with pytest.raises(ValueError, match=r"image 5 has no segmentation.*'segm'"):
        coco_figures(one_object(50, segmentation=[[10, 10, 60, 10, 60, 60]]), HIT, "segm")
    with pytest.raises(ValueError, match=r"annotation 1 .* image 5, has no segmentation"):
        coco_figures(one_object(50), [], "segm")
