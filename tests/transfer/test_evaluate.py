import copy

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN

from boxwise.data.decode import BadImage
from boxwise.data.targets import Labelled
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.evaluate import predict
from boxwise.transfer.metrics import coco_figures
from boxwise.transfer.samples import TestSamples, collate
from boxwise.transfer.task import Detection

CONFIG = FasterRCNNFPN(
    backbone="resnet18",
    fpn_channels=16,
    min_size=64,
    max_size=96,
    rpn_post_nms_test=30,
    score_threshold=0.0,
    detections_per_image=12,
)


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    torch.manual_seed(0)
    return CONFIG.build(classes=2, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


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
        height, width = samples.sample(i).image.shape[1:]
        scale = torch.tensor(
            [width / samples.sample(i).source[1], height / samples.sample(i).source[0]]
        ).repeat(2)
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


def test_an_image_that_cannot_be_read_is_named_from_a_worker_too(
    drawn: Labelled, detector: FasterRCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when what a worker raises arrives as a traceback without the path."""

    def unreadable(self: Labelled, index: int) -> None:
        raise BadImage(self.path(index), "truncated")

    monkeypatch.setattr(Labelled, "read", unreadable)
    for workers in (0, 1):
        with pytest.raises(BadImage, match=f"{drawn.path(0)}: truncated"):
            predict(detector, drawn, config=CONFIG, workers=workers)


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
    Detection(model).train()(collate([samples.sample(0), samples.sample(1)]))["loss"].backward()


def test_bfloat16_finds_about_the_same(drawn: Labelled, detector: FasterRCNN) -> None:
    full = predict(detector, drawn, config=CONFIG, batch_size=3)
    half = predict(detector, drawn, config=CONFIG, batch_size=3, precision="bf16")
    assert half != full
    assert np.mean([r["score"] for r in half]) == pytest.approx(np.mean([r["score"] for r in full]), abs=0.02)
