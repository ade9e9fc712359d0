import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from boxwise.interop.files import find_model, load_weights, read_card, save_weights, write_state
from boxwise.interop.keys import WeightsError
from small_files import small_files


def body(name: str = "resnet18") -> nn.Module:
    """A torchvision trunk whose norms hold numbers of their own, so that a lost statistic shows."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)(weights=None)
    del net.fc
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            module.num_batches_tracked += 7
    return net


def fresh() -> nn.Module:
    torch.manual_seed(99)
    net = torchvision.models.resnet18(weights=None)
    del net.fc
    return net


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())


def small_modules() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "backbone": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        "fpn": nn.Conv2d(4, 4, 1),
        "head": nn.Linear(4, 2),
    }


def test_round_trip_keeps_every_number_and_the_card(tmp_path: Path) -> None:
    source = small_modules()
    source["backbone"].to(memory_format=torch.channels_last)
    folder = save_weights(tmp_path / "run" / "export", source, {"mean": [0.1, 0.2, 0.3], "method": "scrl"})
    assert folder == tmp_path / "run" / "export"
    for path in (folder, folder.parent, folder / "model.safetensors"):
        weights = load_weights(path)
        assert weights.parts == ("backbone", "fpn", "head")
        assert weights.config["method"] == "scrl" and weights.mean == (0.1, 0.2, 0.3)
        assert weights.std == (0.229, 0.224, 0.225)
        target = {n: m for n, m in small_modules().items()}
        for module in target.values():
            for tensor in module.state_dict().values():
                tensor.zero_()
        weights.into(target).require()
        assert all(equal(target[n], source[n]) for n in source)


def test_a_torchvision_detector_loads_the_file_without_us(tmp_path: Path) -> None:
    """Names must be torchvision's own, or the export is ours alone."""
    theirs = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=2)
    parts = {"backbone": theirs.backbone.body, "fpn": theirs.backbone.fpn, "head": theirs.roi_heads.box_head}
    save_weights(tmp_path, parts, {})
    rest = theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert rest.unexpected_keys == []
    assert {n.split(".")[0] + "." + n.split(".")[1] for n in rest.missing_keys} == {
        "rpn.head",
        "roi_heads.box_predictor",
    }


def test_torchvisions_classifier_arrives_without_its_last_layer(tmp_path: Path) -> None:
    whole = torchvision.models.resnet18(weights=None)
    torch.save(whole.state_dict(), tmp_path / "resnet18.pth")
    weights, target = load_weights(tmp_path / "resnet18.pth"), fresh()
    report = weights.into({"backbone": target})
    report.require(["backbone"])
    assert report.share == 1 and weights.config == {} and weights.parts == ("backbone",)
    assert torch.equal(target.layer4[1].conv2.weight, whole.layer4[1].conv2.weight)


def test_torchvisions_detector_gives_its_three_parts(tmp_path: Path) -> None:
    """A whole Faster R-CNN also holds an RPN and a predictor, which belong to its own classes."""
    theirs = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=2)
    torch.save(theirs.state_dict(), tmp_path / "detector.pth")
    weights = load_weights(tmp_path / "detector.pth")
    assert weights.parts == ("backbone", "fpn", "head")
    assert not any("rpn" in n or "predictor" in n for n in weights.state)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "mobilenetv3_small_050"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_classifiers_fill_their_feature_twins(tmp_path: Path, name: str, suffix: str) -> None:
    """timm names the same module stages.0 in a classifier and stages_0 in the twin that gives maps."""
    torch.manual_seed(0)
    whole = timm.create_model(name, pretrained=False)
    twin = timm.create_model(name, pretrained=False, features_only=True)
    file = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(whole.state_dict(), file)
    else:
        save_file(whole.state_dict(), file)
    load_weights(file).into({"backbone": twin}).require(["backbone"])
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = (
            whole.eval().forward_intermediates(image, intermediates_only=True),
            twin.eval()(image),
        )
    torch.testing.assert_close(found[-1], expected[-1])


def test_timms_card_gives_backbone_and_pixels(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    card = {"architecture": "resnet10t", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}}
    (tmp_path / "config.json").write_text(json.dumps(card))
    weights = load_weights(tmp_path)
    assert weights.config["encoder"] == {"backbone": "resnet10t"}
    assert weights.mean == (0.5, 0.5, 0.5) and weights.std == (0.2, 0.2, 0.2)


def test_a_strangers_card_is_not_read(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"mean": 3, "hidden_size": 768}))
    assert load_weights(tmp_path).config == {}


@pytest.mark.parametrize("nest", ["state_dict", "model"])
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapped_and_nested_checkpoints(tmp_path: Path, nest: str, wrapper: str) -> None:
    source, target = body(), fresh()
    state = {wrapper + n: t for n, t in source.state_dict().items()}
    torch.save({nest: state, "epoch": 3, "lr": 0.1}, tmp_path / "last.pth.tar")
    load_weights(tmp_path / "last.pth.tar").into({"backbone": target}).require()
    assert equal(source, target)


def test_half_precision_weights_arrive_in_the_modules_own_type(tmp_path: Path) -> None:
    source, target = body(), fresh()
    torch.save(
        {n: t.half() if t.is_floating_point() else t for n, t in source.state_dict().items()},
        tmp_path / "h.pth",
    )
    load_weights(tmp_path / "h.pth").into({"backbone": target}).require()
    assert target.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(target.conv1.weight, source.conv1.weight, atol=1e-3, rtol=1e-3)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("whole", [True, False])
def test_a_pickle_that_runs_code_is_refused_unread(tmp_path: Path, monkeypatch, whole: bool) -> None:
    """A weights file from elsewhere must not be able to run anything, in the open or inside a state dict."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.pth"
    if whole:
        file.write_bytes(pickle.dumps(Bomb(), protocol=2))
    else:
        torch.save({"conv1.weight": torch.ones(2), "extra": Bomb()}, file)
    with pytest.raises(ValueError, match=r"evil\.pth: is no file of plain tensors; a pickle may run code"):
        load_weights(file)
    assert not (tmp_path / "exploded").exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="Save its state_dict alone"):
        load_weights(tmp_path / "model.pt")


def test_what_cannot_be_read_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder; weights are"):
        load_weights(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        load_weights(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="finish it with --resume"):
        load_weights(tmp_path)
    for name, content in (("cut.safetensors", b"\x10\0\0"), ("text.pth", b"hello"), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_weights(tmp_path / name)
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="expected named tensors, found Tensor"):
        load_weights(tmp_path / "tensor.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        load_weights(tmp_path / "none.pth")


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    torch.save(body().state_dict(), tmp_path / "cut.pth")
    data = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.pth: cannot be read as weights"):
        load_weights(tmp_path / "cut.pth")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """A diverged run's export would train as well as random weights, silently."""
    modules = small_modules()
    modules["head"].weight.data[0, 0] = float("nan")
    save_weights(tmp_path, modules, {})
    with pytest.raises(
        ValueError, match=r"1 tensors are not finite, the first is roi_heads\.box_head\.weight"
    ):
        load_weights(tmp_path)


def test_a_card_with_wrong_pixels_is_named(tmp_path: Path) -> None:
    weights = load_weights(save_weights(tmp_path, small_modules(), {"mean": [0.5, 0.5], "std": "imagenet"}))
    with pytest.raises(ValueError, match=r"mean in config\.json must be three numbers"):
        weights.mean  # noqa: B018
    with pytest.raises(ValueError, match=r"std in config\.json must be three numbers"):
        weights.std  # noqa: B018


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    """A full disk or a kill while writing must leave the weights that were there."""
    save_weights(tmp_path, small_modules(), {"method": "first"})
    before = (tmp_path / "model.safetensors").read_bytes()

    def fail(*arguments: object, **named: object) -> None:
        Path(str(arguments[1])).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(sys.modules["boxwise.interop.files"], "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        save_weights(tmp_path, small_modules(), {"method": "second"})
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert read_card(tmp_path)["method"] == "first"


def test_a_full_disk_is_told_with_the_folder(tmp_path: Path) -> None:
    """Breaks when safetensors' own error, which is no OSError, passes for a bug of boxwise."""
    with small_files(100_000), pytest.raises(OSError, match="the weights cannot be written"):
        write_state(tmp_path, {"a": torch.zeros(100_000)}, {})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("detector", "said"),
    [
        (
            {"name": "faster_rcnn_fpn", "backbone": "resnet18", "fpn_channels": 24, "fpn_norm": "none"},
            {"backbone": "resnet18", "fpn": True, "fpn_channels": 24, "fpn_norm": "none"},
        ),
        ({"name": "fcn16s", "backbone": "resnet34"}, {"backbone": "resnet34", "fpn": False}),
    ],
)
def test_a_fine_tuned_detector_says_what_it_is_built_on(
    tmp_path: Path, detector: dict[str, object], said: dict[str, object]
) -> None:
    """Breaks when a detector that stands in as weights must be told its own backbone again."""
    folder = save_weights(tmp_path, small_modules(), {"detector": detector})
    assert load_weights(folder).config["encoder"] == said


def test_parts_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    """Breaks when `--weights.parts [head]` with weights of a backbone trains from random ones and says nothing."""
    held = load_weights(save_weights(tmp_path, {"backbone": small_modules()["backbone"]}, {}))
    assert held.only(["backbone", "head"]).parts == ("backbone",)
    with pytest.raises(ValueError, match=r"holds backbone and none of weights\.parts \(head\)"):
        held.only(["head"])


def test_tied_weights_are_written_twice(tmp_path: Path) -> None:
    """safetensors refuses tensors that share memory."""
    modules = small_modules()
    modules["backbone"].register_parameter("tied", modules["fpn"].weight)
    load_weights(save_weights(tmp_path, modules, {})).into(modules).require()


def test_the_run_folder_wins_over_loose_files(tmp_path: Path) -> None:
    save_weights(tmp_path, small_modules(), {})
    save_weights(tmp_path / "export", small_modules(), {})
    assert find_model(tmp_path) == tmp_path / "export" / "model.safetensors"


def test_weights_of_another_architecture_fail_the_command(tmp_path: Path) -> None:
    save_weights(tmp_path, {"backbone": body("resnet34")}, {})
    target = fresh()
    report = load_weights(tmp_path).into({"backbone": target})
    with pytest.raises(WeightsError, match="backbone did not arrive as promised") as failure:
        report.require(["backbone"])
    assert failure.value.exit_code == 4
