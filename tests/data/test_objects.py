"""Which boxes views share, and where the loader says they are."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from boxwise.data.augment import Photo
from boxwise.data.cut import Crop, Cut, ViewSpec
from boxwise.data.cutout import Cutout, cut_out
from boxwise.data.loader import Load, feed
from boxwise.data.objects import (
    BLOCK,
    Draws,
    Objects,
    Proposer,
    WholeImage,
    clipped,
    draw_objects,
    draws_of,
    inclusive,
    jittered,
    seen_by_both,
    select,
    shared_parts,
)
from boxwise.data.sources import open_images
from boxwise.geometry.views import View

WHOLE, OTHER = Crop(size=64, whole=True), Crop(size=64, scale=(0.5, 1.0))
FIRST = Cut(0, 0, 100, 80, False)


@dataclass(frozen=True)
class InTest:
    """Proposals of a test: the boxes of each image."""

    found: tuple[NDArray[np.float32], ...]

    def boxes(self, index: int) -> NDArray[np.float32]:
        return self.found[index % len(self.found)]


def draws(boxes: int, count: int = 4, **changes: Any) -> Draws:
    return draws_of(np.random.default_rng(0), boxes, count)._replace(**changes)


def test_trap_15_right_and_bottom_are_last_pixels() -> None:
    """Breaks when proposals with exclusive edges are taken as they are: every box would be a pixel larger."""
    found = np.array([[10, 20, 50, 60]], dtype=np.float32)
    assert inclusive(found, width=100, height=80).tolist() == [[10, 20, 49, 59]]
    assert inclusive(np.empty((0, 4), np.float32), width=100, height=80).tolist() == [[0, 0, 99, 79]]


def test_a_shared_border_column_is_no_overlap() -> None:
    """Breaks when <= takes the place of <, or an edge is exclusive."""
    cut = Cut(40, 0, 30, 80, False)  # pixels 40 to 69
    boxes = np.array([[10.0, 5, 40, 50], [10, 5, 41, 50], [69, 5, 90, 50], [68, 5, 90, 50]])
    assert seen_by_both(boxes, FIRST, cut, 0.0).tolist() == [False, True, False, True]
    assert seen_by_both(boxes, FIRST, cut, 0.06).tolist() == [False, True, False, True]
    assert seen_by_both(boxes, FIRST, cut, 0.07).tolist() == [False, False, False, True]  # 2 of 32 columns


def test_trap_13_jitter_by_hand() -> None:
    """Breaks when sides are taken without the last pixel, one draw serves all four, or unjittered boxes move."""
    boxes = np.array([[10.0, 20, 49, 79]] * 2)  # 40 by 60 pixels
    amount = np.array([[1.0, 0.0, 0.75, 0.5]] * 2)  # swings of .1, -.1, .05, 0
    told = draws(2, 2, moved=np.array([0.49, 0.51]), amount=amount)
    moved = jittered(boxes, told, Objects())
    np.testing.assert_allclose(moved, [[14, 14, 14 + 42 - 1, 14 + 60 - 1], [10, 20, 49, 79]])
    centred = jittered(boxes, told, Objects(jitter_anchor="center"))
    np.testing.assert_allclose(centred[0], [13, 14, 54, 73])
    shared = jittered(boxes, told, Objects(jitter_shared=True))
    np.testing.assert_allclose(shared[0], [14, 26, 14 + 44 - 1, 26 + 66 - 1])
    np.testing.assert_allclose(jittered(boxes, told, Objects(jitter=0.0)), boxes)


def test_trap_13_only_the_first_view_is_jittered_and_then_clipped() -> None:
    """Breaks when the other views' boxes move as well, or a moved box leaves the picture."""
    boxes, cut = np.array([[0.0, 30, 60, 79], [20, 0, 99, 50]]), Cut(10, 5, 80, 70, True)
    always = Objects(count=2, jitter=1.0)
    for seed in range(20):
        told = draws_of(np.random.default_rng(seed), 2, 2)
        here, there = select(boxes, np.array([True, True]), FIRST, cut, told, always)
        still = clipped(boxes[there.ids - 1], cut)
        np.testing.assert_array_equal(there.boxes, still)
        assert (here.boxes != boxes[here.ids - 1]).any(1).all()
        assert (here.boxes[:, :2] >= 0).all() and (here.boxes[:, 2:] <= [99, 79]).all()


def test_boxes_are_drawn_without_replacement() -> None:
    """Breaks when a box is taken twice while others are there, or the first of a file are preferred."""
    boxes = np.tile([[10.0, 10, 40, 40]], (6, 1))
    seen = np.array([True, True, False, True, True, True])
    taken = [
        select(boxes, seen, FIRST, FIRST, draws_of(np.random.default_rng(i), 6, 4), Objects())[1].ids.tolist()
        for i in range(300)
    ]
    assert all(len({*ids}) == 4 and 3 not in ids for ids in taken)
    share = [np.mean([k in ids for ids in taken]) for k in (1, 2, 4, 5, 6)]
    assert share == pytest.approx([0.8] * 5, abs=0.1)


def test_trap_14_padding_is_drawn_for_each_side() -> None:
    """Breaks when rows are filled alike in both views, left empty, or filled by boxes that are not there."""
    boxes = np.array([[10.0, 10, 40, 40], [20, 20, 70, 60]])
    repeated = np.array([[0, 0, 0.2, 0.9], [0, 0, 0.7, 0.6]])
    told = draws(2, repeated=repeated, order=np.array([0.8, 0.1]))
    here, there = select(boxes, np.array([True, True]), FIRST, FIRST, told, Objects(jitter=0.0))
    assert here.ids.tolist() == [2, 1, 2, 1] and there.ids.tolist() == [2, 1, 1, 1]
    np.testing.assert_array_equal(here.boxes, boxes[here.ids - 1])


def test_where_nothing_is_shared_the_views_are_one_object() -> None:
    """Breaks when an image without overlap ends in an error, or drops out of the batch."""
    cut = Cut(50, 40, 30, 20, False)
    boxes = np.array([[0.0, 0, 30, 30]])
    here, there = select(boxes, seen_by_both(boxes, FIRST, cut, 0), FIRST, cut, draws(1), Objects())
    assert here.boxes.tolist() == [[0, 0, 99, 79]] * 4 and there.boxes.tolist() == [[50, 40, 79, 59]] * 4
    assert here.ids.tolist() == there.ids.tolist() == [1] * 4


@pytest.mark.parametrize("cut", [Cut(50, 0, 50, 80, False), Cut(99, 0, 1, 80, False)])
def test_trap_14_slivers_become_a_pixel(cut: Cut) -> None:
    """Breaks when what a crop shows of a box has no area, which RoIAlign cannot read."""
    boxes = np.array([[20.0, 10, 50.01, 40], [98.7, 10, 130, 40], [10, 79.5, 60, 90]])
    shown = clipped(boxes, cut)
    assert (shown[:, 2:] - shown[:, :2] >= 1 - 1e-9).all()
    assert (shown[:, 0] >= cut.left).all() and (shown[:, 2] <= cut.left + max(cut.width - 1, 1)).all()


def test_trap_12_views_of_one_part_share_their_boxes() -> None:
    """Breaks when a resized view gets boxes of its own, or a view of its own shares another's."""
    half, own = replace(OTHER, size=32, like=1), replace(OTHER, size=48)
    assert shared_parts([WHOLE, OTHER, half]) == [1, 1]
    assert shared_parts([WHOLE, OTHER, own, half]) == [1, 2, 1]
    proposed = np.random.default_rng(1).integers(0, 30, (9, 4)).astype(np.float32) + np.float32(
        [0, 0, 40, 40]
    )
    for crops, sets in (([WHOLE, OTHER, half], 1), ([WHOLE, OTHER, own], 2), ([WHOLE, OTHER, own, half], 2)):
        _, known = drawn(crops, proposed)
        assert [len(k.ids) for k in known] == [4 * sets, *[4] * (len(crops) - 1)]
        blocks = [{int(i) // BLOCK for i in k.ids} for k in known]
        assert blocks[0] == {*range(sets)} and all(len(b) == 1 for b in blocks[1:])
        if half in crops:
            np.testing.assert_array_equal(known[1].boxes, known[-1].boxes)
            np.testing.assert_array_equal(known[1].ids, known[-1].ids)


def drawn(crops: list[Crop], proposed: NDArray[np.float32], seed: int = 0, **options: Any) -> Any:
    from boxwise.data.cut import draw_cuts

    rngs = [np.random.default_rng([seed, i]) for i in range(len(crops))]
    return draw_objects(
        np.random.default_rng(seed),
        lambda: draw_cuts(rngs, crops, width=100, height=80),
        crops,
        proposed,
        Objects(**options),
        width=100,
        height=80,
    )


def test_crops_are_drawn_again_until_they_share_enough() -> None:
    """Breaks when an unlucky crop is kept, or crops are drawn for ever where an image has too few boxes."""
    small = replace(OTHER, scale=(0.1, 0.2))
    corner = np.array([[0, 0, 34, 34], [2, 2, 36, 36], [4, 4, 40, 40]], dtype=np.float32)

    def lost(attempts: int) -> int:
        """Images in which nothing was shared."""
        return sum(
            bool((drawn([WHOLE, small], corner, seed=s, attempts=attempts)[1][1].ids == 1).all())
            for s in range(60)
        )

    assert 20 < lost(1) < 60 and lost(5) < lost(1) / 2
    calls = []

    def draw() -> list[Cut]:
        calls.append(1)
        return [FIRST, Cut(60, 50, 30, 20, False)]

    for count, needed in ((4, 3), (1, 2), (16, 5)):  # 2, 1, 0 boxes; 1, 0; 8, 4, 2, 1, 0
        calls.clear()
        options = Objects(count=count)
        draw_objects(np.random.default_rng(0), draw, [WHOLE, OTHER], corner, options, width=100, height=80)
        assert len(calls) == needed


def test_no_id_stands_in_two_sets() -> None:
    """Breaks when an object of one pair would match that of another, whose boxes are not the same."""
    proposed = np.array([[10, 10, 60, 60]] * 5, dtype=np.float32)
    _, known = drawn([WHOLE, OTHER, replace(OTHER, size=32)], proposed)
    first, second, third = ({*k.ids.tolist()} for k in known)
    assert not second & third and first == second | third


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose red is their x and whose green is their y."""
    folder = tmp_path_factory.mktemp("ramps")
    for i, (width, height) in enumerate([(200, 150), (120, 240), (255, 90), (64, 64)]):
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        pixels = np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


PLAIN = Photo(jitter=0, gray=0, blur=0, solarize=0, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
SPECS = (
    ViewSpec(crop=replace(WHOLE, size=128), photo=PLAIN),
    ViewSpec(crop=replace(OTHER, size=128), photo=PLAIN),
    ViewSpec(crop=replace(OTHER, size=64, like=1), photo=PLAIN),
    ViewSpec(crop=replace(OTHER, size=96), photo=PLAIN),
)
SHARES = [(0.4, 0.38, 0.6, 0.58), (0.42, 0.44, 0.62, 0.6), (0.38, 0.4, 0.5, 0.6)]
"""Boxes that every crop of half a picture shows whole."""
FOUND = InTest(
    tuple(
        (np.array(SHARES[:boxes], np.float32) * np.float32([w, h, w, h])).round()
        for (w, h), boxes in zip([(200, 150), (120, 240), (255, 90), (64, 64)], (3, 2, 1, 3), strict=True)
    )
)


def loaded(photos: Path, proposals: Proposer = FOUND, **options: Any) -> Load:
    objects = Objects(**{"jitter": 0.0, "min_visible": 1.0} | options)
    made = feed(
        open_images(photos), SPECS, {}, batch_size=4, seed=3, start=0, total=1, workers=0,
        objects=objects, proposals=proposals,
    )  # fmt: skip
    return next(iter(made))


def test_pixels_at_a_known_object_show_it(photos: Path) -> None:
    """The real path, worker and device: breaks when crop, flip, ids or boxes of two views drift apart."""
    batch = loaded(photos).ready("cpu")
    assert {bool(f) for v in batch.views for f in v.flip} == {True, False}
    for view in batch.views:
        boxes = view.place(view.objects)
        for n in range(4):
            proposed = FOUND.boxes(int(batch.index[n]))
            for box, label in zip(boxes[n].round().long().tolist(), view.ids[n].tolist(), strict=True):
                want = proposed[label % BLOCK - 1]
                part = view.image[n, :2, box[1] : box[3], box[0] : box[2]]
                middle = (want[:2] + want[2:] - 1) / 2
                np.testing.assert_allclose(part.mean((1, 2)).numpy(), middle, atol=2.5)


def test_loader_says_whose_boxes_are_whose(photos: Path) -> None:
    """Breaks when a batch mixes up the objects of its images, or the whole image is no object of its own."""
    load = loaded(photos)
    assert [v.objects.shape for v in load.batch.views] == [(4, 8, 4), (4, 4, 4), (4, 4, 4), (4, 4, 4)]
    assert [h.shape for h in load.holes] == [(4, 8, 4), (4, 4, 4), (4, 4, 4), (4, 4, 4)]
    for n, index in enumerate(load.batch.index.tolist()):
        for view in load.batch.views:
            want = FOUND.boxes(index)[view.ids[n].numpy() % BLOCK - 1] - [0, 0, 1, 1]
            np.testing.assert_array_equal(view.objects[n].numpy(), want)
    whole = loaded(photos, WholeImage(), min_visible=0.0).batch
    for view in whole.views:
        torch.testing.assert_close(view.objects[:, 0] + torch.tensor([0.0, 0, 1, 1]), view.crop)
        assert (view.ids % BLOCK == 1).all()


def test_workers_and_views_without_objects_change_nothing(photos: Path) -> None:
    """Breaks when boxes depend on the process that chooses them, or draws of views shift when there are none."""
    images, options = open_images(photos), {"batch_size": 2, "seed": 3, "start": 0, "total": 2}
    known = {"objects": Objects(attempts=1), "proposals": FOUND}
    alone = list(feed(images, SPECS, {}, workers=0, **options, **known))
    several = list(feed(images, SPECS, {}, workers=1, **options, **known))
    bare = list(feed(images, SPECS, {}, workers=0, **options))
    for one, other, plain in zip(alone, several, bare, strict=True):
        for a, b, c in zip(one.batch.views, other.batch.views, plain.batch.views, strict=True):
            assert torch.equal(a.objects, b.objects) and torch.equal(a.ids, b.ids)
            assert torch.equal(a.image, c.image) and torch.equal(a.crop, c.crop) and c.objects is None
    assert pickle.loads(pickle.dumps(FOUND)).boxes(1).shape == (2, 4)


def test_holes_lie_in_their_boxes() -> None:
    """Breaks when holes are of another size, lie where an unmirrored box would, or fill too many boxes."""
    view = View(
        torch.ones(2, 3, 50, 100),
        torch.tensor([[0.0, 0, 200, 100]] * 2),
        torch.tensor([False, True]),
        torch.tensor([[[20.0, 20, 60, 60], [120, 40, 180, 80]]] * 2),
        torch.tensor([[1, 2]] * 2),
    )
    noise = torch.tensor([[[0.49, 0.5, 0.5, 0.5], [0.51, 0.5, 0.5, 0.5]]] * 2)
    told = cut_out(view, noise, Cutout(share=0.5))
    for image, centre in zip(told.image, (20, 80), strict=True):  # the first box is 20 pixels wide and high
        hole = image[0] == 0
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert hole.sum() == len(rows) * len(columns) and hole.sum().sqrt() == pytest.approx(
            0.2**0.5 * 20, abs=1.1
        )
        assert (columns + 0.5).mean() == pytest.approx(centre, abs=0.6)
        assert (rows + 0.5).mean() == pytest.approx(20, abs=0.6)
        assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    assert cut_out(view, noise, Cutout()) is view
    assert (cut_out(view, noise, Cutout(share=1.0)).image == 0).sum() > (told.image == 0).sum()


def test_holes_are_off_unless_asked_for(photos: Path) -> None:
    """Breaks when the released code's cutout is on by itself, or the setting reaches another view."""
    batch = loaded(photos)
    holed = replace(batch, specs=(SPECS[0], replace(SPECS[1], cutout=Cutout(share=1.0)), *SPECS[2:]))
    plain, cut = batch.ready("cpu"), holed.ready("cpu")
    assert [torch.equal(a.image, b.image) for a, b in zip(plain.views, cut.views, strict=True)] == [
        True, False, True, True,
    ]  # fmt: skip
