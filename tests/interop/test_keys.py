import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from boxwise.interop.keys import MatchReport, WeightsError, detector_names, match


class Tiny(nn.Module):
    """16 numbers in a convolution, 4 x 2 in a norm."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(2)


def state(module: nn.Module, prefix: str = "backbone.body.") -> dict[str, torch.Tensor]:
    return {prefix + n: t for n, t in module.state_dict().items()}


def report(given: dict[str, torch.Tensor], **modules: nn.Module) -> MatchReport:
    return match(given, modules, source="runs/scrl")


def test_everything_matches() -> None:
    found = report(state(Tiny()), backbone=Tiny())
    part = found.parts["backbone"]
    assert part.matched == (
        "conv.weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
    )
    assert (part.arrived, part.wanted, part.share, found.share) == (24, 24, 1.0, 1.0)
    assert part.complete and found.promised == ("backbone",)
    found.require()
    found.require(["backbone"])


def test_missing_weights_are_named_and_counted() -> None:
    given = state(Tiny())
    del given["backbone.body.norm.running_var"]
    found = report(given, backbone=Tiny())
    assert found.parts["backbone"].missing == ("norm.running_var",)
    assert found.share == 22 / 24
    with pytest.raises(WeightsError, match=r"(?s)backbone did not arrive.*missing: norm\.running_var"):
        found.require()


def test_left_over_weights_fail_too() -> None:
    """A deeper network of the same widths fills a shallower one to 100 % and is still the wrong network."""
    shallow, deep = torchvision.models.resnet50(weights=None), torchvision.models.resnet101(weights=None)
    found = report(detector_names(deep.state_dict()), backbone=nn.ModuleDict(dict(shallow.named_children())))
    part = found.parts["backbone"]
    assert part.missing == ("fc.weight", "fc.bias") and part.mismatched == ()
    assert {n.split(".")[1] for n in part.unexpected} == {str(i) for i in range(6, 23)}
    with pytest.raises(WeightsError, match=r"layer3\.6\.conv1\.weight"):
        found.require(["backbone"])


def test_mismatched_shapes_are_shown_and_count_as_lost() -> None:
    found = report(state(Tiny(width=3)), backbone=Tiny())
    assert found.parts["backbone"].mismatched == ("conv.weight ((2, 3, 2, 2), (2, 2, 2, 2))",)
    assert found.share == 8 / 24
    with pytest.raises(WeightsError, match=r"mismatched: conv\.weight"):
        found.require()


def test_a_part_that_the_module_lacks_did_not_arrive() -> None:
    """Weights with a pretrained box head and a detector that has no such head: dropped in silence before."""
    given = state(Tiny()) | state(nn.Linear(2, 2), "roi_heads.box_head.")
    found = report(given, backbone=Tiny())
    assert found.parts["head"].unexpected == ("weight", "bias")
    found.require(["backbone"])
    with pytest.raises(WeightsError, match="head did not arrive"):
        found.require()


def test_a_part_that_the_weights_lack_is_no_failure_unless_asked_for() -> None:
    found = report(state(Tiny()), backbone=Tiny(), head=nn.Linear(2, 2))
    found.require()
    assert found.share == 24 / 30
    assert "head" in str(found) and "not in the weights: 6 parameters stay as they were" in str(found)
    with pytest.raises(WeightsError, match="head did not arrive"):
        found.require(["backbone", "head"])


def test_weights_that_hold_no_part_at_all_fail() -> None:
    found = report({"something.else": torch.ones(2)}, backbone=Tiny())
    with pytest.raises(WeightsError, match="backbone, fpn and head did not arrive"):
        found.require()


def test_the_norms_batch_counter_neither_counts_nor_lacks() -> None:
    """Old files and frozen norms have none; a missing counter must not fail a whole load."""
    old = {n: t for n, t in state(Tiny()).items() if "num_batches" not in n}
    report(old, backbone=Tiny()).require()
    frozen = Tiny()
    frozen.norm = FrozenBatchNorm2d(2)
    report(state(Tiny()), backbone=frozen).require()


def test_the_table() -> None:
    given = state(Tiny()) | state(nn.Linear(3, 2), "roi_heads.box_head.")
    del given["backbone.body.norm.bias"]
    given["backbone.body.extra"] = torch.ones(3)
    lines = str(report(given, backbone=Tiny(), head=nn.Linear(2, 2), fpn=nn.Linear(1, 1))).splitlines()
    assert lines[0] == "weights: runs/scrl"
    assert lines[1].split() == ["part", "matched", "missing", "unexpected", "mismatched", "parameters"]
    assert lines[2].split() == ["backbone", "4", "1", "1", "0", "91.7", "%", "of", "24"]
    assert lines[3].split() == [
        "fpn",
        "not",
        "in",
        "the",
        "weights:",
        "2",
        "parameters",
        "stay",
        "as",
        "they",
        "were",
    ]
    assert lines[4].split() == ["head", "1", "0", "0", "1", "33.3", "%", "of", "6"]
    assert lines[5:] == [
        "backbone, missing: norm.bias",
        "backbone, unexpected: extra",
        "head, mismatched: weight ((2, 3), (2, 2))",
    ]


def test_a_share_is_never_rounded_up_to_all() -> None:
    big = nn.ModuleDict({"a": nn.Linear(1000, 1000), "b": nn.Linear(1, 1, bias=False)})
    given = {n: t for n, t in state(big).items() if not n.endswith("b.weight")}
    assert " 99.9 % of 1,001,001" in str(report(given, backbone=big))


def test_classifier_names_become_detector_names() -> None:
    given = {
        "module.conv1.weight": torch.ones(1),
        "module.fc.weight": torch.ones(1),
        "module.layer1.0.bn2.bias": torch.ones(1),
    }
    assert list(detector_names(given)) == ["backbone.body.conv1.weight", "backbone.body.layer1.0.bn2.bias"]
