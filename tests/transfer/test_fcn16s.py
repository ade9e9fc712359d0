"""FCN-16s: what is dilated, what its loss counts, and that classes of pixels stay with their pixels."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection.image_list import ImageList

from boxwise.data.targets import Category, Labelled, open_labelled
from boxwise.interop.files import load_weights, save_weights
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.transfer.detectors.base import Detector, Targets
from boxwise.transfer.detectors.fcn16s import FCN, FCN16s, pixel_loss, stretched
from boxwise.transfer.evaluate import Measure, measured
from boxwise.transfer.samples import DetectionBatch, TrainSamples, collate
from boxwise.transfer.task import Detection
from layouts import cityscapes_set

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco_sample"
CONFIG = FCN16s(
    backbone="resnet18", min_size=64, max_size=96, scales=(1.0, 1.0), crop=48, width=16, dilation=2, flip=0.5
)
MEAN, STD = (0.5,) * 3, (0.25,) * 3


def build(config: FCN16s = CONFIG, classes: int = 3) -> FCN:
    torch.manual_seed(0)
    return config.build(classes=classes, mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """Pictures whose red says the class of each pixel: 100 times it. Thing 1 is large, thing 2 lies on top of it."""
    root = tmp_path_factory.mktemp("painted")
    images, annotations = [], []
    for i, (height, width) in enumerate([(64, 80), (96, 64), (64, 64)]):
        pixels = torch.zeros(height, width, 3, dtype=torch.uint8)
        for category, (x, y, w, h) in ((1, (8 + i, 10, 40, 36)), (2, (20, 20 + i, 12, 14))):
            pixels[y : y + h, x : x + w, 0] = 100 * category
            corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            box = {"bbox": [x, y, w, h], "area": w * h, "segmentation": corners}
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": category} | box)
        Image.fromarray(pixels.numpy()).save(root / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    file = root / "all.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return open_labelled(file, split="train", images=root, extras=CONFIG.extras())


def batch_of(labelled: Labelled, config: FCN16s = CONFIG, *, epoch: int = 0) -> DetectionBatch:
    samples = TrainSamples(labelled, config, seed=0)
    return collate([samples.sample(i, epoch) for i in range(len(labelled))])


def test_the_last_stage_alone_is_dilated() -> None:
    """Breaks when conv5 keeps its stride, or reaches only half as far."""
    body = build(replace(CONFIG, backbone="resnet50")).backbone.body
    for name, module in body.named_modules():
        if isinstance(module, nn.Conv2d) and name.startswith("layer4"):
            wide = module.kernel_size == (3, 3)
            assert module.stride == (1, 1), name
            assert (module.dilation, module.padding) == (((2, 2), (2, 2)) if wide else ((1, 1), (0, 0))), name
        elif isinstance(module, nn.Conv2d):
            assert module.dilation == (1, 1), name
    assert sum(m.stride == (2, 2) for m in body.modules() if isinstance(m, nn.Conv2d)) == 5
    with torch.no_grad():
        maps = build().backbone(torch.rand(1, 3, 64, 96))
    assert maps["c5"].shape[-2:] == maps["c4"].shape[-2:] == (4, 6)


def test_backbones_without_strided_convolutions_are_named() -> None:
    with pytest.raises(ValueError, match="convnext_atto cannot be dilated to stride 16"):
        build(replace(CONFIG, backbone="convnext_atto"))
    resnet_d = build(replace(CONFIG, backbone="resnet26d"))  # its short cuts shrink by pooling
    assert resnet_d.scores(torch.rand(2, 3, 32, 64)).shape == (2, 3, 32, 64)


def test_cells_lie_where_the_backbone_reads_them() -> None:
    """Cell i over pixel 16 i. Breaks when scores are stretched as if cells were tiles: half a cell off."""
    cells = torch.rand(1, 2, 3, 4)
    whole = stretched(cells, 48, 60)
    assert whole.shape == (1, 2, 48, 60)
    torch.testing.assert_close(whole[..., ::16, ::16], cells)
    torch.testing.assert_close(whole[..., 0, 8], (cells[..., 0, 0] + cells[..., 0, 1]) / 2)
    torch.testing.assert_close(whole[..., 47, 59], cells[..., 2, 3])


def test_the_loss_is_that_of_its_loops() -> None:
    """Breaks when unknown pixels count, or weigh in the mean."""
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    truth = torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    truth[0, 1:] = 255
    total, count = 0.0, 0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                if truth[b, y, x] != 255:
                    total -= float(scores[b, :, y, x].log_softmax(0)[int(truth[b, y, x])])
                    count += 1
    assert count == 25
    assert float(pixel_loss(scores, truth)) == pytest.approx(total / count, rel=1e-12)


def test_a_batch_of_unknown_pixels_trains_nothing() -> None:
    """Breaks when the mean over no pixel is not a number."""
    scores = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = pixel_loss(scores, torch.full((2, 4, 5), 255, dtype=torch.uint8))
    loss.backward()
    assert loss == 0 and scores.grad is not None and not scores.grad.any()


@pytest.mark.parametrize("epoch", range(6))
def test_classes_are_cut_and_mirrored_with_their_pixels(painted: Labelled, epoch: int) -> None:
    """Exact, since pictures keep their size here. Breaks when the mirror comes before the cut for one of the two."""
    batch = batch_of(painted, replace(CONFIG, min_size=64, max_size=96), epoch=epoch)
    assert batch.images.shape[-2:] == (64, 64) and set(batch.sizes) == {(48, 48)}
    for image, classes in zip(batch.images, batch.extras["semantic"], strict=True):
        assert torch.equal(classes[:48, :48], image[0, :48, :48] // 100)
        assert (classes[48:] == 255).all() and (classes[:, 48:] == 255).all(), "padding has no class"
    for target, image in zip(batch.targets(), batch.images, strict=True):
        for (left, top, right, bottom), label in zip(target["boxes"].int().tolist(), target["labels"]):
            seen = image[0, top:bottom, left:right] // 100
            assert ((seen == label) | (seen == 2)).all(), "boxes are cut with their picture"


def test_cuts_and_mirrors_are_drawn(painted: Labelled) -> None:
    """Breaks when every epoch shows the same cut."""
    shown = {tuple(batch_of(painted, epoch=e).extras["semantic"][0].flatten().tolist()) for e in range(6)}
    assert len(shown) == 6


def test_scales_are_drawn_between_their_limits(painted: Labelled) -> None:
    config = replace(CONFIG, scales=(0.5, 2.0), crop=1000)
    samples = TrainSamples(painted, config, seed=0)
    sides = [samples.sample(2, epoch) for epoch in range(40)]
    found = [sample.image.shape[1] for sample in sides]
    assert 32 <= min(found) < 45 and 110 < max(found) <= 128
    for sample in sides[:8]:
        close = (sample.extras["semantic"] == (sample.image[0].int() + 50) // 100).float().mean()
        assert close > 0.93, "but for edges, which the picture blends and classes do not"


class Oracle(Detector):
    """Finds what it was given, in turn."""

    def __init__(self, maps: list[torch.Tensor], classes: int = 3) -> None:
        super().__init__()
        self.mean, self.std, self.maps, self.classes, self.at = MEAN, STD, maps, classes, 0

    def losses(self, images: ImageList, targets: Targets) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def detect(self, images: ImageList) -> Targets:
        found = self.maps[self.at : self.at + len(images.image_sizes)]
        self.at += len(found)
        hot = [nn.functional.one_hot(classes.long(), self.classes) for classes in found]
        return [{"semantic": scores.permute(2, 0, 1).float()} for scores in hot]

    def parts(self) -> dict[str, nn.Module]:
        return {}


def test_figures_are_those_of_the_source_pixels(painted: Labelled) -> None:
    """By hand: all of class 2 taken for class 1. Breaks when images are averaged, or padding counts."""
    truth = [painted.semantic(i) for i in range(3)]
    config = replace(CONFIG, min_size=64, max_size=96)
    perfect = measured(Oracle(truth), painted, config=config, measure=Measure(), batch_size=2)
    assert perfect.figures == {
        "mIoU": 100,
        "accuracy": 100,
        "IoU background": 100,
        "IoU one": 100,
        "IoU two": 100,
    }
    assert perfect.results == [] and all(
        torch.equal(a, b) for a, b in zip(perfect.pixels, truth, strict=True)
    )
    wrong = [t.clamp(max=1) for t in truth]
    found = measured(Oracle(wrong), painted, config=config, measure=Measure(), batch_size=2).figures
    one, two = (sum(int((t == k).sum()) for t in truth) for k in (1, 2))
    pixels = sum(t.numel() for t in truth)
    assert found["IoU one"] == pytest.approx(100 * one / (one + two)) and found["IoU two"] == 0
    assert found["accuracy"] == pytest.approx(100 * (pixels - two) / pixels)
    assert found["mIoU"] == pytest.approx((100 + found["IoU one"]) / 3)


def test_scores_are_stretched_to_a_source_of_another_size(painted: Labelled) -> None:
    """Breaks when maps of the detector's size are laid on truth of the source's."""
    truth = [painted.semantic(i) for i in range(3)]
    doubled = [t.repeat_interleave(2, 0).repeat_interleave(2, 1) for t in truth]
    config = replace(CONFIG, min_size=128, max_size=192)
    found = measured(Oracle(doubled), painted, config=config, measure=Measure(), batch_size=3).figures
    assert found["mIoU"] > 97


def test_a_pretrained_backbone_arrives_whole(tmp_path: Path) -> None:
    """Breaks when dilation changes a name."""
    torch.manual_seed(1)
    encoder = build_encoder(EncoderConfig(backbone="resnet18"))
    save_weights(tmp_path, {"backbone": encoder.body}, {})
    model = build()
    report = load_weights(tmp_path).into(model.parts())
    report.require()
    assert report.share == 1 and report.promised == ("backbone",)
    assert torch.equal(model.backbone.body.layer4[0].conv1.weight, encoder.body.layer4[0].conv1.weight)


@pytest.mark.parametrize(("norm", "stages"), [("bn", 0), ("frozen", 0), ("bn", 2)])
def test_gradients_reach_what_trains_and_nothing_else(painted: Labelled, norm: str, stages: int) -> None:
    """Breaks when a frozen norm moves, or the head stands still."""
    model = build(replace(CONFIG, norm=norm, frozen_stages=stages))
    before = {n: b.clone() for n, b in model.named_buffers() if n.endswith("running_mean")}
    Detection(model).train()(batch_of(painted))["loss"].backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    fixed = {n for n, _ in model.named_parameters()} - with_gradient
    frozen = ("backbone.body.conv1.", "backbone.body.bn1.", "backbone.body.layer1.") if stages else ()
    assert fixed == {n for n, _ in model.named_parameters() if n.startswith(frozen)} - with_gradient
    assert all(n.startswith(frozen) for n in fixed) and (bool(fixed) == bool(stages))
    stood = {n for n, b in model.named_buffers() if n in before and torch.equal(b, before[n])}
    body = {n for n in before if n.startswith("backbone.body.")}
    assert stood == (body if norm == "frozen" else {n for n in body if n.startswith(frozen)})


def test_a_few_steps_learn_the_pictures(painted: Labelled) -> None:
    """Breaks when classes are off by one, or lie elsewhere."""
    module = Detection(build()).train()
    batch = batch_of(painted, replace(CONFIG, crop=96, flip=0.0))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = module(batch)["pixels"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.7 and sum(losses[-3:]) < 0.4 * sum(losses[:3])


def test_bfloat16_trains(painted: Labelled) -> None:
    """Breaks when the loss is taken in half precision."""
    module = Detection(build()).train()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(module(batch_of(painted))["loss"])
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(found[1], found[0], atol=0.05, rtol=0.05)
    found[1].backward()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the sample of COCO")
def test_a_real_photo() -> None:
    """Classes painted from COCO's own outlines; at the start every class is about as likely."""
    labelled = open_labelled(SHARED, split="train", extras=CONFIG.extras())
    config = replace(CONFIG, min_size=96, max_size=128, crop=96)
    assert config.classes(labelled)[:2] == ("background", "person") and len(config.classes(labelled)) == 81
    first = labelled.subset([0, 1])
    batch = batch_of(first, config)
    assert {int(c) for c in batch.extras["semantic"][0].unique()} > {0, 255}
    loss = Detection(build(config, classes=81)).train()(batch)["pixels"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(81), rel=0.25)


def test_problems_are_named() -> None:
    bad = replace(CONFIG, scales=(2.0, 0.5), crop=8, width=0, dilation=0)
    keys = {line.split(":")[0] for line in bad.problems(pretrained=False)}
    assert keys == {"detector.scales", "detector.crop", "detector.width", "detector.dilation"}
    assert not [*FCN16s().problems(pretrained=False)]


def test_truth_without_outlines_is_no_truth(painted: Labelled, tmp_path: Path) -> None:
    """Breaks when an image whose things have boxes alone counts as all background."""
    table = json.loads(painted.table.file.read_text())
    for annotation in table["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(table))
    boxes = open_labelled(
        tmp_path / "boxes.json", split="val", images=painted.table.folder, extras=CONFIG.extras()
    )
    with pytest.raises(ValueError, match=r"boxes.json: none of its annotations has an outline"):
        measured(Oracle([]), boxes, config=CONFIG, measure=Measure())


def test_more_classes_than_bytes_are_refused(painted: Labelled) -> None:
    """Breaks when class 300 is learned as class 44."""
    many = tuple(Category(k, f"c{k}") for k in range(1, 256))
    crowded = replace(painted, table=replace(painted.table, categories=many))
    with pytest.raises(ValueError, match="256 classes, the background among them; fcn16s tells at most 255"):
        CONFIG.classes(crowded)
    assert CONFIG.classes(painted) == ("background", "one", "two")


def test_cityscapes_states_its_own_classes(tmp_path: Path) -> None:
    """Nineteen, and no background. Breaks when its pixels are painted from outlines, or classes count from 1."""
    labelled = open_labelled(cityscapes_set(tmp_path), split="train", extras=CONFIG.extras())
    config = replace(CONFIG, min_size=30, max_size=40, crop=64)
    names = config.classes(labelled)
    assert (len(names), names[0], names[-1]) == (19, "road", "bicycle")
    batch = batch_of(labelled, replace(config, min_size=30, flip=0.0))
    truth = labelled.semantic(0)
    assert torch.equal(batch.extras["semantic"][0][:30, :40], truth) and {*truth.unique().tolist()} == {
        0,
        11,
        13,
    }
    found = measured(Oracle([truth], 19), labelled, config=config, measure=Measure()).figures
    there = {name: value for name, value in found.items() if name.startswith("IoU") and value >= 0}
    assert there == {"IoU road": 100, "IoU person": 100, "IoU car": 100}
    assert found["mIoU"] == found["accuracy"] == 100
