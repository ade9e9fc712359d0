"""Pictures as probes see them, and what support vector machines are given."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as T

from boxwise.data.cut import Crop
from boxwise.data.targets import Labelled, open_labelled
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.transfer.probes.looks import (
    Asked,
    LabelledBoxes,
    ProbeBatch,
    Seen,
    Still,
    StillLooks,
    TrainLooks,
    collate,
    still_view,
)
from boxwise.transfer.probes.roi_linear import RoILinear
from boxwise.transfer.probes.stages import shown, stage_rows

LANDSCAPE, PORTRAIT = (120, 240), (230, 150)
"""Height and width, of pixels fewer than a byte has levels."""


@dataclass(frozen=True)
class Asking:
    """Pictures and questions that lie in memory."""

    asked: tuple[Asked, ...]
    classes: tuple[str, ...] = ("a", "b")

    def __len__(self) -> int:
        return len(self.asked)

    def ask(self, index: int) -> Asked:
        return self.asked[index]

    def name(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return "memory"


def ramp(height: int, width: int) -> Tensor:
    """A picture each of whose pixels shows its own column in red and its own row in green."""
    x = torch.arange(width, dtype=torch.uint8).expand(height, -1)
    y = torch.arange(height, dtype=torch.uint8)[:, None].expand(-1, width)
    return torch.stack([x, y, torch.zeros_like(x)])


def some_boxes(height: int, width: int) -> Tensor:
    """Source pixels, no two of one shape, none at the border, which resizing smears."""
    shares = torch.tensor(
        [[0.06, 0.07, 0.3, 0.5], [0.41, 0.11, 0.93, 0.28], [0.7, 0.33, 0.81, 0.94], [0.1, 0.6, 0.55, 0.7]]
    )
    return shares * torch.tensor([width, height] * 2)


def ramps() -> Asking:
    """One picture that lies and one that stands, with the same count of boxes."""
    sizes = LANDSCAPE, PORTRAIT
    return Asking(tuple(Asked(ramp(*size), torch.tensor([0, 1, 1, 0]), some_boxes(*size)) for size in sizes))


def read_at(image: Tensor, points: Tensor) -> Tensor:
    """Which source place (x, y) an image of a ramp shows at each of `points`, between its pixels: (N, 2)."""
    size = torch.tensor([image.shape[2], image.shape[1]])
    grid = (2 * points / size - 1)[None, None]
    seen = F.grid_sample(image[None, :2].float(), grid, align_corners=False)
    return seen[0, :, 0].T + 0.5  # the pixel that shows n spans n to n + 1


def assert_boxes_show(image: Tensor, boxes: Tensor, source: Tensor, *, mirrored: bool) -> None:
    """Both corners of each box show those of its source box, to 0.75 source pixels: roundings take half a level, and
    half a pixel of a view of 64 is 0.9 or more."""
    left, top, right, bottom = source.unbind(1)
    first, last = (right, left) if mirrored else (left, right)
    for corners, place in ((boxes[:, :2], (first, top)), (boxes[:, 2:], (last, bottom))):
        torch.testing.assert_close(read_at(image, corners), torch.stack(place, dim=1), atol=0.75, rtol=0)


def looks_mirrored(image: Tensor) -> bool:
    return bool(image[0, 0, 0] > image[0, 0, -1])


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("index", [0, 1])
def test_a_box_shows_in_training_what_it_shows_in_the_source(flip: float, index: int) -> None:
    """Breaks when boxes are scaled by the other side's factor or not at all, when a mirrored picture keeps its boxes or
    a straight one mirrors them, and when left and right are not swapped."""
    questions = ramps()
    seen = TrainLooks(questions, Crop(size=64, whole=True, flip=flip), seed=3).sample(index, epoch=2)
    assert seen.image.shape == (3, 64, 64) and seen.index == index
    assert (seen.boxes[:, 2:] - seen.boxes[:, :2] > 5).all()
    assert_boxes_show(seen.image, seen.boxes, questions.ask(index).boxes, mirrored=flip == 1)
    assert seen.classes.tolist() == [0, 1, 1, 0]


def test_pixels_and_boxes_are_mirrored_together() -> None:
    """Breaks when pixels and boxes draw their flips apart: in 20 passes of each picture both ways come up."""
    questions = ramps()
    looks = TrainLooks(questions, RoILinear(crop=Crop(size=64, whole=True)).crop, seed=0)
    ways = []
    for index, epoch in [(i, e) for i in range(2) for e in range(20)]:
        seen = looks.sample(index, epoch)
        ways.append(looks_mirrored(seen.image))
        assert_boxes_show(seen.image, seen.boxes, questions.ask(index).boxes, mirrored=ways[-1])
    assert 8 < sum(ways) < 32


def test_boxes_of_a_part_lie_where_the_part_shows_them() -> None:
    """Breaks when the corner of the part is not taken off, or the whole picture's sides scale the boxes of a part."""
    questions, compared = ramps(), 0
    looks = TrainLooks(questions, Crop(size=96, scale=(0.5, 0.9), flip=0.5), seed=1)
    for index, epoch in [(i, e) for i in range(2) for e in range(12)]:
        seen = looks.sample(index, epoch)
        inside = ((seen.boxes > 3) & (seen.boxes < 93)).all(1)
        source = questions.ask(index).boxes[inside]
        assert_boxes_show(seen.image, seen.boxes[inside], source, mirrored=looks_mirrored(seen.image))
        compared += int(inside.sum())
    assert compared > 20


@pytest.mark.parametrize("still", [Still(size=64, resize=None), Still(size=64, resize=80, squeeze=True)])
@pytest.mark.parametrize("index", [0, 1])
def test_a_box_shows_in_a_measurement_what_it_shows_in_the_source(still: Still, index: int) -> None:
    """Breaks when boxes to measure on are scaled to `resize`, by the other side, or mirrored."""
    questions = ramps()
    seen = StillLooks(questions, still).sample(index)
    assert_boxes_show(seen.image, seen.boxes, questions.ask(index).boxes, mirrored=False)
    assert torch.equal(StillLooks(questions, still).sample(index, epoch=7).image, seen.image)


def test_what_is_seen_in_training_is_a_function_of_seed_epoch_and_index() -> None:
    """Breaks when a resumed run or another worker sees other parts, or when passes, images or seeds share theirs."""
    questions = Asking((Asked(ramp(*LANDSCAPE), torch.tensor([1])),) * 2)
    crop = Crop(size=32, scale=(0.08, 1.0))
    looks = TrainLooks(questions, crop, seed=5)
    first = {(i, e): looks.sample(i, e).image for i in range(2) for e in range(4)}
    again = TrainLooks(questions, crop, seed=5)
    assert all(torch.equal(again.sample(*at).image, first[at]) for at in reversed(first))
    images = [*first.values(), TrainLooks(questions, crop, seed=6).sample(0, 0).image]
    assert all(not torch.equal(a, b) for n, a in enumerate(images) for b in images[:n])
    assert looks.sample(1, 0).boxes is None and looks.sample(1, 0).classes.tolist() == [1]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(75, 100), (151, 90), (64, 200), (50, 50)])
def test_a_still_view_is_torchvisions(size: tuple[int, int], mode: str) -> None:
    """Breaks when the longer side is rounded up, when the longer is taken for the shorter, when the middle is off by a
    pixel, or without antialiasing. Equal to the byte where torchvision resizes bytes as such, else within 1 level."""
    picture = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    interpolation = InterpolationMode(mode)
    short = T.resize(picture, [80], interpolation, antialias=True)
    expected = {
        Still(size=64, resize=80): T.center_crop(short, [64, 64]),
        Still(size=64, resize=80, squeeze=True): T.resize(short, [64, 64], interpolation, antialias=True),
        Still(size=64, resize=None): T.resize(picture, [64, 64], interpolation, antialias=True),
    }
    for still, view in expected.items():
        seen = still_view(picture, replace(still, interpolation=mode))
        assert seen.dtype == torch.uint8
        assert (seen.int() - view.int()).abs().max() <= 1
    distinct = [*expected.values()]
    assert all((a.int() - b.int()).abs().max() > 20 for n, a in enumerate(distinct) for b in distinct[:n])


def seen_of(index: int, boxes: int | None) -> Seen:
    corners = None if boxes is None else torch.arange(4.0 * boxes).view(boxes, 4) + 10 * index
    image = torch.full((3, 32, 32), 100 + index, dtype=torch.uint8)
    return Seen(image, torch.arange(1 if boxes is None else boxes) + index, corners, index)


def test_rows_of_a_batch_run_image_by_image() -> None:
    """Breaks when a box or class goes to a neighbour, above all behind an image without boxes, or when boxes bear the
    image's row in its set in place of that in the batch."""
    batch = collate([seen_of(7, 2), seen_of(3, 0), seen_of(9, 1)])
    assert batch.boxes.tolist() == [[0, 70, 71, 72, 73], [0, 74, 75, 76, 77], [2, 90, 91, 92, 93]]
    assert batch.classes.tolist() == [7, 8, 9] and batch.index == (7, 3, 9) and len(batch) == 3
    assert batch.images[:, 1, 5, 6].tolist() == [107, 103, 109] and batch.images.dtype == torch.uint8
    empty = collate([seen_of(7, 0), seen_of(3, 0)])
    assert empty.boxes.shape == (0, 5) and empty.classes.shape == (0,) and empty.classes.dtype == torch.int64


def test_whole_pictures_have_a_class_each_and_no_boxes() -> None:
    batch = collate([seen_of(2, None), seen_of(5, None)])
    assert batch.boxes.shape == (0, 5) and batch.classes.tolist() == [2, 5]


def test_a_batch_moves_as_a_whole() -> None:
    """Breaks when a part is left behind on the host."""
    batch = collate([seen_of(7, 2), seen_of(9, 1)])
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.images, moved.classes, moved.boxes)} == {"meta"}
    assert moved.index == (7, 9) and {t.device.type for t in (batch.images, batch.boxes)} == {"cpu"}


def test_a_labelled_box_shows_its_class_and_crowds_are_not_asked_about(drawn: Labelled) -> None:
    """Breaks when classes count from 1, when boxes and classes part ways, or when a crowd is asked about."""
    questions = LabelledBoxes(drawn)
    assert questions.classes == ("green", "red") and len(questions) == 6
    counts = []
    for index in range(6):
        asked = questions.ask(index)
        counts.append(len(asked.classes))
        assert asked.classes.dtype == torch.int64 and asked.boxes.dtype == torch.float32
        seen = TrainLooks(questions, Crop(size=96, whole=True, flip=1.0), seed=0).sample(index, 0)
        for box, k in zip(seen.boxes.round().int().tolist(), seen.classes.tolist()):
            inside = seen.image[k, box[1] + 2 : box[3] - 2, box[0] + 2 : box[2] - 2].float()
            assert inside.numel() > 20 and inside.mean() > 240
    assert counts == [1, 2, 0, 1, 2, 2]  # the third of the last is a crowd
    assert drawn.read(5)[1].crowd.tolist() == [False, False, True]


def test_only_images_with_a_box_are_asked_about(drawn: Labelled) -> None:
    """Breaks when an image without a box, or with a crowd alone, stays; when the boxes of a neighbour count for it; or
    when rows of the set are taken for those of the file."""
    crowd = drawn.table.crowd.copy()
    crowd[int(drawn.table.first[3])] = True  # the one box of image 3
    marked = replace(drawn, table=replace(drawn.table, crowd=crowd))
    filled = LabelledBoxes(marked).filled()
    assert [filled.name(i) for i in range(len(filled))] == ["0.png", "1.png", "4.png", "5.png"]
    filled = LabelledBoxes(marked.subset([5, 3, 2, 4, 0])).filled()
    assert [filled.name(i) for i in range(len(filled))] == ["5.png", "4.png", "0.png"]
    assert [len(filled.ask(i).classes) for i in range(3)] == [2, 2, 1]
    assert not len(LabelledBoxes(marked.subset([2, 3])).filled())


ANNOTATED = (  # of each image: category, difficult, crowd
    [(7, 1, 0), (3, 0, 0), (7, 0, 0)],
    [(9, 0, 0), (9, 1, 0), (3, 1, 0)],
    [],
    [(3, 0, 1), (7, 0, 1), (7, 0, 0), (9, 1, 0)],
)


def annotated(root: Path) -> Labelled:
    """Four images, of categories whose ids are 3, 7 and 9."""
    for n in range(len(ANNOTATED)):
        Image.new("RGB", (40, 30)).save(root / f"{n}.png")
    boxes = [
        {"image_id": n, "category_id": c, "difficult": d, "iscrowd": g, "bbox": [1, 2, 9, 8], "area": 72}
        for n, found in enumerate(ANNOTATED)
        for c, d, g in found
    ]
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(len(ANNOTATED))
        ],
        "annotations": [{"id": n, **box} for n, box in enumerate(boxes, start=1)],
        "categories": [{"id": k, "name": f"kind {k}"} for k in (3, 7, 9)],
    }
    (root / "boxes.json").write_text(json.dumps(content))
    return open_labelled(root / "boxes.json", split="train", images=root, extras=("difficult",))


def test_which_categories_an_image_shows(tmp_path: Path) -> None:
    """Breaks when a difficult box hides an ordinary one of its category, before or behind it, when a crowd counts as
    shown, or when answers go to the neighbour of an image or category."""
    labelled = annotated(tmp_path)
    expected = np.array([[1, 1, 0], [-1, 0, 1], [0, 0, 0], [-1, 1, -1]])
    assert shown(labelled).tolist() == expected.tolist() and shown(labelled).dtype == np.int8
    order = [3, 0, 2]
    assert shown(labelled.subset(order)).tolist() == expected[order].tolist()


def test_rows_of_stages_are_the_pooled_maps_of_normalised_pictures() -> None:
    """Breaks when pictures arrive as bytes or are normalised by one colour, when norms take the batch's statistics or
    learn from it, when a stage gets another's pool, or when a batch's rows go to another."""
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(backbone="test_resnet")).train()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    pictures = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8)
    batches = [ProbeBatch(pictures[:2], torch.zeros(2).long(), torch.zeros(0, 5), (4, 1))]
    batches.append(ProbeBatch(pictures[2:], torch.zeros(1).long(), torch.zeros(0, 5), (0,)))
    before = {n: t.clone() for n, t in encoder.state_dict().items()}
    found = list(stage_rows(encoder, batches, ("c5", "c2"), mean=mean, std=std, device="cpu"))
    assert all(torch.equal(t, before[n]) for n, t in encoder.state_dict().items())
    assert [batch.index for batch, _ in found] == [(4, 1), (0,)]
    for number in range(3):
        rows = found[number // 2][1]
        assert list(rows) == ["c5", "c2"] and {x.dtype for x in rows.values()} == {np.dtype("float32")}
        picture = torch.stack([(pictures[number, k] / 255.0 - mean[k]) / std[k] for k in range(3)])
        with torch.no_grad():
            maps = encoder.eval().body(picture[None])
        for level, cells, kernel, stride in (("c5", maps[-1], 6, 1), ("c2", maps[-4], 16, 8)):
            assert cells.shape[-1] == {"c5": 7, "c2": 56}[level]
            expected = F.avg_pool2d(cells, kernel, stride).flatten()
            torch.testing.assert_close(
                torch.from_numpy(rows[level][number % 2]), expected, atol=1e-5, rtol=1e-5
            )
