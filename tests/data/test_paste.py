"""Composites: what lies where, and what lies behind it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from boxwise.data.augment import Photo, augment, draw_photo
from boxwise.data.cut import Crop, Cut, Paste, ViewSpec, draw_cuts
from boxwise.data.decode import BadImage
from boxwise.data.loader import Load, feed
from boxwise.data.order import VIEW, Item, numbers
from boxwise.data.paste import background, draw_size, fewest, fitted_size, rooms
from boxwise.geometry.views import View
from boxwise.recipes.insloc import composite, insloc_r50_c4_200ep, insloc_r50_fpn_200ep
from boxwise.recipes.pretrain import scrl_r50_200ep
from boxwise.shapes import Picture
from boxwise.strict import SettingsError
from ramps import shown

STILL = Photo(jitter=0, gray=0, blur=0, mean=(0, 0, 0), std=(1, 1, 1))
SIDE = 128


def spec(**changes: object) -> ViewSpec:
    crop = Crop(size=SIDE, scale=(0.2, 1.0), ratio=(0.5, 2.0))
    return ViewSpec(crop=crop, photo=STILL, paste=Paste(**changes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ramps:
    """Pictures whose red is their own x, whose green is their y, and whose blue is which they are."""

    count: int = 9
    broken: tuple[int, ...] = ()
    width: int = 200
    height: int = 150

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Picture:
        if index in self.broken:
            raise BadImage(self.name(index), "is broken")
        pixels = torch.zeros(3, self.height, self.width, dtype=torch.uint8)
        pixels[0], pixels[1] = torch.arange(self.width), torch.arange(self.height)[:, None]
        pixels[2] = 20 * index + 10
        return pixels

    def name(self, index: int) -> str:
        return f"{index}.png"

    def fingerprint(self) -> str:
        return ""


def loads(specs: tuple[ViewSpec, ...], images: Ramps, **changes: int) -> list[Load]:
    options = {"batch_size": 6, "seed": 5, "start": 0, "total": 2, "workers": 0} | changes
    return [*feed(images, specs, {}, **options)]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Counted(Ramps):
    """Remembers what was read, in order."""

    seen: list[int] = field(default_factory=list)

    def read(self, index: int) -> Picture:
        self.seen.append(index)
        return super().read(index)


def which(view: View) -> tuple[Tensor, Tensor]:
    """By their blue: the picture inside each box, and the one behind it."""
    assert view.objects is not None
    boxes, blue = view.place(view.objects)[:, 0].long(), view.image[:, 2] * 255
    front, back = [], []
    for pixels, (left, top, right, bottom) in zip(blue, boxes.tolist(), strict=True):
        inside = pixels[top:bottom, left:right]
        outside = pixels.clone()
        outside[top:bottom, left:right] = float("nan")
        outside = outside[~outside.isnan()]
        assert inside.std() < 1e-3 and outside.std() < 1e-3  # opaque, not blended, not a pixel too wide
        front.append((inside.mean() - 10) / 20)
        back.append((outside.mean() - 10) / 20)
    return torch.stack(front).round().long(), torch.stack(back).round().long()


def cuts_of(load: Load, specs: tuple[ViewSpec, ...], images: Ramps, epoch: int = 0) -> list[list[Cut]]:
    """Where the parts were cut, drawn again."""
    found = []
    for index in load.batch.index.tolist():
        rngs = [numbers(5, VIEW + i, Item(epoch, index)) for i in range(len(specs))]
        for rng in rngs:
            rng.random(13, dtype=np.float32)
        crops = [s.crop for s in specs]
        found.append(draw_cuts(rngs, crops, width=images.width, height=images.height))
    return found


@pytest.mark.parametrize("paste_size", ["frame", "sides"])
def test_trap_02_what_lies_in_the_box_is_the_part_that_was_cut(paste_size: str) -> None:
    """Breaks when box and pixels part ways: a flip forgotten, x and y or two images exchanged, a part squeezed."""
    specs, images = (spec(paste_size=paste_size), spec(paste_size=paste_size)), Ramps()
    flips = []
    for load in loads(specs, images, total=1):
        batch, cuts = load.ready("cpu"), cuts_of(load, specs, images)
        for i, view in enumerate(batch.views):
            assert view.objects is not None
            boxes = view.place(view.objects)
            centre = torch.tensor([[c[i].left + c[i].width / 2, c[i].top + c[i].height / 2] for c in cuts])
            seen = shown(view, boxes)[:, 0] * 255 + 0.5
            torch.testing.assert_close(seen, centre, atol=0.6, rtol=0)
            for row, (pixels, cut, box) in enumerate(
                zip(view.image * 255 + 0.5, cuts, boxes[:, 0].int().tolist(), strict=True)
            ):
                left, top, right, bottom = box
                across = pixels[0, (top + bottom) // 2, left:right]
                if view.flip[row]:
                    across = across.flip(0)
                down = pixels[1, top:bottom, (left + right) // 2]
                for line, start, length in (
                    (across, cut[i].left, cut[i].width),
                    (down, cut[i].top, cut[i].height),
                ):
                    want = start + (torch.arange(len(line)) + 0.5) / len(line) * length
                    torch.testing.assert_close(line[2:-2], want[2:-2], atol=1.1, rtol=0)
                flips.append(bool(view.flip[row]))
            assert torch.equal(which(view)[0], batch.index)
            assert torch.equal(view.crop, torch.tensor([[0.0, 0, SIDE, SIDE]]).expand_as(view.crop))
    assert {True, False} == set(flips)


def test_backgrounds_are_whole_pictures_squeezed() -> None:
    """Breaks when a background keeps its shape, is cropped, or is mirrored without its foreground."""
    specs, images = (spec(), spec()), Ramps()
    for view in loads(specs, images, total=1)[0].ready("cpu").views:
        assert view.objects is not None
        for pixels, box, flip in zip(view.image * 255 + 0.5, view.place(view.objects)[:, 0], view.flip):
            x = (torch.arange(SIDE) + 0.5) / SIDE * images.width
            y = (torch.arange(SIDE) + 0.5) / SIDE * images.height
            x = x.flip(0) if flip else x
            left, top, right, bottom = box.int().tolist()
            outside = torch.ones(SIDE, SIDE, dtype=torch.bool)
            outside[top:bottom, left:right] = False
            outside[:, [0, -1]] = outside[[0, -1]] = False
            assert (pixels[0] - x)[outside].abs().max() < 1.1
            assert (pixels[1] - y[:, None])[outside].abs().max() < 1.1


def test_backgrounds_are_other_pictures_and_differ_between_views() -> None:
    """Breaks when an image lies on itself, or both of its views on the same one."""
    seen = set()
    for load in loads((spec(), spec()), Ramps(), batch_size=3, total=30):
        batch = load.ready("cpu")
        (_, one), (_, two) = (which(view) for view in batch.views)
        assert not (one == two).any() and not (one == batch.index).any() and not (two == batch.index).any()
        places = {int(n): i for i, n in enumerate(batch.index)}
        seen |= {(i, places[int(b)]) for i, b in enumerate(one)}
    assert seen == {(i, j) for i in range(3) for j in range(3) if i != j}


def test_the_codes_backgrounds_may_coincide() -> None:
    """Breaks when the switch changes nothing."""
    specs = (spec(backgrounds="any"), spec(backgrounds="any"))
    same, own = [], []
    for load in loads(specs, Ramps(), batch_size=3, total=30):
        batch = load.ready("cpu")
        (_, one), (_, two) = (which(view) for view in batch.views)
        same += (one == two).tolist()
        own += (one == batch.index).tolist()
    assert 0.15 < np.mean(same) < 0.55 and 0.15 < np.mean(own) < 0.55
    assert loads(specs, Ramps(count=1), batch_size=1, total=1)


@pytest.mark.parametrize("backgrounds", ["apart", "any"])
def test_a_picture_that_lies_behind_others_is_read_once(backgrounds: str) -> None:
    """Breaks when backgrounds are decoded anew: a batch would cost three times as many files."""
    images, specs = Counted(), (spec(backgrounds=backgrounds),) * 2
    (load,) = loads(specs, images, total=1)
    assert sorted(images.seen) == sorted(load.batch.index.tolist()) and len(images.seen) == 6


def test_too_few_images_for_backgrounds_are_one_clear_error() -> None:
    """Breaks when a batch of two fails deep in a worker, or silently lies on itself."""
    assert fewest((spec(), spec())) == 3 and fewest((ViewSpec(), ViewSpec())) == 1
    with pytest.raises(ValueError, match=r"2 images at a time are too few .* --batch-size 3 or more"):
        loads((spec(), spec()), Ramps(), batch_size=2)
    with pytest.raises(ValueError, match=r"2 images at a time .* --batch-size 6 or more"):
        loads((spec(), spec()), Ramps(), batch_size=4, accumulate=2)


def test_a_background_is_not_the_same_picture_under_another_row() -> None:
    """Breaks when an image that stands in for a bad one lies on itself."""
    source = np.array([4, 7, 4, 9])
    assert {background(0, roll / 10, source, []) for roll in range(10)} == {1, 3}
    assert {background(0, roll / 10, source, [1]) for roll in range(10)} == {3}
    assert {background(0, roll / 10, source[:3], [1]) for roll in range(10)} == {2}  # there is no other
    assert {background(0, roll / 10, source, None) for roll in range(10)} == {0, 1, 2, 3}


def test_a_bad_image_is_replaced_in_front_and_behind() -> None:
    """Breaks when a bad image leaves a hole that every later part is shifted by."""
    images = Ramps(count=6, broken=(2,))
    for load in loads((spec(), spec()), images, total=4):
        batch = load.ready("cpu")
        for view in batch.views:
            front, back = which(view)
            assert torch.equal(front, batch.index) and not (back == 2).any()
            assert not (back == front).any()


def test_trap_01_a_part_keeps_its_shape_inside_a_frame() -> None:
    """Breaks when sides are the drawn ones, when 255 or a last column can be met, or the frame turns a part."""
    rng, sides = np.random.default_rng(0), []
    for _ in range(4000):
        width, height = rng.integers(40, 400, 2).tolist()
        if not 0.5 <= width / height <= 2:
            continue
        w, h = draw_size(rng, Paste(), Cut(0, 0, width, height, False), 256)
        assert abs(w / h - width / height) < 1.5 / min(w, h) * max(1, width / height)
        sides += [w, h]
    assert min(sides) >= 64 and max(sides) == 254
    assert 0.05 < np.mean(np.array(sides) < 128) < 0.3
    assert fitted_size(100, 50, (128, 254)) == (254, 127) and fitted_size(50, 100, (254, 200)) == (127, 254)
    assert fitted_size(3, 2, (128, 128)) == (128, 85) and rooms((254, 64), 256) == (2, 192)


def test_trap_01_the_papers_sides_are_those_drawn() -> None:
    """Breaks when the switch still keeps the part's shape, or leaves 128 to 256 pixels."""
    rng = np.random.default_rng(0)
    sides = np.array(
        [draw_size(rng, Paste(paste_size="sides"), Cut(0, 0, 90, 50, False), 256) for _ in range(3000)]
    )
    assert sides.min() == 128 and sides.max() == 256
    assert abs(np.corrcoef(sides.T)[0, 1]) < 0.06


def test_trap_01_the_last_column_is_never_touched() -> None:
    """Breaks when the place of a part is drawn up to and including the last."""
    edges = []
    for load in loads((spec(), spec()), Ramps(), batch_size=9, total=60):
        for boxes in (view.objects for view in load.batch.views):
            assert boxes is not None
            edges.append(boxes[:, 0])
    boxes = torch.cat(edges)
    assert boxes.min() == 0 and boxes[:, 2:].max() == SIDE - 1


def test_workers_change_nothing() -> None:
    """Breaks when a composite depends on who made it."""
    specs, images = (spec(), spec()), Ramps()
    for one, two in zip(loads(specs, images), loads(specs, images, workers=1), strict=True):
        for a, b in zip(one.batch.views, two.batch.views, strict=True):
            assert torch.equal(a.image, b.image) and torch.equal(a.flip, b.flip)
            assert a.objects is not None and b.objects is not None and torch.equal(a.objects, b.objects)


def test_trap_02_the_foreground_alone_is_changed_as_if_it_were_all() -> None:
    """Breaks when the background is changed too, or the mean that contrast blends with is that of the whole view."""
    dice = torch.Generator().manual_seed(1)
    view = View(
        torch.randint(0, 256, (4, 3, 48, 48), generator=dice, dtype=torch.uint8),
        torch.tensor([[0.0, 0, 48, 48]]).expand(4, 4),
        torch.tensor([False, True, False, True]),
        torch.tensor([[[4.0, 8, 30, 40]], [[20, 0, 44, 28]], [[0, 0, 47, 47]], [[10, 20, 34, 46]]]),
    )
    assert view.objects is not None
    boxes = view.place(view.objects)[:, 0]
    plain = augment(view, *drawn(4, STILL), STILL).image
    for photo in (
        replace(STILL, jitter=1.0),
        replace(STILL, gray=1.0),
        replace(STILL, solarize=1.0),
        replace(STILL, blur=1.0),
    ):
        draws = drawn(4, photo)[0]
        got = augment(view, draws, photo, within=boxes).image
        for n, (left, top, right, bottom) in enumerate(boxes.int().tolist()):
            outside = torch.ones(48, 48, dtype=torch.bool)
            outside[top:bottom, left:right] = False
            assert torch.equal(got[n][:, outside], plain[n][:, outside])
            part = plain[n : n + 1, :, top:bottom, left:right]
            alone = View((part * 255).round().byte(), view.crop[:1], torch.tensor([False]))
            want = augment(alone, draws[n : n + 1], photo).image[0]
            same = got[n][:, top:bottom, left:right]
            assert not torch.equal(same, part[0])
            inner = slice(4, -4) if photo.blur else slice(None)  # each pass of the blur repeats its own edge
            torch.testing.assert_close(same[:, inner, inner], want[:, inner, inner], atol=2e-6, rtol=0)


def drawn(count: int, photo: Photo) -> tuple:
    return (draw_photo(torch.rand(count, 13, generator=torch.Generator().manual_seed(3)), photo),)


def test_trap_02_by_default_the_whole_composite_is_changed() -> None:
    """Breaks when the switch between paper and code is read the wrong way round."""
    loud = replace(STILL, brightness=0.5, jitter=1.0)
    whole, part = (replace(spec(augment=kind), photo=loud) for kind in ("composite", "foreground"))
    assert Paste().augment == "composite"
    still = loads((spec(), spec()), Ramps(), total=1)[0].ready("cpu").views[0]
    assert still.objects is not None
    box = still.place(still.objects)[:, 0].long()
    for used, outside_too in ((whole, True), (part, False)):
        view = loads((used, used), Ramps(), total=1)[0].ready("cpu").views[0]
        changed = (view.image - still.image).abs().amax(1) > 0.02
        for rows, (left, top, right, bottom) in zip(changed, box.tolist(), strict=True):
            inside = rows[top:bottom, left:right].float().mean()
            rows[top:bottom, left:right] = False
            assert inside > 0.5 and bool(rows.any()) == outside_too


def test_published_composites() -> None:
    """Breaks when canvas, ratio, scale or switches of the published runs change."""
    for recipe, ratio in ((insloc_r50_fpn_200ep(), 2), (insloc_r50_c4_200ep(), 3)):
        assert recipe.views == (composite(ratio), composite(ratio))
        crop = recipe.views[0].crop
        assert (crop.size, crop.scale, crop.ratio, crop.flip) == (256, (0.2, 1.0), (1 / ratio, ratio), 0.5)
        assert recipe.views[0].paste == Paste(paste_size="frame", augment="composite", backgrounds="apart")


def test_methods_that_compare_places_refuse_composites() -> None:
    """Breaks when boxes would be looked for on pictures that are not there."""
    with pytest.raises(SettingsError, match=r"views.0.paste: scrl would look"):
        scrl_r50_200ep().changed({"views": {"0": {"paste": {"augment": "composite"}}}})
