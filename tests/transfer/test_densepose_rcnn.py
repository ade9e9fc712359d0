"""DensePose R-CNN: what it learns at which point, what it leaves out, and where its surfaces are measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.image_list import ImageList

from boxwise.data.targets import Labelled, open_labelled
from boxwise.interop.files import load_weights, save_weights
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.transfer.detectors.base import Detector, Targets
from boxwise.transfer.detectors.densepose import DensePoseRCNN
from boxwise.transfer.detectors.rcnn import PyramidRCNN
from boxwise.transfer.detectors.stages import Sampled
from boxwise.transfer.detectors.surface_losses import (
    Points,
    Surfaces,
    between,
    joined,
    points_in,
    surface_losses,
    wanted_body,
)
from boxwise.transfer.evaluate import Measure, measured
from boxwise.transfer.metrics.densepose import unpacked
from boxwise.transfer.results import surface_of
from boxwise.transfer.samples import DetectionBatch, TrainSamples, collate
from boxwise.transfer.task import Detection
from surfaces import COARSE, GROUND, LEFT, RIGHT, surface, write_mesh, write_people

CONFIG = DensePoseRCNN(
    backbone="resnet18",
    fpn_channels=16,
    min_size=64,
    max_size=64,
    cells=7,
    channels=16,
    box_batch_size_per_image=16,
    box_positive_fraction=0.5,
    rpn_post_nms_train=60,
    rpn_post_nms_test=20,
    min_iou=0.6,
)
MEAN, STD = (0.4,) * 3, (0.25,) * 3
TERMS = ("body", "part", "u", "v")


def build(config: DensePoseRCNN = CONFIG) -> PyramidRCNN:
    torch.manual_seed(0)
    return config.build(classes=1, mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    root = write_people(tmp_path_factory.mktemp("people") / "coco")
    return open_labelled(root, split="train", extras=CONFIG.extras())


def batch_of(labelled: Labelled, config: DensePoseRCNN = CONFIG) -> DetectionBatch:
    samples = TrainSamples(labelled, config, seed=0)
    return collate([samples.sample(i, 0) for i in range(len(labelled))])


def test_points_lie_on_the_pixels_that_they_name(people: Labelled) -> None:
    """At twice the size, the colour under each point says its u and v. Breaks when points count from the picture's
    corner, in its stored size, or when the row of an annotation is lost."""
    batch = batch_of(people, replace(CONFIG, min_size=128, max_size=128))
    for target, image in zip(batch.targets(), batch.images.float(), strict=True):
        assert len(target["dp_points"]) == 24 * int((target["dp_boxes"][:, 2] > 0).sum())
        torch.testing.assert_close(
            target["dp_boxes"][0], target["boxes"][0]
        )  # this one lies inside its picture
        for row, x, y, part, u, v in target["dp_points"].tolist():
            red, green, blue = image[:, int(y), int(x)].tolist()
            assert part == (LEFT if red > 145 else RIGHT)
            assert (green - 60) / 180 == pytest.approx(u, abs=0.08) and (blue - 60) / 180 == pytest.approx(
                v, abs=0.08
            )
            left, top, right, bottom = target["boxes"][int(row)].tolist()
            assert left <= x <= right and top <= y <= bottom
    without = batch.targets()[1]
    assert not without["dp_boxes"][1].any() and not without["dp_body"][1].any()
    assert set(without["dp_points"][:, 0].tolist()) == {0}
    known = set(batch.targets()[0]["dp_body"][0].unique().tolist())
    assert known == {0, *COARSE.values()}


def test_points_count_from_the_box_of_the_json(tmp_path: Path) -> None:
    """It reaches ten pixels over the edge. Breaks when points are stretched over the clipped box."""
    root = write_people(tmp_path / "coco", count=1, val=1)
    file = root / "annotations" / "densepose_train2014.json"
    table = json.loads(file.read_text())
    table["annotations"][0]["bbox"] = [-10, 6, 30, 40]
    file.write_text(json.dumps(table))
    with pytest.warns(UserWarning, match="clipped, they reach over the edge"):
        labelled = open_labelled(root, split="train", extras=CONFIG.extras())
    target = batch_of(labelled).targets()[0]
    assert target["boxes"][0].tolist() == [0, 6, 20, 46] and target["dp_boxes"][0].tolist() == [
        -10,
        6,
        20,
        46,
    ]
    assert target["dp_points"][0, 1:3].tolist() == pytest.approx([-10 + 30 * 30 / 255, 6 + 40 * 90 / 255])


def random_surfaces(boxes: int, cells: int, body: int) -> Surfaces:
    generator = torch.Generator().manual_seed(3)
    sizes = (body, 25, 25, 25)
    return Surfaces(
        *(torch.randn(boxes, k, cells, cells, generator=generator, dtype=torch.float64) for k in sizes)
    )


def read(maps: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """All maps of one box at a place in cells, the middle of the first cell being 0, by hand."""
    last = maps.shape[-1] - 1
    x, y = min(max(x, 0), last), min(max(y, 0), last)
    a, b = int(x), int(y)
    found = torch.zeros(len(maps), dtype=maps.dtype)
    for i, wide in ((a, 1 - (x - a)), (min(a + 1, last), x - a)):
        for j, tall in ((b, 1 - (y - b)), (min(b + 1, last), y - b)):
            found += wide * tall * maps[:, j, i]
    return found


@pytest.mark.parametrize("body_classes", [2, 15])
def test_losses_are_those_of_their_loops(body_classes: int) -> None:
    """Breaks when u is read from another part's chart, a point outside its box counts, or a mean has another count."""
    cells, images = 4, 3
    boxes = [torch.tensor([[2.0, 4, 22, 44], [0, 0, 30, 30]]), torch.tensor([[5.0, 5, 25, 45]])]
    matched = [torch.tensor([0, 1]), torch.tensor([0])]
    generator = torch.Generator().manual_seed(0)
    annotated, frames, parts = [], [], []
    for people in (2, 1):
        rows = torch.rand(9, 6, generator=generator)
        rows[:, 0] = torch.arange(9) % people
        rows[:, 1:3] *= 48
        rows[:, 3] = torch.randint(1, 25, (9,), generator=generator).float()
        rows[4:6, 3] = 0  # the ground, where u and v mean nothing
        annotated.append(rows)
        frames.append(torch.tensor([[1.0, 3, 23, 45], [2, 2, 30, 34]])[:people])
        parts.append(torch.randint(0, 15, (people, 256, 256), generator=generator, dtype=torch.uint8))
    found = random_surfaces(3, cells, body_classes)
    weights = (5.0, 1.0, 0.01)
    first, points = 0, []
    for of, who, rows in zip(boxes, matched, annotated, strict=True):
        points.append(points_in(of, who, rows, cells=cells, first=first))
        first += len(of)
    body = wanted_body(
        torch.cat(boxes),
        torch.cat([f[m] for f, m in zip(frames, matched, strict=True)]),
        torch.cat([p[m] for p, m in zip(parts, matched, strict=True)]),
        cells=cells,
        classes=body_classes,
    )
    ours = surface_losses(found, body, joined(points), images=images, weights=weights)

    total = dict.fromkeys(TERMS, 0.0)
    seen = box = 0
    for image in range(2):
        for (left, top, right, bottom), who in zip(
            boxes[image].tolist(), matched[image].tolist(), strict=True
        ):
            x0, y0, x1, y1 = frames[image][who].tolist()
            for row in range(cells):
                for column in range(cells):
                    x = left + (column + 0.5) / cells * (right - left)
                    y = top + (row + 0.5) / cells * (bottom - top)
                    i, j = int((x - x0) / (x1 - x0) * 256 // 1), int((y - y0) / (y1 - y0) * 256 // 1)
                    inside = 0 <= i < 256 and 0 <= j < 256
                    label = int(parts[image][who, j, i]) if inside else 0
                    label = min(label, 1) if body_classes == 2 else label
                    total["body"] -= float(found.body[box, :, row, column].log_softmax(0)[label])
            for person, x, y, part, u, v in annotated[image].tolist():
                if person == who and left <= x < right and top <= y < bottom:
                    at = (x - left) / (right - left) * cells - 0.5, (y - top) / (bottom - top) * cells - 0.5
                    total["part"] -= float(read(found.part[box], *at).log_softmax(0)[int(part)])
                    for name, maps, value in (("u", found.u, u), ("v", found.v, v)):
                        apart = abs(float(read(maps[box], *at)[int(part)]) - value)
                        total[name] += 0 if part == 0 else 0.5 * apart**2 if apart < 1 else apart - 0.5
                    seen += 1
            box += 1
    assert 3 < seen < 27
    wanted = {
        "body": 5 * total["body"] / (3 * cells**2),
        "part": total["part"] / seen,
        "u": 0.01 * total["u"] * 2 / images,
        "v": 0.01 * total["v"] * 2 / images,
    }
    assert {name: float(ours[f"loss_densepose_{name}"]) for name in TERMS} == pytest.approx(wanted, rel=1e-5)


def test_maps_are_read_between_the_middles_of_cells() -> None:
    """A ramp gives back the place. Breaks when cells are read at their corners."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    maps = torch.cat([ramp, ramp.mT], dim=1)
    xy = torch.tensor([[0.0, 0.0], [3.25, 6.5], [7.0, 7.0]])
    zeros = torch.zeros(3)
    found = between(maps, Points(torch.zeros(3, dtype=torch.long), xy, zeros.long(), zeros, zeros))
    torch.testing.assert_close(found, xy)


def test_nobody_annotated_trains_nothing() -> None:
    """Breaks when the mean over no box is not a number, or leaves a layer without gradient, which several devices
    cannot do."""
    model = build().train()
    heads = model.roi_heads
    maps = {name: torch.rand(2, 16, s, s) for name, s in zip("0123", (16, 8, 4, 2))}
    target = {
        "boxes": torch.tensor([[4.0, 4, 40, 60]]),
        "dp_boxes": torch.zeros(1, 4),
        "dp_points": torch.zeros(0, 6),
        "dp_body": torch.zeros(1, 256, 256, dtype=torch.uint8),
    }
    none = torch.zeros(0, 4)
    boxes, long = (
        [target["boxes"], none],
        [torch.zeros(1, dtype=torch.long), torch.zeros(0, dtype=torch.long)],
    )
    sampled = Sampled(boxes, long, [long[0] + 1, long[1]], boxes)
    empty = {name: t[:0] for name, t in target.items()}
    losses = heads.losses(maps, torch.zeros(0), sampled, [(64, 64)] * 2, [target, empty])
    assert all(loss == 0 for loss in losses.values()) and len(losses) == 4
    torch.stack([*losses.values()]).sum().backward()
    read_by = (heads.densepose_decoder, heads.densepose_head, heads.densepose_predictor)
    assert all(p.grad is not None and not p.grad.any() for part in read_by for p in part.parameters())


def test_boxes_that_lie_badly_are_left_out() -> None:
    """Breaks when surfaces are learned in boxes that hold half a person."""
    heads = build().roi_heads
    target = {"boxes": torch.tensor([[0.0, 0, 40, 40]]), "dp_boxes": torch.tensor([[0.0, 0, 40, 40]])}
    boxes = torch.tensor([[0.0, 0, 40, 40], [0, 0, 40, 25], [0, 0, 40, 23]])
    matched = torch.zeros(3, dtype=torch.long)
    kept = heads._well(Sampled([boxes], [matched], [matched + 1], [boxes]), [target])
    assert kept.boxes[0].tolist() == boxes[:2].tolist()


@pytest.mark.parametrize("decoder", [True, False])
def test_every_layer_learns(people: Labelled, decoder: bool) -> None:
    """Breaks when a layer is cut off."""
    module = Detection(build(replace(CONFIG, decoder=decoder))).train()
    module(batch_of(people))["loss"].backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_every_term_falls(people: Labelled) -> None:
    """In people's own boxes, whose number stays the same. Breaks when targets lie elsewhere than what is read."""
    module = Detection(build(replace(CONFIG, min_iou=0.99, place_weight=0.05))).train()
    batch = batch_of(people)
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    losses: list[dict[str, float]] = []
    for step in range(20):
        torch.manual_seed(step)
        terms = module(batch)
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
        losses.append({name: float(loss.detach()) for name, loss in terms.items()})
    assert losses[0].keys() == {"objectness", "rpn_box", "classifier", "box", *TERMS, "loss"}
    for name in losses[0]:
        assert sum(row[name] for row in losses[-4:]) < 0.8 * sum(row[name] for row in losses[:4]), name


def test_frozen_norms_stand(people: Labelled) -> None:
    model = build(replace(CONFIG, norm="frozen", frozen_stages=2))
    before = {n: b.clone() for n, b in model.named_buffers() if n.endswith("running_mean")}
    Detection(model).train()(batch_of(people))["loss"].backward()
    stood = {n for n, b in model.named_buffers() if n in before and torch.equal(b, before[n])}
    assert stood == {n for n in before if n.startswith("backbone.body.")}, "norms of the pyramid train"
    fixed = {n for n, p in model.named_parameters() if p.grad is None}
    assert fixed == {
        n
        for n, _ in model.named_parameters()
        if n.startswith(("backbone.body.conv1.", "backbone.body.layer1."))
    }


def test_bfloat16_trains(people: Labelled) -> None:
    """Breaks when places of the surface are learned in half precision."""
    module, found = Detection(build()).train(), []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(module(batch_of(people)))
    for name in TERMS:
        assert found[1][name].dtype == torch.float32
        torch.testing.assert_close(found[1][name], found[0][name], atol=0.1, rtol=0.15)
    found[1]["loss"].backward()


def perfect(cells: int) -> torch.Tensor:
    """Maps over a person's box that say what `surfaces.surface` does."""
    maps = torch.zeros(2 + 75, cells, cells)
    body, part, u, v = maps.split([2, 25, 25, 25])
    for row in range(cells):
        for column in range(cells):
            across, down = (column + 0.5) / cells, (row + 0.5) / cells
            label, *place = surface(across, down)
            body[int(down >= GROUND), row, column] = part[label, row, column] = 9
            u[label, row, column], v[label, row, column] = place
    return maps


class Oracle(Detector):
    """Finds the people of a set, image after image, each with its surface."""

    def __init__(self, labelled: Labelled, maps: torch.Tensor) -> None:
        super().__init__()
        self.mean, self.std, self.maps = MEAN, STD, maps
        self.waiting = [labelled.read(i)[1] for i in range(len(labelled))]

    def losses(self, images: ImageList, targets: Targets) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def detect(self, images: ImageList) -> Targets:
        found = []
        for _ in images.image_sizes:
            known = self.waiting.pop(0)
            count = len(known.boxes)
            found.append(
                {
                    "boxes": known.boxes,
                    "labels": known.labels,
                    "scores": torch.linspace(0.9, 0.8, count),
                    "densepose": self.maps.repeat(count, 1, 1, 1),
                }
            )
        return found

    def parts(self) -> dict[str, nn.Module]:
        return {}


def test_surfaces_are_measured_where_they_lie(people: Labelled, tmp_path: Path) -> None:
    """From maps over boxes to GPS. Breaks when rows and columns change places, or parts are off by one."""
    measure = Measure(geodesics=str(write_mesh(tmp_path / "mesh.npz")))
    found = measured(Oracle(people, perfect(56)), people, config=CONFIG, measure=measure, batch_size=2)
    assert found.figures["AP"] == pytest.approx(100)
    assert found.figures["gps_AP"] == pytest.approx(100) and found.figures["gpsm_AP"] > 85
    part, u, v = unpacked(found.results[0])
    assert part.shape == (40, 24) and not part[:9].any() and (part[11:, :11] == LEFT).all()
    assert (part[11:, 13:] == RIGHT).all()
    wanted = surface(5.5 / 24, 30.5 / 40)
    assert (u[30, 5] / 255, v[30, 5] / 255) == pytest.approx(wanted[1:], abs=0.02)
    wrong = measured(
        Oracle(people, perfect(56).flip(-1)), people, config=CONFIG, measure=measure, batch_size=2
    )
    assert wrong.figures["AP"] == pytest.approx(100) and wrong.figures["gps_AP"] < 5


def test_without_a_mesh_boxes_alone_are_measured(people: Labelled) -> None:
    with pytest.warns(UserWarning, match="GPS and GPSm need --geodesics FILE"):
        found = measured(Oracle(people, perfect(14)), people, config=CONFIG, measure=Measure())
    assert "AP" in found.figures and not any(name.startswith("gps") for name in found.figures)


def test_ground_has_no_place() -> None:
    """u and v of pixels without a part are 0; values beyond a chart's edge stay on it."""
    maps = perfect(8)
    maps[2 + 25 :] = 3.0
    part, u, v = surface_of(maps, (16, 16)).long()
    assert torch.equal(u, v) and set(u[part == 0].tolist()) == {0} and set(u[part > 0].tolist()) == {255}


def test_found_surfaces_are_those_of_their_boxes(people: Labelled) -> None:
    model = Detection(build(replace(CONFIG, score_threshold=0.0))).eval()
    with torch.no_grad():
        batch = batch_of(people)
        for one in model.detect(batch):
            assert one["densepose"].shape == (len(one["boxes"]), 2 + 75, 28, 28) and len(one["boxes"]) > 0
        maps = model.detector.backbone(model.normalise(batch))
        boxes = [one["boxes"] for one in model.detect(batch)]
        alone = model.detector.roi_heads.surfaces(
            maps, [boxes[0][:0], boxes[1][:1], boxes[2][:0]], batch.sizes
        )
        torch.testing.assert_close(
            alone.u[0], model.detect(batch)[1]["densepose"][0, 27:52], atol=1e-5, rtol=1e-4
        )


def test_stretched_maps_have_four_times_as_many_cells() -> None:
    """A transposed convolution doubles, and the stretch doubles again, without a shift."""
    heads = build(replace(CONFIG, body_classes=15)).roi_heads
    read_in = heads.densepose_predictor(torch.rand(2, 16, 7, 7))
    assert read_in.body.shape == (2, 15, 28, 28)
    raw = heads.densepose_predictor.maps["u"](torch.ones(1, 16, 7, 7))
    torch.testing.assert_close(
        heads.densepose_predictor(torch.ones(1, 16, 7, 7)).u,
        F.interpolate(raw, scale_factor=2, mode="bilinear"),
    )


def test_mirrors_are_refused() -> None:
    """Breaks when a left arm is taught as a right one."""
    assert not [*DensePoseRCNN().problems(pretrained=False)]
    (said,) = replace(CONFIG, flip=0.5).problems(pretrained=False)
    assert said.startswith("detector.flip: a mirrored person shows other parts")
    bad = replace(CONFIG, min_iou=1.5, cells=0)
    assert {line.split(":")[0] for line in bad.problems(pretrained=False)} == {
        "detector.min_iou",
        "detector.cells",
    }


def test_pretrained_backbone_and_pyramid_arrive_whole(tmp_path: Path) -> None:
    """Breaks when one name differs, and that part starts from random weights."""
    torch.manual_seed(1)
    encoder = build_encoder(EncoderConfig(backbone="resnet18", fpn=True, fpn_channels=16))
    save_weights(tmp_path, {"backbone": encoder.body, "fpn": encoder.fpn}, {})
    model = build()
    report = load_weights(tmp_path).into(model.parts())
    report.require()
    assert report.share == 1 and report.promised == ("backbone", "fpn")
