"""What is drawn into pictures, pixel by pixel."""

from __future__ import annotations

import io
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boxwise.data.coco import Category
from boxwise.data.scenes import write_scenes
from boxwise.data.targets import open_labelled
from boxwise.run.draw import (
    GAP,
    NAMED_SIDE,
    Thing,
    detections_sheet,
    drawn,
    encoded,
    found_things,
    hue,
    overlaid,
    write_picture,
)

CATEGORIES = (Category(3, "cat"), Category(7, "person", ("a", "b", "c"), ((1, 2), (2, 3))))


def grey(height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), 100, dtype=torch.uint8)


def coloured(pixels: torch.Tensor, colour: tuple[int, int, int]) -> torch.Tensor:
    return (pixels == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all(0)


def test_a_box_is_outlined_inside_its_last_pixel() -> None:
    """Breaks when a half-open box is drawn a pixel too far, or one that fills the picture is not seen."""
    for box, (top, bottom, left, right) in {
        (10.0, 20.0, 30.0, 50.0): (20, 49, 10, 29),
        (0.0, 0.0, 80.0, 60.0): (0, 59, 0, 79),
        (-9.0, -9.0, 200.0, 200.0): (0, 59, 0, 79),
    }.items():
        seen = coloured(drawn(grey(60, 80), [Thing(box, 0)], CATEGORIES), hue(0, 2))
        rows, columns = seen.nonzero().unbind(1)
        assert [rows.min(), rows.max(), columns.min(), columns.max()] == [top, bottom, left, right]
        assert not seen[top + 2 : bottom - 1, left + 2 : right - 1].any()


def test_things_are_drawn_in_the_frame_they_refer_to() -> None:
    """Breaks when a shrunk picture shows the boxes, masks or keypoints of the large one."""
    rle = {"size": [120, 160], "counts": [0, 120 * 80, 120 * 80]}  # the left half
    thing = Thing((40, 40, 80, 80), 1, outline=rle, keypoints=[100, 60, 2, 0, 0, 0, 0, 0, 0])
    small = drawn(grey(60, 80), [thing], CATEGORIES, source=(120, 160))
    box = coloured(small, hue(1, 2))
    assert box[20, 20] and box[39, 39] and not box[41, 41]
    tint = (0.55 * 100 + 0.45 * torch.tensor(hue(1, 2))).round().byte()
    assert torch.equal(small[:, 5, 5], tint) and torch.equal(small[:, 5, 45], grey(1, 1)[:, 0, 0])
    assert torch.equal(small[:, 30, 50], torch.tensor(hue(0, 3), dtype=torch.uint8))


def test_only_labelled_keypoints_and_lines_between_them_are_drawn() -> None:
    """Breaks when unlabelled points, which lie at 0, 0, are drawn or joined, or the skeleton is counted from 0."""
    marks = [40.0, 10.0, 2.0, 40.0, 50.0, 1.0, 0.0, 0.0, 0.0]
    made = drawn(grey(60, 80), [Thing((30, 5, 75, 58), 1, 0.9, keypoints=marks)], CATEGORIES)
    line = coloured(made, hue(1, 2))
    assert line[20:40, 39:41].any(1).all() and not line[:4].any()
    assert torch.equal(made[:, :4, :29], grey(4, 29))
    for k, (x, y) in enumerate(((40, 10), (40, 50))):
        assert torch.equal(made[:, y, x], torch.tensor(hue(k, 3), dtype=torch.uint8))


def test_names_stay_inside_the_picture() -> None:
    """Breaks when a word is cut at an edge, or small pictures are covered with words."""
    plain = drawn(grey(300, 300), [], CATEGORIES)
    assert torch.equal(plain, grey(300, 300))
    for x, y in ((0.0, 0.0), (280.0, 280.0), (100.0, 100.0)):
        made = drawn(grey(300, 300), [Thing((x, y, x + 20, y + 20), 0, 0.5)], CATEGORIES)
        changed = (made != 100).any(0)
        assert changed.sum() > 400 and changed.any(0).sum() >= 35, "the plate of the word is whole"
        assert (made.amin(0) > 150).any(), "letters"
    small = drawn(grey(100, 100), [Thing((50, 50, 60, 60), 0, 0.5)], CATEGORIES)
    assert coloured(small, hue(0, 2)).sum() <= 40 * 2


def test_detections_become_things_by_category_id() -> None:
    """Breaks when the id of a category is taken for its place, or xywh for xyxy."""
    one = {"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.25, "keypoints": [1, 1, 1] * 3}
    (thing,) = found_things([one], CATEGORIES)
    assert thing == Thing((1, 2, 4, 6), 1, 0.25, None, [1, 1, 1] * 3)


def test_classes_tint_and_background_stays() -> None:
    classes = torch.tensor([[0, 1, 2, 255]], dtype=torch.uint8)
    made = overlaid(grey(1, 4), classes, count=3)
    assert torch.equal(made[:, 0, 0], made[:, 0, 3]) and made[0, 0, 0] == 100
    assert torch.equal(made[:, 0, 2], (55 + 0.45 * torch.tensor(hue(2, 3))).round().byte())
    assert not torch.equal(overlaid(grey(1, 4), classes, count=3, background=None)[:, 0, 0], made[:, 0, 0])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_a_files_bytes_are_what_its_name_says(suffix: str) -> None:
    with Image.open(io.BytesIO(encoded(grey(5, 7), suffix))) as picture:
        assert picture.format == ("PNG" if suffix == ".png" else "JPEG") and picture.size == (7, 5)
        assert np.abs(np.asarray(picture).astype(int) - 100).max() <= 2


def test_a_picture_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """Breaks when a write that ends midway leaves half a picture, which a resumed run takes for a whole one."""
    out = tmp_path / "figures" / "views.png"
    noise = torch.randint(256, (3, 40, 40), dtype=torch.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for before in ([], [out]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the file breaks off there
        try:
            with pytest.raises(OSError, match="too large"):
                write_picture(noise, out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [*out.parent.iterdir()] == before
        if not before:
            write_picture(grey(5, 7), out)
    with Image.open(out) as picture:
        assert (np.asarray(picture) == 100).all()


def test_the_sheet_shows_truth_above_what_was_found(tmp_path: Path) -> None:
    """Breaks when masks of the truth are not drawn, rows change places, or more than the surest detections show."""
    write_scenes(tmp_path, counts={"train": 1, "val": 1}, size=NAMED_SIDE)
    labelled = open_labelled(tmp_path, split="val", extras=["segmentation"])
    picture, truth = labelled.read(0)
    x0, y0, x1, y1 = truth.boxes[0].tolist()
    one = {"image_id": labelled.image_id(0), "category_id": labelled.categories[0].id, "score": 0.4}
    one |= {"bbox": [x0, y0, x1 - x0, y1 - y0]}
    other = {**one, "bbox": [0.0, 0.0, 20.0, 20.0], "category_id": labelled.categories[1].id, "score": 0.3}
    rest = [{**one, "score": 0.35}] * (len(truth.boxes) - 1)
    sheet = detections_sheet(
        labelled, [], [other, *rest, one], [{**other, "score": 0.6}, *rest, one], count=3
    )
    rows = sheet.split(NAMED_SIDE + GAP, dim=1)
    assert sheet.shape == (3, 4 * (NAMED_SIDE + GAP), NAMED_SIDE + GAP)
    above, none, doubtful, sure = (row[:, :NAMED_SIDE, :NAMED_SIDE] for row in rows)
    assert torch.equal(none, picture)
    assert (above != picture).any(0).sum() > 4 * (x1 - x0 + y1 - y0), "outlines alone change less"
    ours, others = (hue(k, len(labelled.categories)) for k in (0, 1))
    assert coloured(doubtful, ours).any() and coloured(sure, ours).any()
    assert coloured(sure, others)[:20, :20].any() and not coloured(doubtful, others)[:20, :20].any()


def test_small_pictures_are_enlarged_for_words(tmp_path: Path) -> None:
    """Breaks when boxes are drawn at the size of the source, or a sheet of small scenes stays unreadable."""
    write_scenes(tmp_path, counts={"train": 1, "val": 1}, size=64)
    labelled = open_labelled(tmp_path, split="val")
    one = {"image_id": labelled.image_id(0), "category_id": labelled.categories[0].id, "score": 0.9}
    sheet = detections_sheet(labelled, [{**one, "bbox": [8.0, 8.0, 40.0, 40.0]}], count=1)
    assert sheet.shape == (3, 2 * (192 + GAP), 192 + GAP)
    edges = coloured(sheet[:, 192 + GAP :], hue(0, len(labelled.categories)))
    assert edges[24, 30:140].all() and edges[30:140, 24].all()
