"""Device-side augmentation, held image by image to torchvision's functional operations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as T

import pretend
from boxwise.data import blur
from boxwise.data.augment import NUMBERS, Photo, PhotoDraws, augment, draw_photo
from boxwise.geometry.views import View
from boxwise.strict import SettingsError, read

RAW = Photo(mean=(0, 0, 0), std=(1, 1, 1))
EVERY = replace(RAW, jitter=0.8, gray=0.3, blur=0.5, solarize=0.4, blur_kind="gauss23")
SIDE = 40


def noise(count: int, *, seed: int = 0) -> Tensor:
    return torch.rand(count, NUMBERS, generator=torch.Generator().manual_seed(seed))


def a_view(count: int, *, side: int = SIDE, seed: int = 5) -> View:
    """Smooth colours with some noise, half of the images mirrored."""
    dice = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.rand(count, 3, 5, 5, generator=dice), (side, side), mode="bicubic")
    rough = torch.rand(count, 3, side, side, generator=dice)
    image = ((smooth * 0.8 + rough * 0.2) * 255).clamp(0, 255).to(torch.uint8)
    image[0, :, :8, :8] = torch.tensor([255, 0, 140])[:, None, None]  # saturated
    image[0, :, :8, 8:16] = torch.tensor([0, 90, 0])[:, None, None]
    image[0, :, 8:16, :8] = 77  # without hue
    crop = torch.tensor([0.0, 0.0, 10.0, 10.0]).expand(count, 4)
    return View(image, crop, torch.arange(count) % 2 == 1)


def by_torchvision(image: Tensor, flip: bool, draws: PhotoDraws, n: int, photo: Photo) -> Tensor:
    """One uint8 image through torchvision's operations on floats, in the drawn order."""
    x = image.float() / 255
    x = T.horizontal_flip(x) if flip else x
    factor = draws.factors[n].tolist()
    jitter = [T.adjust_brightness, T.adjust_contrast, T.adjust_saturation, T.adjust_hue]
    for name in photo.order:
        if name == "jitter" and draws.jitter[n]:
            for i in draws.order[n].tolist():
                x = jitter[i](x, factor[i])
        elif name == "gray" and draws.gray[n]:
            x = T.rgb_to_grayscale(x, num_output_channels=3)
        elif name == "blur" and draws.blur[n]:
            x = T.gaussian_blur(x, [23, 23], [float(draws.strength[n])] * 2)
        elif name == "solarize" and draws.solarize[n]:
            x = T.solarize(x, 128 / 255)
    return T.normalize(x, [*photo.mean], [*photo.std])


@pytest.mark.parametrize("order", [("jitter", "gray", "blur", "solarize"), ("blur", "solarize", "jitter")])
def test_each_image_is_torchvisions_with_its_own_draws(order: tuple[str, ...]) -> None:
    """Breaks when images share a factor, an order or a mask, or an operation differs from torchvision's."""
    photo = replace(EVERY, order=order, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25))  # type: ignore[arg-type]
    view, draws = a_view(32), draw_photo(noise(32), photo)
    assert len({tuple(o) for o in draws.order.tolist()}) > 12  # the test sees many orders
    seen = augment(view, draws, photo)
    for n in range(32):
        expected = by_torchvision(view.image[n], bool(view.flip[n]), draws, n, photo)
        apart = (seen.image[n] - expected).abs()
        assert apart.quantile(0.999) < 1e-4, n
        assert apart.max() < 5e-3, n  # hue next to grey


def test_a_batch_as_one_equals_image_after_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU, run here: breaks when rows are mixed up where only some images take part."""
    photo = replace(EVERY, blur_kind="pil")
    view, draws = a_view(12), draw_photo(noise(12), photo)
    one_by_one = augment(view, draws, photo).image

    monkeypatch.setattr("boxwise.data.augment._at_once", lambda device, count: count)
    together = augment(view, draws, photo).image
    assert (one_by_one - together).abs().max() < 1e-5


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("kind", ["pil", "gauss23", "resize"])
def test_draws_go_to_the_device_without_waiting(kind: str, within: bool) -> None:
    """Breaks when a draw, a constant or a list of rows is copied so that the host waits."""
    photo = replace(EVERY, blur_kind=kind)  # type: ignore[arg-type]
    draws, boxes = draw_photo(noise(16), photo), torch.tensor([2.0, 3.0, 30.0, 33.0]).expand(16, 4)
    with pretend.cuda() as waits:
        view, inside = a_view(16).to("cuda"), boxes.to("cuda", non_blocking=True)
        seen = augment(view, draws, photo, within=inside if within else None)
        assert seen.image.device.type == "cuda" and waits.seen == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", ["pil", "gauss23", "resize"])
def test_a_gpu_makes_the_same_views_and_waits_for_nothing(kind: str) -> None:
    """Breaks when a draw is read back from the device, or an operation differs there."""
    photo = replace(EVERY, blur_kind=kind, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25))  # type: ignore[arg-type]
    view, draws = a_view(16), draw_photo(noise(16), photo)
    here, there = augment(view, draws, photo).image, view.to("cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        seen = augment(there, draws, photo).image
    finally:
        torch.cuda.set_sync_debug_mode("default")
    apart = (seen.cpu() - here).abs()
    assert apart.quantile(0.99) < 1e-3 and apart.mean() < 1e-3


def test_an_image_comes_out_the_same_in_every_batch() -> None:
    """Breaks resuming, ranks and accumulation: the last bit must not depend on the neighbours."""
    photo = replace(EVERY, blur_kind="pil")
    view, draws = a_view(9), draw_photo(noise(9), photo)
    whole = augment(view, draws, photo).image
    for start, stop in ((0, 1), (1, 4), (4, 9)):
        part = View(view.image[start:stop], view.crop[start:stop], view.flip[start:stop])
        assert torch.equal(augment(part, draws[start:stop], photo).image, whole[start:stop])


def test_only_pixels_change_and_the_input_stays() -> None:
    """Breaks when augmentation writes into the uint8 view, or drops its geometry."""
    view = a_view(4)
    before = view.image.clone()
    seen = augment(view, draw_photo(noise(4), EVERY), EVERY)
    assert torch.equal(view.image, before)
    assert torch.equal(seen.crop, view.crop) and torch.equal(seen.flip, view.flip)
    assert seen.image.dtype == torch.float32


def test_without_operations_a_view_is_its_bytes_mirrored_and_normalised() -> None:
    photo = replace(Photo(), jitter=0, gray=0, blur=0)
    view = a_view(6)
    seen = augment(view, draw_photo(noise(6), photo), photo).image
    mean, std = (torch.tensor(v)[:, None, None] for v in (photo.mean, photo.std))
    straight = (view.image.float() / 255 - mean) / std
    assert (seen[0::2] - straight[0::2]).abs().max() < 1e-6
    assert (seen[1::2] - straight[1::2].flip(-1)).abs().max() < 1e-6


def test_solarise_inverts_from_128_up() -> None:
    """Breaks when the threshold is off by one, or lost to a division that rounds."""
    photo = replace(RAW, jitter=0, gray=0, blur=0, solarize=1.0)
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    view = View(levels, torch.tensor([[0.0, 0.0, 16.0, 16.0]]), torch.tensor([False]))
    seen = (augment(view, draw_photo(noise(1), photo), photo).image[0, 0] * 255).round().flatten()
    assert torch.equal(seen, torch.cat([torch.arange(128), torch.arange(127, -1, -1)]).float())


def test_draws_follow_their_settings() -> None:
    """Breaks when a share is inverted, a range is off, or an order is preferred."""
    photo = replace(Photo(), brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1, solarize=0.15)
    draws = draw_photo(noise(20000), photo)
    for drawn, share in ((draws.jitter, 0.8), (draws.gray, 0.2), (draws.blur, 0.5), (draws.solarize, 0.15)):
        assert drawn.float().mean().item() == pytest.approx(share, abs=0.012)
    low, high = draws.factors.amin(dim=0).tolist(), draws.factors.amax(dim=0).tolist()
    assert low == pytest.approx([0.6, 0.0, 0.8, -0.1], abs=1e-3)  # a factor below 0 would be a negative
    assert high == pytest.approx([1.4, 2.5, 1.2, 0.1], abs=1e-3)
    assert (draws.strength.min().item(), draws.strength.max().item()) == pytest.approx((0.1, 2.0), abs=1e-3)
    orders, counts = draws.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24 and counts.min() > 700  # 833 expected
    assert (orders.sort(dim=1).values == torch.arange(4)).all()
    shrinks = draw_photo(noise(3000), replace(photo, blur_kind="resize")).strength
    values, counts = shrinks.unique(return_counts=True)
    assert values.tolist() == pytest.approx([1.1, 1.2, 1.5]) and counts.min() > 900


def test_one_setting_leaves_all_other_draws_as_they_were() -> None:
    """Breaks when draws are taken one after another from a stream."""
    first, second = (draw_photo(noise(50), replace(Photo(), gray=gray)) for gray in (0.0, 1.0))
    assert not first.gray.any() and second.gray.all()
    assert torch.equal(first.factors, second.factors) and torch.equal(first.strength, second.strength)
    assert torch.equal(first.order, second.order) and torch.equal(first.blur, second.blur)


@pytest.mark.parametrize(("height", "width"), [(33, 57), (5, 21)])
def test_blur_by_radius_equals_the_image_library(height: int, width: int) -> None:
    """Bit for bit, where sums lie half-way between levels too; breaks for batches whose kernels differ in length."""
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.4, 1.5, 2.0, 3.3, 5.0])
    levels = torch.randint(0, 256, (8, 3, height, width), generator=torch.Generator().manual_seed(2))
    image = levels.float() / 255
    blur.pil_(image, sigma)
    for n, radius in enumerate(sigma.tolist()):
        picture = Image.fromarray(levels[n].permute(1, 2, 0).to(torch.uint8).numpy())
        exact = np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)))
        assert np.array_equal((image[n] * 255).round().permute(1, 2, 0).numpy(), exact), radius


@pytest.mark.parametrize("shrink", blur.SHRINKS)
def test_resize_blur_is_the_image_librarys_two_resizes(shrink: float) -> None:
    levels = torch.randint(0, 256, (2, 3, 37, 50), generator=torch.Generator().manual_seed(3))
    image = levels.float() / 255
    blur.resize_(image, shrink)
    for n in range(2):
        picture = Image.fromarray(levels[n].permute(1, 2, 0).to(torch.uint8).numpy())
        small = picture.resize((int(50 / shrink), int(37 / shrink)), Image.Resampling.BICUBIC)
        exact = np.asarray(small.resize((50, 37), Image.Resampling.BICUBIC)).astype(float)
        apart = np.abs((image[n] * 255).permute(1, 2, 0).numpy() - exact)
        assert apart.max() < 1.01 and apart.mean() < 0.01  # a sum on the edge between two levels


@pytest.mark.parametrize("side", [12, 32, 33, 131])
def test_gaussian_of_23_taps_is_torchvisions_at_every_size(side: int) -> None:
    """Breaks when a tile of the banded product misses part of its kernel, or a mirrored edge is off by one."""
    image = torch.rand(3, 3, side, side + 17, generator=torch.Generator().manual_seed(4))
    sigma = torch.tensor([0.1, 1.3, 6.0])
    expected = torch.stack([T.gaussian_blur(x, [23, 23], [s, s]) for x, s in zip(image, sigma.tolist())])
    blur.gauss23_(image, sigma)
    assert (image - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("jitter", 1.2),
        ("hue", 0.6),
        ("brightness", -0.1),
        ("sigma", [2.0, 0.1]),
        ("order", ["blur", "sharpen"]),
        ("blur_kind", "box"),
    ],
)
def test_settings_without_meaning_are_refused(key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=key):
        read(Photo, {key: value})
