"""The starts of a comparison: their names, the shape they share, and torchvision's weights from the user's cache."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from tiny import DETECTOR

from boxwise.data.targets import open_labelled
from boxwise.interop.files import save_weights, write_state
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.recipes.recipe import TransferRecipe
from boxwise.run.compare_arms import Arm, arm_names, hub_file, open_arms, refuse_misfits
from boxwise.run.compare_plan import Cell, Share
from boxwise.run.compare_results import collect
from boxwise.run.find import transfer_recipe
from boxwise.run.scenes import scenes
from boxwise.strict import SettingsError, plain

SMALL = {key: value for key, value in DETECTOR.items() if key != "backbone" and "fpn" not in key}


def recipe(**settings: Any) -> tuple[TransferRecipe, frozenset[str]]:
    found = transfer_recipe("faster_rcnn_fpn", settings=SMALL | settings)
    return found.recipe, found.given


def saved(folder: Path, *, backbone: str = "test_resnet", fpn: int | None = None, **card: Any) -> Path:
    """An export folder as pretraining leaves it."""
    config = EncoderConfig(backbone=backbone, zero_init_last=False)
    if fpn is not None:
        config = EncoderConfig(backbone=backbone, zero_init_last=False, fpn=True, fpn_channels=fpn)
    encoder = build_encoder(config)
    modules = {"backbone": encoder.body} | ({} if fpn is None else {"fpn": encoder.fpn})
    save_weights(folder / "export", modules, {"encoder": plain(config), **card})
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own, empty; and no way out of this machine."""

    def refused(*_: object) -> None:
        raise AssertionError("something was to be fetched")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(socket.socket, "connect", refused)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["random", "runs/scrl", "runs/soco/"], ["random", "scrl", "soco"]),
        (["torchvision", "runs/scrl/export"], ["torchvision", "scrl"]),
        (["a/scrl", "b/scrl"], ["a-scrl", "b-scrl"]),
        (["random", "./random"], None),
        (["runs/Scrl", "old/scrl"], ["runs-Scrl", "old-scrl"]),
        (["random", "my run/det 1"], ["random", "det_1"]),
    ],
)
def test_names_are_short_and_tell_arms_apart(words: list[str], names: list[str] | None) -> None:
    """Breaks when two arms share a folder, on disks that know no case too, or every arm is called export."""
    found = arm_names(words)
    assert len({name.lower() for name in found}) == len(words)
    assert names is None or found == names


def test_a_file_is_called_by_its_stem(tmp_path: Path) -> None:
    """Breaks when an ending gets into the names of folders, or a weights file hides whose it is."""
    for name in ("resnet50.pth", "mine/export/model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = arm_names([str(tmp_path / "resnet50.pth"), str(tmp_path / "mine/export/model.safetensors")])
    assert found == ["resnet50", "mine"]


def test_all_arms_take_the_shape_that_one_of_them_states(tmp_path: Path) -> None:
    """Breaks when the random arm keeps the recipe's backbone, or weights without an FPN decide on its width."""
    narrow, bare = saved(tmp_path / "narrow", fpn=24, mean=[0.1, 0.2, 0.3]), saved(tmp_path / "bare")
    arms, shared = open_arms(["random", bare, narrow], *recipe())
    detector = plain(shared.detector)
    assert (detector["backbone"], detector["fpn_channels"]) == ("test_resnet", 24)
    assert [arm.name for arm in arms] == ["random", "bare", "narrow"]
    assert [arm.mean for arm in arms] == [(0.485, 0.456, 0.406)] * 2 + [(0.1, 0.2, 0.3)]
    assert refuse_misfits(arms, shared, classes=2) == {
        "random": [],
        "bare": ["backbone"],
        "narrow": ["backbone", "fpn"],
    }
    assert len({arm.digest for arm in arms}) == 3


def test_two_shapes_are_refused_in_one_sentence(tmp_path: Path) -> None:
    """Breaks when the last arm's shape is forced upon the first, in whichever order they stand."""
    one, other = saved(tmp_path / "one", fpn=24), saved(tmp_path / "other", fpn=16)
    for init in ([one, other], [other, one]):
        with pytest.raises(ValueError, match=r"detector.fpn_channels is (24|16) in .*(one|other)") as error:
            open_arms(init, *recipe())
        assert str(error.value).count("\n") == 0 and "compare weights of one shape" in str(error.value)
    big = saved(tmp_path / "big", backbone="resnet18")
    with pytest.raises(ValueError, match=r"detector.backbone is \w+ in"):
        open_arms([one, big], *recipe())
    with pytest.raises(SettingsError, match="fpn_channels: 32 was asked for"):
        open_arms(["random", one], *recipe(**{"detector.fpn_channels": 32}))


def test_a_bare_file_of_another_backbone_is_refused_before_training(tmp_path: Path) -> None:
    """Breaks when a file that states no shape is only found out in its own run, hours later."""
    write_state(tmp_path / "bare", torchvision.models.resnet18(weights=None).state_dict(), {})
    (tmp_path / "bare" / "config.json").unlink()
    arms, shared = open_arms(["random", tmp_path / "bare"], *recipe(backbone="test_resnet"))
    with pytest.raises(ValueError, match="backbone of these weights cannot fill the detector") as error:
        refuse_misfits(arms, shared, classes=2)
    assert "test_resnet" in str(error.value) and "\n" not in str(error.value)


def test_torchvisions_weights_come_from_the_users_cache(cache: Path) -> None:
    """Breaks when another backbone's file is taken, a tensor is lost, or anything is fetched."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, cache / "resnet18-f37072fd.pth")
    torch.save({}, cache / "wide_resnet18-0000.pth")
    arms, shared = open_arms(["torchvision", "random"], *recipe(backbone="resnet18"))
    assert arms[0].name == "torchvision" and arms[0].weights is not None
    assert torch.equal(arms[0].weights.state["backbone.body.conv1.weight"], state["conv1.weight"])
    assert refuse_misfits(arms, shared, classes=2)["torchvision"] == ["backbone"]


def test_an_empty_cache_is_told_with_the_mend(cache: Path) -> None:
    """Breaks when weights are fetched unasked, or the user is not told how to get them."""
    with pytest.raises(ValueError, match=r"no resnet50-\*.pth in .*nothing is fetched") as error:
        open_arms(["random", "torchvision"], *recipe())
    assert 'torchvision.models.resnet50(weights="IMAGENET1K_V1")' in str(error.value)
    with pytest.raises(ValueError, match="name a file of this backbone's weights"):
        hub_file("test_resnet")


def test_two_files_of_one_backbone_are_for_the_user_to_choose(cache: Path) -> None:
    """Breaks when one of torchvision's two trainings is taken without a word."""
    for name in ("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"):
        (cache / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 files could be meant.*0676ba61.*11ad3fa6"):
        hub_file("resnet50")


class Trap:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


def test_code_in_a_cached_file_is_not_run(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when the cache is trusted: anyone may have put a file there."""
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Trap()}, cache / "resnet18-f37072fd.pth")
    with pytest.raises(ValueError, match="a pickle may run code"):
        open_arms(["random", "torchvision"], *recipe(backbone="resnet18"))
    assert not (tmp_path / "sprung").exists()


def test_pixels_are_judged_by_mean_iou_before_any_run_is_measured(tmp_path: Path) -> None:
    """Breaks when a comparison of pixels whose runs all diverged says that AP was not measured."""
    data = scenes(tmp_path / "scenes", count=2, val=1, size=64)
    train = open_labelled(data, split="train")
    for name, judged in (("fcn16s", "mIoU"), ("faster_rcnn_fpn", "AP")):
        share = Share("1.0", {0: train}, transfer_recipe(name).recipe)
        planned = [Cell(Arm(arm), share, 0, tmp_path / name / arm) for arm in ("random", "scrl")]
        results = collect(planned)
        assert results["metrics"] == [judged] and results["verdicts"][0]["metric"] == judged
