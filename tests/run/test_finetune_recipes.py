"""What recipes say of labels and weights reaches the run."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from boxwise.data.scenes import write_scenes
from boxwise.interop.files import Weights, load_weights, save_weights
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.recipes.transfer import faster_rcnn_fpn
from boxwise.run.find import transfer_recipe
from boxwise.run.finetune import adopted, finetune
from boxwise.strict import SettingsError
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN

SMALL: dict[str, Any] = {"backbone": "resnet18", "fpn_channels": 16}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Weights of a backbone and a whole FPN without norms."""
    torch.manual_seed(0)
    config = EncoderConfig(fpn=True, fpn_norm="none", **SMALL)
    encoder = build_encoder(config)
    folder = tmp_path_factory.mktemp("weights")
    card = {"encoder": {"fpn": True, "fpn_norm": "none", **SMALL}, "mean": [0.1, 0.2, 0.3]}
    save_weights(folder, {"backbone": encoder.body, "fpn": encoder.fpn}, card)
    return load_weights(folder)


def test_trap_24_parts_left_behind_are_as_if_never_trained(held: Weights) -> None:
    """ReSim-FPN without its T. Breaks when a pyramid that is left behind still decides the detector's, or fills it."""
    alone = held.only(("backbone",))
    assert (alone.parts, alone.mean) == (("backbone",), (0.1, 0.2, 0.3)) and held.parts == ("backbone", "fpn")
    recipe = faster_rcnn_fpn().changed({"detector": SMALL})
    assert adopted(recipe, alone, ()).detector == recipe.detector, "norms and width stay the recipe's"
    assert adopted(recipe, held.only(None), ()).detector.fpn_norm == "none"
    model = FasterRCNNFPN(fpn_norm="none", **SMALL).build(classes=2, mean=alone.mean, std=alone.std)
    before = {name: tensor.clone() for name, tensor in model.backbone.fpn.state_dict().items()}
    report = alone.into(model.parts())
    report.require(alone.parts)
    assert report.parts["backbone"].complete
    assert all(torch.equal(before[n], t) for n, t in model.backbone.fpn.state_dict().items())


def test_trap_24_a_pyramid_of_some_levels_brings_no_norm(held: Weights) -> None:
    """ReSim^T goes into pyramids with norms. Breaks when its two levels take the norms of all four away."""
    some = Weights(
        held.source,
        held.state,
        {**held.config, "encoder": {**held.config["encoder"], "fpn_levels": ["p3", "p4"]}},
    )
    recipe = faster_rcnn_fpn().changed({"detector": SMALL})
    for given in ((), ("detector.fpn_norm",)):
        assert adopted(recipe, some, given).detector.fpn_norm == "bn"
    with pytest.raises(SettingsError, match=r"detector\.fpn_norm: bn was asked for"):
        adopted(recipe, held, ("detector.fpn_norm",))


def test_the_recipes_share_of_labels_is_drawn_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a protocol on a tenth of the labels trains on all, or --labels cannot change it."""
    write_scenes(tmp_path / "coco", counts={"train": 8, "val": 2}, size=48)

    def told(**more: Any) -> tuple[Any, str]:
        settings = {"image_size": 64, "data.labels": 0.25}
        out = tmp_path / "out"
        finetune("faster_rcnn_fpn", tmp_path / "coco", out, settings=settings, dry_run=True, **more)
        said = capsys.readouterr()
        return yaml.safe_load(said.out)["data"]["labels"], said.err

    labels, lines = told()
    assert labels == 0.25 and "passes over 2 images" in lines
    labels, lines = told(labels=4)
    assert labels == 4 and "passes over 4 images" in lines
    labels, lines = told(labels=1.0)
    assert isinstance(labels, float) and labels == 1.0 and "passes over 8 images" in lines


def test_a_protocol_on_small_images_leaves_its_many_sizes() -> None:
    """Breaks when --image-size cannot be used with a published protocol, whose training sizes are larger."""
    found = transfer_recipe("coco_mask_rcnn_c4_12k", settings={"image_size": 320}).recipe.detector
    assert (found.min_size, found.max_size, found.train_sizes, found.train_max_size) == (320, 320, (), None)
    assert [*found.problems(pretrained=True)] == []
    sizes = {"image_size": 320, "detector.train_sizes": [256, 320]}
    assert transfer_recipe("coco_mask_rcnn_c4_12k", settings=sizes).recipe.detector.train_sizes == (256, 320)


def test_statistics_are_measured_anew_before_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when precise_bn moves a weight, or is set and left out, so that figures are those of old averages."""
    write_scenes(tmp_path / "coco", counts={"train": 4, "val": 1}, size=48)
    tiny = {
        **{f"detector.{key}": value for key, value in SMALL.items()},
        "detector.head": "2fc",
        "image_size": 64,
        "batch_size": 2,
        "steps": 1,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
    }
    for more in (0, 2):
        settings = {**tiny, "measure.precise_bn": more}
        finetune("faster_rcnn_fpn", tmp_path / "coco", tmp_path / f"run{more}", settings=settings)
    assert "norms measured anew on 2 batches" in capsys.readouterr().err
    plain, anew = (load_file(tmp_path / f"run{more}/export/model.safetensors") for more in (0, 2))
    moved = {name for name in plain if not torch.equal(plain[name], anew[name])}
    tracked = ("running_mean", "running_var", "num_batches_tracked")
    assert moved == {name for name in plain if name.endswith(tracked)}
    assert {int(t) for name, t in anew.items() if name.endswith("num_batches_tracked")} == {2}
