"""Photometric operations and chains of them, against torchvision's on floats and the image library's on bytes.

How far the device's floats are from the image library's integers, measured on the golden picture (noise, so nearly
the worst case) in grey levels, largest and mean: brightness 1.0 and 0.5, contrast 1.0 and 0.5, saturation 1.2 and
0.5 (the library cuts fractions off), gray 0.5 and 0.2, solarise 0, hue 13 and 0.9 (the library keeps hue and
saturation in 8 bits each), blur by radius 0 (it is the library's to the last bit), resize blur 1 and 0.0004. The four
chains, of six or seven operations each: 8 and 1.4, 2 and 1.1, 12 and 1.7, 6 and 1.0.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from boxwise.data import blur, colour
from boxwise.data.augment import Photo, PhotoDraws, augment
from boxwise.geometry.views import View

JITTER = ("brightness", "contrast", "saturation", "hue")


def picture(arrays: dict[str, np.ndarray]) -> Tensor:
    return torch.from_numpy(arrays["image"])[None].float() / 255


def strength(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float32)


def apart(seen: Tensor, array: np.ndarray) -> Tensor:
    """Differences per number; of levels where the array holds levels."""
    wanted = torch.from_numpy(array)
    return (seen[0] * (255 if wanted.dtype == torch.uint8 else 1) - wanted.float()).abs()


def cases(arrays: dict[str, np.ndarray], name: str, kind: str) -> list[tuple[int, np.ndarray]]:
    """(i, array) of every array `name`_i_`kind`."""
    found = [(i, arrays.get(f"{name}_{i}_{kind}")) for i in range(64)]
    return [(i, array) for i, array in found if array is not None]


@pytest.mark.parametrize("name", JITTER)
def test_jitter(golden, name: str) -> None:
    """Breaks when contrast blends with another mean, luma has other weights, or a hue turns the other way."""
    arrays = golden("common_image_ops")
    factors = arrays["hues" if name == "hue" else "factors"]

    def changed(i: int) -> Tensor:
        image = picture(arrays)
        getattr(colour, f"{name}_")(image, strength(float(factors[i])).reshape(1, 1, 1, 1))
        return image

    assert cases(arrays, name, "float") and cases(arrays, name, "u8")
    for i, array in cases(arrays, name, "float"):
        far = apart(changed(i), array)
        assert (far > 1e-4).float().mean() <= (1e-3 if name == "hue" else 0), i
    for i, array in cases(arrays, name, "u8"):
        assert apart(changed(i), array).max() < 1.5, i
    for i, array in cases(arrays, name, "pil"):
        far = apart(changed(i), array)
        assert far.mean() < (2 if name == "hue" else 1), i
        assert far.quantile(0.99) < (20 if name == "hue" else 1.5), i


def test_gray(golden) -> None:
    arrays = golden("common_image_ops")
    image = picture(arrays)
    colour.gray_(image)
    assert apart(image, arrays["gray_float"]).max() < 1e-4
    assert apart(image, arrays["gray_u8"]).max() < 1.01  # fractions cut off
    assert apart(image, arrays["gray_pil"]).max() < 1.01


def test_solarise(golden) -> None:
    arrays = golden("common_image_ops")
    image = picture(arrays)
    colour.solarize_(image)
    assert apart(image, arrays["solarize_pil"]).max() < 1e-3


def test_blur_by_radius(golden) -> None:
    """Breaks when passes are not rounded, sums half-way go up, or edges are mirrored."""
    arrays = golden("common_image_ops")
    for i, sigma in enumerate(arrays["sigmas"].tolist()):
        image = picture(arrays)
        blur.pil_(image, strength(sigma))
        assert apart(image, arrays[f"blur_{i}_pil"]).max() < 1.01, sigma


def test_gaussian_of_23_taps(golden) -> None:
    arrays = golden("common_image_ops")
    for i, sigma in enumerate(arrays["sigmas"].tolist()):
        image = picture(arrays)
        blur.gauss23_(image, strength(sigma))
        assert apart(image, arrays[f"blur_{i}_gauss23"]).max() < 1e-4, sigma


def test_blurs_of_a_batch(golden) -> None:
    """All strengths at once; breaks when images of a batch share a kernel."""
    arrays = golden("common_image_ops")
    sigmas = torch.from_numpy(arrays["sigmas"]).float()
    for kind, name, near in ((blur.pil_, "pil", 1.01), (blur.gauss23_, "gauss23", 1e-4)):
        images = picture(arrays).repeat(len(sigmas), 1, 1, 1)
        kind(images, sigmas)
        for i in range(len(sigmas)):
            assert apart(images[i : i + 1], arrays[f"blur_{i}_{name}"]).max() < near, (name, i)


def test_resize_blur(golden) -> None:
    arrays = golden("common_image_ops")
    for i, shrink in enumerate(blur.SHRINKS):
        image = picture(arrays)
        blur.resize_(image, shrink)
        assert apart(image, arrays[f"resize_blur_{i}_pil"]).max() < 1.01, shrink


def chain(arrays: dict[str, np.ndarray], i: int, photo: Photo) -> Tensor:
    """The view that `augment` makes with chain i's numbers."""
    numbers = torch.from_numpy(arrays[f"chain{i}_params"]).float()
    last, yes = bool(numbers[10]), torch.tensor([True])
    draws = PhotoDraws(
        jitter=yes,
        factors=numbers[None, 4:8],
        order=numbers[None, :4].long(),
        gray=numbers[None, 8] > 0,
        blur=yes,
        strength=numbers[None, 9],
        solarize=torch.tensor([last and i == 2]),
    )
    side = arrays["image"].shape[-1]
    flip = torch.tensor([last and i in (0, 1)])
    view = View(torch.from_numpy(arrays["image"])[None], torch.tensor([[0.0, 0.0, side, side]]), flip)
    return augment(view, draws, photo).image


ORDER = {i: ("jitter", "gray", "blur", "solarize") for i in range(3)} | {3: ("blur", "jitter", "gray")}


@pytest.mark.parametrize("i", range(4))
def test_chain_on_floats(golden, i: int) -> None:
    """Breaks when an operation stands at another place, or the jitter is not in its drawn order."""
    arrays = golden("common_image_ops")
    photo = Photo(blur_kind="gauss23", order=ORDER[i], mean=(0, 0, 0), std=(1, 1, 1))
    far = apart(chain(arrays, i, photo), arrays[f"chain{i}_float"])
    assert (far > 1e-4).float().mean() <= 1e-3


@pytest.mark.parametrize("i", range(4))
def test_chain_of_the_image_library(golden, i: int) -> None:
    """The stated distance; breaks when an operation is left out, or the normalisation is not ImageNet's."""
    arrays = golden("common_image_ops")
    raw = Photo(blur_kind="pil", order=ORDER[i], mean=(0, 0, 0), std=(1, 1, 1))
    far = apart(chain(arrays, i, raw), arrays[f"chain{i}_pil"])
    assert far.mean() < 3 and far.quantile(0.99) < 16
    normal = Photo(blur_kind="pil", order=ORDER[i])
    std = torch.tensor(normal.std)[:, None, None]
    levels = apart(chain(arrays, i, normal), arrays[f"chain{i}_normalised"]) * std * 255
    assert torch.allclose(levels, far, atol=1e-3)
