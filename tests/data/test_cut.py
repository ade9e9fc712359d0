"""Where views are cut, and that the pixels say the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from boxwise.data.augment import NUMBERS, Photo, augment, draw_photo
from boxwise.data.cut import Crop, Cut, ViewSpec, cut_view, draw_cut
from boxwise.geometry.views import View
from boxwise.strict import SettingsError, read

PLAIN = Photo(jitter=0, gray=0, blur=0, solarize=0, mean=(0, 0, 0), std=(1, 1, 1))


def cuts(crop: Crop, *, width: int, height: int, count: int = 400) -> list[Cut]:
    return [draw_cut(np.random.default_rng(i), crop, width=width, height=height) for i in range(count)]


@pytest.mark.parametrize(("width", "height"), [(640, 427), (97, 300), (33, 33)])
def test_a_cut_lies_inside_the_picture_with_the_asked_area_and_ratio(width: int, height: int) -> None:
    """Breaks when width and height are swapped, or when a cut sticks out."""
    crop = Crop(scale=(0.2, 0.6), ratio=(0.8, 1.25))
    for cut in cuts(crop, width=width, height=height):
        left, top, right, bottom = cut.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        slack = 2 / min(cut.width, cut.height)  # sides are whole pixels
        assert 0.2 * (1 - slack) <= cut.width * cut.height / (width * height) <= 0.6 * (1 + slack)
        assert 0.8 * (1 - slack) <= cut.width / cut.height <= 1.25 * (1 + slack)


def test_area_and_log_ratio_and_place_are_uniform_and_half_are_mirrored() -> None:
    """Breaks when the ratio is drawn on a linear scale, when corners are preferred, or flip ignores its share."""
    drawn = cuts(Crop(scale=(0.1, 0.3), ratio=(0.5, 2.0)), width=1000, height=1000, count=3000)
    area = np.array([c.width * c.height / 1e6 for c in drawn])
    ratio = np.log2([c.width / c.height for c in drawn])
    place = np.array([[c.left / (1000 - c.width), c.top / (1000 - c.height)] for c in drawn])
    assert np.quantile(area, [0.25, 0.5, 0.75]) == pytest.approx([0.15, 0.2, 0.25], abs=0.006)
    assert np.quantile(ratio, [0.25, 0.5, 0.75]) == pytest.approx([-0.5, 0, 0.5], abs=0.07)
    assert (
        pytest.approx([0.1, 0.5, 0.9] * np.ones((2, 3)), abs=0.04)
        == np.quantile(place, [0.1, 0.5, 0.9], axis=0).T
    )
    assert np.mean([c.flip for c in drawn]) == pytest.approx(0.5, abs=0.03)
    assert not any(c.flip for c in cuts(Crop(flip=0.0), width=50, height=50))
    assert all(c.flip for c in cuts(Crop(flip=1.0), width=50, height=50))


def test_every_place_up_to_the_last_pixel_is_used() -> None:
    """Breaks when the last column or row is never reached."""
    drawn = cuts(Crop(scale=(0.3, 0.5)), width=9, height=9)
    assert {c.left + c.width for c in drawn} >= {9} and {c.top for c in drawn} >= {0}
    assert {c.top + c.height for c in drawn} >= {9} and {c.left for c in drawn} >= {0}


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (1000, 10, (493, 0, 506, 10)),
        (10, 1000, (0, 493, 10, 506)),
        (1, 1, (0, 0, 1, 1)),
        (1, 400, (0, 199, 1, 200)),
    ],
)
def test_where_no_rectangle_fits_the_centre_is_taken(width: int, height: int, box: tuple[int, ...]) -> None:
    """Breaks when a strip or a single pixel yields an empty cut, or one that is not centred."""
    crop = Crop(scale=(0.9, 1.0), ratio=(0.75, 4 / 3))
    for cut in cuts(crop, width=width, height=height, count=20):
        assert cut.box == pytest.approx(box, abs=1)
        assert cut.width >= 1 and cut.height >= 1
        assert cut.left >= 0 and cut.left + cut.width <= width
        assert cut.top >= 0 and cut.top + cut.height <= height


def test_a_draw_is_a_function_of_its_generator() -> None:
    assert cuts(Crop(), width=77, height=55, count=9) == cuts(Crop(), width=77, height=55, count=9)
    assert len({c.box for c in cuts(Crop(), width=640, height=480, count=50)}) == 50


@pytest.mark.parametrize("layout", ["channels last", "planes"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "size"), [(120, 90, 32), (20, 31, 64), (1, 1, 32), (40, 1, 33)])
def test_a_cut_is_the_image_librarys_crop_and_resize(
    layout: str, interpolation: str, height: int, width: int, size: int
) -> None:
    """Breaks when antialiasing is off, when pixels outside the cut bleed in, or when memory layout matters."""
    picture = torch.randint(
        0, 256, (3, height + 5, width + 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    if layout == "channels last":
        picture = picture.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    crop = Crop(size=size, interpolation=interpolation)  # type: ignore[arg-type]
    seen = cut_view(picture, Cut(7, 4, width, height, False), crop)
    part = Image.fromarray(picture[:, 4 : 4 + height, 7 : 7 + width].permute(1, 2, 0).numpy())
    exact = np.asarray(part.resize((size, size), Image.Resampling[interpolation.upper()]))
    assert seen.dtype == torch.uint8 and seen.shape == (3, size, size)
    assert np.abs(seen.permute(1, 2, 0).numpy().astype(int) - exact).max() <= 1


def test_pixels_of_a_view_show_the_source_pixels_that_locate_names() -> None:
    """The real path, worker and device: breaks when crop, resize, flip and View.locate disagree by half a pixel."""
    height, width, size = 200, 256, 48
    x, y = torch.arange(256), torch.arange(200)[:, None]
    picture = torch.stack([x.expand(200, -1), y.expand(-1, 256), torch.zeros(200, 256, dtype=torch.long)]).to(
        torch.uint8
    )
    spec = ViewSpec(crop=Crop(size=size, scale=(0.2, 0.7)), photo=PLAIN)
    drawn = cuts(spec.crop, width=width, height=height, count=12)
    assert {c.flip for c in drawn} == {True, False}
    view = View(
        torch.stack([cut_view(picture, cut, spec.crop) for cut in drawn]),
        torch.tensor([cut.box for cut in drawn]).float(),
        torch.tensor([cut.flip for cut in drawn]),
    )
    seen = augment(view, draw_photo(torch.rand(12, NUMBERS), spec.photo), spec.photo)
    inner = torch.tensor([6, 17, 30, 41])
    boxes = torch.tensor([[x, y, x + 1, y + 1] for x, y in itertools.product(inner.tolist(), inner.tolist())])
    source = view.locate(boxes.float().expand(12, -1, -1))
    centre = (source[..., :2] + source[..., 2:]) / 2  # a pixel with value v has its centre at v + 0.5
    rows, columns = boxes[:, 1], boxes[:, 0]
    shown = seen.image[:, :2, rows, columns].transpose(1, 2) * 255 + 0.5
    assert (shown - centre).abs().max() < 0.75  # both sides of uint8's rounding
    assert (shown - centre).mean(dim=(0, 1)).abs().max() < 0.1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 0),
        ("scale", [0.5, 0.2]),
        ("scale", [0.0, 1.0]),
        ("ratio", [2.0, 0.5]),
        ("flip", 1.5),
        ("interpolation", "nearest"),
    ],
)
def test_settings_that_no_cut_can_meet_are_refused(key: str, value: object) -> None:
    """Breaks when nonsense is found only by the first worker, without the name of the setting."""
    with pytest.raises(SettingsError, match=rf"crop\.{key}"):
        read(ViewSpec, {"crop": {key: value}})
