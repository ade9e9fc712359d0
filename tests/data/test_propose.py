"""What is proposed: SoCo's choice among the boxes of a search, random boxes, a grid, a json's boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_images import noted

from boxwise.data import propose
from boxwise.data.names import Names
from boxwise.data.proposal_pool import boxes_of
from boxwise.data.propose import GridBoxes, RandomBoxes, SelectiveSearch, coco_boxes, fitting, stated
from boxwise.data.sources import Files


def chosen(rects: list[list[int]], width: int, height: int) -> list[list[int]]:
    return fitting(np.array(rects, dtype=np.int64).reshape(-1, 4), width, height).tolist()


def test_trap_15_filters_of_proposals_and_their_fallbacks() -> None:
    """Breaks when a bound moves or loses its equality, when 32 pixels are forgotten, when shares are of the view
    instead of the image, or when a fallback is skipped or comes while there is a box of an earlier stage."""
    fine, ratio_3, ratio_third = [0, 0, 100, 100], [1, 2, 180, 60], [3, 4, 60, 180]
    least, most = [0, 0, 60, 60], [0, 0, 160, 160]  # root areas of exactly 0.3 and 0.8 of 200 x 200
    longer, small, large, short = [0, 0, 184, 61], [0, 0, 59, 60], [0, 0, 161, 160], [0, 0, 90, 31]
    every = [fine, longer, ratio_3, small, least, large, most, short, ratio_third, fine]
    assert chosen(every, 200, 200) == [fine, ratio_3, least, most, ratio_third, fine]
    assert chosen([small, longer, large, short], 200, 200) == [small, large]
    assert chosen([longer, short, [5, 5, 32, 128]], 200, 200) == [longer, [5, 5, 32, 128]]
    assert chosen([short, [0, 0, 31, 31]], 200, 200) == []
    assert chosen([[0, 0, 0, 0]], 200, 200) == []
    assert chosen([fine], 400, 400) == [fine] and chosen([fine, [0, 0, 130, 130]], 400, 400) == [
        [0, 0, 130, 130]
    ]


def test_trap_15_a_box_of_the_search_ends_at_its_last_pixel() -> None:
    """Breaks when widths are made half-open: a square of 60 pixels has a box 59 wide."""
    pixels = np.zeros((200, 200, 3), dtype=np.uint8)
    pixels[40:100, 70:170] = 255
    assert [70, 40, 99, 59] in SelectiveSearch(sigma=0.01).rects(pixels, "").tolist()


def test_large_images_are_searched_small_and_their_boxes_are_of_the_large_one() -> None:
    """Breaks when boxes of the shrunk picture are filtered or kept as they are."""
    pixels = np.zeros((400, 600, 3), dtype=np.uint8)
    pixels[100:300, 150:450] = 255
    found = SelectiveSearch(megapixels=0.06).rects(pixels, "")
    assert np.abs(found - [150, 100, 298, 198]).max(axis=1).min() <= 4


def test_random_boxes_are_a_function_of_seed_and_name() -> None:
    """Breaks when ranks or a resumed run would draw other boxes, or all images the same."""
    pixels = np.zeros((120, 300, 3), dtype=np.uint8)
    one = RandomBoxes(count=20).rects(pixels, "a/b.jpg")
    assert one.tolist() == RandomBoxes(count=20).rects(pixels, "a/b.jpg").tolist() and len(one) == 20
    for other in (
        RandomBoxes(count=20, seed=1).rects(pixels, "a/b.jpg"),
        RandomBoxes(count=20).rects(pixels, "c"),
    ):
        assert one.tolist() != other.tolist()


@pytest.mark.parametrize("generator", [RandomBoxes(count=400), GridBoxes()])
def test_random_boxes_and_grids_pass_the_filters_and_reach_the_edges(generator: Any) -> None:
    """Breaks when boxes leave the image or miss SoCo's bounds, or when parts of the image are never proposed."""
    found = generator.rects(np.zeros((240, 320, 3), dtype=np.uint8), "x")
    assert fitting(found, 320, 240).tolist() == found.tolist() and len(found) > 50
    ends = found[:, :2] + found[:, 2:]
    assert found[:, :2].min() >= 0 and (ends <= [320, 240]).all()
    assert (found[:, :2].min(axis=0) <= 5).all() and (ends.max(axis=0) >= [315, 235]).all()
    assert len(np.unique(found, axis=0)) > 0.9 * len(found)


@pytest.mark.parametrize("generator", [RandomBoxes(count=5), GridBoxes(), SelectiveSearch()])
@pytest.mark.parametrize("size", [(20, 20), (1, 1), (33, 500)])
def test_small_and_thin_images_do_not_stop_it(generator: Any, size: tuple[int, int]) -> None:
    """Breaks when an image without room for a box of 32 pixels raises instead of standing for itself."""
    found = generator.rects(np.zeros((*size, 3), dtype=np.uint8), "x")
    assert (found[:, 2:] >= 32).all() and (len(found) == 0 or size == (33, 500))


def labels(tmp_path: Path) -> dict[str, Any]:
    raw = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 90, "height": 60},
            {"id": 8, "file_name": "b.jpg"},
        ],
        "annotations": [
            {"image_id": 7, "bbox": [10.4, 5.6, 20, 30], "category_id": 1},
            {"image_id": 7, "bbox": [80, 50, 40, 40], "category_id": 1},
            {"image_id": 7, "bbox": [0, 0, 9, 9], "category_id": 1, "iscrowd": 1},
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(raw))
    return raw


def test_boxes_of_a_json_are_taken_as_they_are(tmp_path: Path) -> None:
    """Breaks when labels are filtered like a search, leave the image, or a crowd counts as an object."""
    labels(tmp_path)
    pixels, made = np.zeros((60, 90, 3), dtype=np.uint8), coco_boxes(tmp_path / "labels.json")
    assert made.rects(pixels, "a.jpg").tolist() == [[10, 6, 20, 30], [80, 50, 10, 10]]
    assert made.rects(pixels, "b.jpg").tolist() == []


@pytest.mark.parametrize("said", ["stored", "upright"])
def test_boxes_of_a_json_stand_upright_with_their_picture(said: str, tmp_path: Path) -> None:
    """Breaks when a camera's turn is undone in the picture and not in its labels, or undone in labels drawn upright."""
    noted(tmp_path / "a.jpg", 6, 30, 20)  # held upright it is 20 wide and 30 high
    size = {"width": 30, "height": 20} if said == "stored" else {"width": 20, "height": 30}
    box = [1, 2, 10, 5] if said == "stored" else [13, 1, 5, 10]
    raw = {
        "images": [{"id": 7, "file_name": "a.jpg", **size}],
        "annotations": [{"image_id": 7, "bbox": box, "category_id": 1}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(raw))
    made = boxes_of(Files(tmp_path, Names.of(["a.jpg"])), 0, coco_boxes(tmp_path / "labels.json"))
    assert (made.width, made.height) == (20, 30) and made.rects.tolist() == [[13, 1, 5, 10]]


def test_a_turned_picture_of_another_size_than_its_labels_has_no_proposals(tmp_path: Path) -> None:
    """Breaks when boxes of a picture that nobody has are placed in the one that is there."""
    noted(tmp_path / "a.jpg", 6, 30, 20)
    raw = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 31, "height": 20}],
        "annotations": [{"image_id": 7, "bbox": [1, 2, 10, 5], "category_id": 1}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(raw))
    made = boxes_of(Files(tmp_path, Names.of(["a.jpg"])), 0, coco_boxes(tmp_path / "labels.json"))
    assert not len(made.rects) and "its json says 31 x 20" in made.reason


def test_detections_need_the_json_of_their_images_and_enough_score(tmp_path: Path) -> None:
    """Breaks when a list of detections is refused, or taken without its scores."""
    labels(tmp_path)
    seen = [{"image_id": 8, "bbox": [1, 2, 3, 4], "score": s} for s in (0.2, 0.9)]
    (tmp_path / "seen.json").write_text(
        json.dumps([*seen, {"image_id": 8, "bbox": [5, 5, 5, 5], "score": 0.7}])
    )
    made = coco_boxes(tmp_path / "seen.json", images=tmp_path / "labels.json", score=0.5)
    assert made.rects(np.zeros((60, 90, 3), dtype=np.uint8), "b.jpg").tolist() == [[1, 2, 3, 4], [5, 5, 5, 5]]
    assert stated(made)["score"] == 0.5 and stated(made)["digest"] == made.digest
    with pytest.raises(ValueError, match="names their images"):
        coco_boxes(tmp_path / "seen.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ('{"images": []}', "annotations"),
        ('{"images": [], "annotations": [{"image_id": 3, "bbox": [1, 2, 3, 4]}]}', "no list of images names"),
        (
            '{"images": [{"id": 3, "file_name": "a"}], "annotations": [{"image_id": 3, "bbox": [1, 2]}]}',
            "width, height",
        ),
    ],
)
def test_a_broken_json_is_named(text: str, said: str, tmp_path: Path) -> None:
    """Breaks when a user meets a KeyError instead of a sentence."""
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        coco_boxes(tmp_path / "x.json")


def test_bounds_are_those_that_soco_filtered_with() -> None:
    """Breaks when a constant changes."""
    assert (propose.LEAST_SIDE, propose.MOST_RATIO, propose.SHARES) == (32, 3.0, (0.3, 0.8))
