"""Runs of SoCo with a file of proposals, without one, and with the wrong one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import facts, photos, rows, settings

from boxwise.data.proposals import Proposals
from boxwise.data.sources import open_images
from boxwise.recipes.soco import ablation
from boxwise.run.objects import OnTheSpot, run_proposals, shown_proposals
from boxwise.run.pretrain import pretrain
from boxwise.run.proposals import chosen, proposals
from boxwise.run.show import show


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("images"), 8, size=96)


def test_without_a_file_one_is_made_first_and_used_again(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a run asks for a file, makes boxes in silence, or searches again for the next run."""
    pretrain("soco", images, tmp_path / "one", settings=settings("soco"))
    (made,) = tmp_path.glob("proposals-selective-search-*.safetensors")
    assert f"making {made}" in capsys.readouterr().err
    stamp = made.stat().st_mtime_ns
    pretrain("soco", images, tmp_path / "two", settings=settings("soco"))
    assert made.stat().st_mtime_ns == stamp and "making" not in capsys.readouterr().err
    assert facts(tmp_path / "one")["data"]["proposals"]["name"] == "selective-search"
    pretrain("soco", images, tmp_path / "three", proposals=made, settings=settings("soco"))
    first, third = ([row["train/loss"] for row in rows(tmp_path / run)] for run in ("one", "three"))
    assert first == third


def test_boxes_of_a_run_are_part_of_what_it_is(images: Path, tmp_path: Path) -> None:
    """Breaks when a run goes on with other boxes than it began with, or random boxes are the searched ones."""
    flags = settings("soco", **{"method.objects.proposals": "random"})
    pretrain("soco", images, tmp_path / "run", settings=flags)
    assert facts(tmp_path / "run")["data"]["proposals"]["name"] == "random"
    searched = proposals(images, tmp_path / "searched.safetensors", workers=0)
    with pytest.raises(ValueError, match="proposals"):
        pretrain("soco", images, tmp_path / "run", proposals=searched, resume=True, settings=flags)


def test_a_file_of_other_images_or_for_another_method_is_refused(images: Path, tmp_path: Path) -> None:
    """Breaks when boxes of one set are laid over another, or a flag is dropped in silence."""
    others = photos(tmp_path / "others", 4)
    file = proposals(others, tmp_path / "others.safetensors", method="grid", workers=0)
    with pytest.raises(ValueError, match="no proposals for 4 of 8 images"):
        pretrain("soco", images, tmp_path / "run", proposals=file, settings=settings("soco"))
    with pytest.raises(ValueError, match="scrl compares no proposed boxes"):
        pretrain("scrl", others, tmp_path / "run", proposals=file, settings=settings("scrl"))
    assert not (tmp_path / "run").exists()


def test_the_whole_image_needs_no_file(images: Path, tmp_path: Path) -> None:
    """Breaks when the ablation without boxes searches for some."""
    source, recipe = open_images(images), ablation("whole image")
    boxes = run_proposals(recipe, source, tmp_path / "run", None)
    assert boxes is not None and len(boxes.boxes(0)) == 0 and not list(tmp_path.iterdir())
    assert len(shown_proposals(recipe, source, None).boxes(3)) == 0


def test_a_look_makes_the_boxes_of_its_images_alone(images: Path, tmp_path: Path) -> None:
    """Breaks when `show` needs a file, writes one, or shows other boxes than a run would have."""
    show("soco", images, tmp_path / "views.png", settings=settings("soco"), count=2)
    assert [p.name for p in tmp_path.iterdir()] == ["views.png"]
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.size == (64 + 6 + 64 + 6 + 32 + 6, 2 * (64 + 6))
    source = open_images(images)
    file = proposals(images, tmp_path / "boxes.safetensors", workers=0)
    made, spot = Proposals.open(file, source), OnTheSpot(source, chosen("selective-search"))
    assert any(len(made.boxes(i)) for i in range(8))
    for i in range(8):
        np.testing.assert_array_equal(made.boxes(i), spot.boxes(i))
    show("soco", images, tmp_path / "same.png", settings=settings("soco"), proposals=file, count=2)
    with Image.open(tmp_path / "views.png") as one, Image.open(tmp_path / "same.png") as other:
        assert torch.equal(*(torch.from_numpy(np.array(p)) for p in (one, other)))
