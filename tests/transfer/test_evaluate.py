import contextlib
import copy
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchvision.models.detection import FasterRCNN

from boxwise.data.targets import Labelled
from boxwise.transfer.detectors import DetectorConfig, build_detector
from boxwise.transfer.evaluate import FIGURES, coco_figures, predict
from boxwise.transfer.samples import TestSamples, collate
from boxwise.transfer.task import Detection

CONFIG = DetectorConfig(
    backbone="resnet18",
    fpn_channels=16,
    min_size=64,
    max_size=96,
    rpn_post_nms_test=30,
    score_threshold=0.0,
    detections_per_image=12,
)


def fixture(seed: int, *, images: int = 12, classes: int = 4, noise: float = 0.15) -> tuple[dict, list[dict]]:
    """Random objects of all sizes with crowds, images without objects or without detections, a category that
    never appears, tied scores, duplicates and false alarms."""
    rng = np.random.default_rng(seed)
    truth: dict = {
        "images": [{"id": 7 * i + 1, "width": 640, "height": 480} for i in range(images)],
        "categories": [{"id": 2 * c + 1, "name": f"c{c}"} for c in range(classes + 1)],
        "annotations": [],
    }
    results: list[dict] = []
    for image in truth["images"][:-1]:  # the last has neither
        for _ in range(int(rng.integers(0, 9))):
            w, h = 2 ** rng.uniform(2, 8.5, size=2)
            x, y = rng.uniform(0, 640 - w), rng.uniform(0, max(480 - h, 1))
            category = 2 * int(rng.integers(classes)) + 1
            crowd = int(rng.random() < 0.15)
            annotation = {
                "id": len(truth["annotations"]) + 1,
                "image_id": image["id"],
                "category_id": category,
                "bbox": [float(v) for v in (x, y, w, h)],
                "area": float(w * h * rng.uniform(0.5, 1)),
                "iscrowd": crowd,
            }
            truth["annotations"].append(annotation)
            for _ in range(int(rng.integers(0, 3 + 6 * crowd))):
                shift = rng.normal(0, noise, size=4) * [w, h, w, h]
                box = [float(v) for v in np.maximum(np.array([x, y, w, h]) + shift, [0, 0, 1, 1])]
                guess = category if rng.random() < 0.85 else 2 * int(rng.integers(classes)) + 1
                results.append(
                    {
                        "image_id": image["id"],
                        "category_id": guess,
                        "bbox": box,
                        "score": round(rng.random(), 1),
                    }
                )
        for _ in range(int(rng.integers(0, 4))):
            box = [float(v) for v in (*rng.uniform(0, 300, 2), *rng.uniform(5, 200, 2))]
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": 2 * int(rng.integers(classes + 1)) + 1,
                    "bbox": box,
                    "score": float(rng.random()),
                }
            )
    return truth, results


def oracle(truth: dict, results: list[dict]) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(FIGURES, judge.stats.tolist()))


@pytest.mark.parametrize("seed", range(8))
def test_figures_equal_pycocotools(seed: int) -> None:
    """Every published number was measured by it."""
    truth, results = fixture(seed)
    expected = oracle(truth, results)
    before = copy.deepcopy((truth, results))
    found = coco_figures(truth, results)
    assert list(found) == list(FIGURES) and 0 < found["AP"] < 100
    for name, value in expected.items():
        assert found[name] == pytest.approx(100 * value if value >= 0 else -1, abs=1e-12 * 100, rel=0), name
    assert (truth, results) == before  # both libraries write into what they are given


def test_figures_equal_pycocotools_above_a_hundred_detections_an_image() -> None:
    """At most 100 count, and AR1 and AR10 see fewer."""
    truth, results = fixture(3, images=4, classes=1, noise=0.3)
    rng = np.random.default_rng(0)
    many = [
        {**r, "bbox": [*(np.array(r["bbox"]) + rng.normal(0, 2, 4)).clip(1)], "score": float(rng.random())}
        for r in results
        for _ in range(40)
    ]
    many = [{**r, "bbox": [float(v) for v in r["bbox"]]} for r in many]
    assert max(sum(r["image_id"] == i["id"] for r in many) for i in truth["images"]) > 150
    expected, found = oracle(truth, many), coco_figures(truth, many)
    for name, value in expected.items():
        assert found[name] == pytest.approx(100 * value if value >= 0 else -1, abs=1e-10, rel=0), name


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


def test_perfect_and_absent_detections() -> None:
    hit = [{"image_id": 5, "category_id": 9, "bbox": [10, 10, 50, 50], "score": 0.5}]
    found = coco_figures(one_object(50), hit)
    perfect = {"AP", "AP50", "AP75", "APm", "AR1", "AR10", "AR100", "ARm"}
    assert {n for n, v in found.items() if v == pytest.approx(100)} == perfect
    assert {n for n, v in found.items() if v == -1} == {"APs", "APl", "ARs", "ARl"}
    nothing = coco_figures(one_object(50), [])
    assert {n for n, v in nothing.items() if v == 0} == perfect
    assert {n for n, v in nothing.items() if v == -1} == {"APs", "APl", "ARs", "ARl"}


def test_an_object_of_id_0_can_be_found() -> None:
    """pycocotools and its kin take id 0 for "unmatched": a json that counts from 0 loses an object."""
    hit = [{"image_id": 5, "category_id": 9, "bbox": [10, 10, 50, 50], "score": 0.5}]
    assert coco_figures(one_object(50, id=0), hit)["AP"] == pytest.approx(100)


def test_a_half_overlap_counts_where_it_should() -> None:
    """IoU 0.8: found at the 7 thresholds .5 to .8 of 10, bar rounding at .8 itself."""
    hit = [{"image_id": 5, "category_id": 9, "bbox": [10, 10, 50, 41], "score": 0.5}]
    found = coco_figures(one_object(50), hit)
    assert found["AP"] == pytest.approx(70) and found["AP75"] == pytest.approx(100)


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    torch.manual_seed(0)
    return build_detector(CONFIG, classes=2, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


class Knows(nn.Module):
    """Stands for the two parts behind the backbone: finds what it is told, in pixels of the batch."""

    def __init__(self, found: list[dict[str, torch.Tensor]]) -> None:
        super().__init__()
        self.found = iter(found)

    def forward(self, *arguments: object) -> tuple[list[dict[str, torch.Tensor]], dict]:
        shapes = arguments[2]
        return [next(self.found) for _ in shapes], {}


def test_boxes_go_back_to_the_pixels_and_ids_of_the_json(drawn: Labelled, detector: FasterRCNN) -> None:
    """Truth, scaled to the resized images and handed through `predict`, must come back as the json's boxes
    and score AP 100: resizing, padding, mixed sizes, category and image ids are all on the way."""
    found, samples = [], TestSamples(drawn, CONFIG)
    for i in range(len(drawn)):
        _, labels = drawn.read(i)
        height, width = samples[i].image.shape[1:]
        scale = torch.tensor([width / samples[i].source[1], height / samples[i].source[0]]).repeat(2)
        scores = torch.linspace(0.9, 0.5, len(labels.boxes))
        found.append({"boxes": labels.boxes * scale, "labels": labels.labels, "scores": scores})
    told = copy.deepcopy(detector)
    told.roi_heads = Knows(found)
    results = predict(told, drawn, config=CONFIG, batch_size=4)
    truth = drawn.coco()
    assert len(results) == len(truth["annotations"])
    for result, annotation in zip(results, truth["annotations"]):
        assert result["image_id"] == annotation["image_id"]
        assert result["category_id"] == annotation["category_id"]
        assert result["bbox"] == pytest.approx(annotation["bbox"], abs=1e-3)
    figures = coco_figures(truth, results)
    assert figures["AP"] == pytest.approx(100) and figures["AR100"] == pytest.approx(100)


def test_boxes_stay_inside_the_image(drawn: Labelled, detector: FasterRCNN) -> None:
    wild = torch.tensor([[-5.0, -5.0, 500.0, 500.0]])
    told = copy.deepcopy(detector)
    one = {"boxes": wild, "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    told.roi_heads = Knows([one] * len(drawn))
    for i, result in enumerate(predict(told, drawn, config=CONFIG, batch_size=8)):
        height, width = drawn.read(i)[0].shape[1:]
        assert result["bbox"] == pytest.approx([0, 0, width, height])


def test_workers_change_nothing_and_every_image_is_measured(drawn: Labelled, detector: FasterRCNN) -> None:
    """The last, smaller batch and the order of images are easily lost between processes."""
    alone = predict(detector, drawn, config=CONFIG, batch_size=1)
    together = predict(detector, drawn, config=CONFIG, batch_size=1, workers=2)
    assert together == alone
    assert {r["image_id"] for r in alone} == {drawn.image_id(i) for i in range(len(drawn))}
    assert {r["category_id"] for r in alone} == {3, 7}
    by_image = [[r["score"] for r in alone if r["image_id"] == i] for i in {r["image_id"] for r in alone}]
    assert all(scores == sorted(scores, reverse=True) for scores in by_image)


def test_the_model_is_left_as_it_was(drawn: Labelled, detector: FasterRCNN) -> None:
    """Measured in training mode, a detector would move its statistics and give losses instead of boxes."""
    before = {n: t.clone() for n, t in detector.state_dict().items()}
    detector.train()
    first = predict(detector, drawn, config=CONFIG, batch_size=3)
    assert detector.training
    assert all(torch.equal(t, before[n]) for n, t in detector.state_dict().items())
    detector.eval()
    assert predict(detector, drawn, config=CONFIG, batch_size=3) == first and not detector.training


def test_training_goes_on_after_measuring(drawn: Labelled, detector: FasterRCNN) -> None:
    """Anchors made without gradients must not poison the next training step."""
    model = copy.deepcopy(detector)
    predict(model, drawn, config=CONFIG, batch_size=3)
    samples = TestSamples(drawn, CONFIG)
    Detection(model).train()(collate([samples[0], samples[1]]))["loss"].backward()


def test_bfloat16_finds_about_the_same(drawn: Labelled, detector: FasterRCNN) -> None:
    full = predict(detector, drawn, config=CONFIG, batch_size=3)
    half = predict(detector, drawn, config=CONFIG, batch_size=3, precision="bf16")
    assert half != full
    assert np.mean([r["score"] for r in half]) == pytest.approx(np.mean([r["score"] for r in full]), abs=0.02)
