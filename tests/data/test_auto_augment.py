"""AutoAugment's rules, held to torchvision's, and their place in the pipeline."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import AutoAugment
from torchvision.transforms import InterpolationMode as Mode
from torchvision.transforms.autoaugment import _apply_op

from boxwise.data.auto_augment import NUMBERS, RULES, STRENGTHS, auto_augmented, changed
from boxwise.data.cut import Crop, ViewSpec
from boxwise.data.loader import feed
from boxwise.data.sources import open_images
from boxwise.recipes import pretrain
from boxwise.recipes.detco import detco_r50_200ep, detco_r50_200ep_aa
from boxwise.strict import SettingsError

NAMES = {
    "shear": "ShearX",
    "rotate": "Rotate",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
}
PICTURE = torch.randint(0, 200, (3, 20, 24), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_rules_are_the_published_ones() -> None:
    """Breaks when a probability, a strength or a rule is mistyped."""
    theirs = [[(name, p, s or 0) for name, p, s in rule] for rule in AutoAugment().policies]
    ours = [[(NAMES[name], p, s) for name, p, s in rule] for rule in RULES]
    assert Counter(map(str, ours)) == Counter(map(str, theirs))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("name", "strength"), sorted({(n, s) for rule in RULES for n, _, s in rule}))
def test_operations_are_torchvisions(name: str, strength: int, sign: int) -> None:
    """Breaks when a strength means another amount, or a sign is ignored."""
    space = AutoAugment()._augmentation_space(STRENGTHS, (20, 24))
    magnitudes, signed = space[NAMES[name]]
    amount = float(magnitudes[strength]) if magnitudes.ndim else 0.0
    want = _apply_op(PICTURE, NAMES[name], sign * amount if signed else amount, Mode.NEAREST, [0.0] * 3)
    got = changed(PICTURE, name, strength, sign=sign)
    assert got.dtype == torch.uint8 and (got.int() - want.int()).abs().max() <= 1


class Numbers(np.random.Generator):
    """A generator that says what it is told to."""

    def __init__(self, *numbers: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.numbers = numbers

    def random(self, count: int) -> np.ndarray:
        assert count == NUMBERS
        return np.array(self.numbers)


def test_one_rule_is_drawn_and_its_steps_each_on_their_own() -> None:
    """Breaks when a rule cannot be drawn, a step's share is turned round, or its sign is another's."""
    number = RULES.index((("rotate", 0.8, 8), ("color", 0.4, 0)))
    at = (number + 0.5) / len(RULES)

    def drawn(*noise: float) -> torch.Tensor:
        return auto_augmented(PICTURE, Numbers(at, *noise))

    assert torch.equal(drawn(0.8, 0.0, 0.4, 0.0), PICTURE)
    left, right = (changed(PICTURE, "rotate", 8, sign=sign) for sign in (-1, 1))
    assert not torch.equal(left, right)
    assert torch.equal(drawn(0.79, 0.49, 0.9, 0.9), left) and torch.equal(drawn(0.79, 0.5, 0.9, 0.1), right)
    first, last = Numbers(0.0, 0.9, 0, 0.59, 0), Numbers(1 - 1e-9, 0.1, 0, 0.9, 0)
    assert torch.equal(auto_augmented(PICTURE, first), changed(PICTURE, "rotate", 9, sign=-1))
    assert torch.equal(auto_augmented(PICTURE, last), changed(PICTURE, "equalize", 0, sign=-1))


def test_only_methods_without_boxes_may_have_it() -> None:
    """Breaks when content is turned under boxes that stay where they were."""
    assert all(view.auto_augment for view in detco_r50_200ep_aa().views)
    assert not any(view.auto_augment for view in detco_r50_200ep().views)
    assert detco_r50_200ep_aa().changed().name == "detco_r50_200ep_aa"
    for recipe in (pretrain.mocov2_r50_200ep(), pretrain.byol_r50_300ep()):
        recipe.changed({"views.0.auto_augment": True})
    for name in ("scrl", "resim", "soco", "insloc"):
        with pytest.raises(SettingsError, match=r"views\.1\.auto_augment"):
            pretrain.METHODS[name]().changed({"views.1.auto_augment": True})


def test_it_leaves_every_other_draw_as_it_was(tmp_path: Path) -> None:
    """Breaks when switching it on moves a crop: its numbers come after those of the view's cut."""
    for n in range(4):
        noise = np.random.default_rng(n).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{n}.png")
    images, plain = open_images(tmp_path), ViewSpec(crop=Crop(size=32))
    views = []
    for spec in (plain, replace(plain, auto_augment=True)):
        loads = feed(images, (spec,), {}, batch_size=4, seed=0, start=0, total=1, workers=0)
        views.append(next(iter(loads)).batch.views[0])
    assert torch.equal(views[0].crop, views[1].crop) and torch.equal(views[0].flip, views[1].flip)
    assert not torch.equal(views[0].image, views[1].image)
