"""A branch runs its encoder once, its taps by name, and hands over what a detector takes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from boxwise.geometry.views import View
from boxwise.nn.branch import Branch, Tap
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.heads import BOX_HEAD_WIDTH, Res5Head, box_head, moco_projector
from boxwise.nn.pools import LevelBySize, RegionPool, Whole


def view(*shape: int) -> View:
    image = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return View(image, torch.zeros(len(image), 4), torch.zeros(len(image), dtype=torch.bool))


def branch() -> Branch:
    torch.manual_seed(1)
    encoder = build_encoder(EncoderConfig(backbone="resnet18"))
    taps = {
        "image": Tap(Whole("c5"), moco_projector(512, 16, 4)),
        "box": Tap(RegionPool("c4", 1, aligned=True), moco_projector(256, 16, 6)),
    }
    return Branch(encoder, taps)


def test_taps_pool_what_their_pool_reads_and_the_encoder_runs_once() -> None:
    """Breaks when each tap encodes the view again, which doubles a step and its BatchNorm statistics."""
    network, boxes = branch().eval(), torch.tensor([[[4.0, 4, 30, 40], [10, 10, 60, 60]]]).expand(2, 2, 4)
    calls = []
    network.encoder.register_forward_hook(lambda *_: calls.append(1))
    out, pyramid = network(view(2, 3, 64, 64), boxes), network.encoder(view(2, 3, 64, 64).image)
    assert len(calls) == 2 and list(out) == ["image", "box"]
    torch.testing.assert_close(out["image"], network.taps["image"].project(pyramid["c5"].mean((-2, -1))))
    torch.testing.assert_close(out["box"], network.taps["box"](pyramid, boxes, 64))
    assert out["box"].shape == (4, 6)


def test_only_the_taps_asked_for_run() -> None:
    """Breaks when a tap that needs boxes runs on a view that has none."""
    assert list(branch()(view(2, 3, 64, 64), taps=["image"])) == ["image"]


def test_patches_are_rows_in_the_order_of_their_image() -> None:
    """Breaks DetCo: nine patches an image must stay together."""
    network, patches = branch().eval(), view(2, 3, 3, 64, 64)
    out = network(patches, taps=["image"])["image"]
    one = network(view(2, 3, 3, 64, 64), taps=["image"])["image"]
    assert out.shape == (6, 4) and torch.equal(out, one)
    single = View(patches.image[1], torch.zeros(3, 4), torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(network(single, taps=["image"])["image"], out[3:])


def test_trap_24_what_is_handed_over_is_the_trained_parts_themselves() -> None:
    """Breaks the export: a missing part or a copy would carry random weights to the detector."""
    assert set(branch().handed_over()) == {"backbone"}
    encoder, head = build_encoder(EncoderConfig(backbone="resnet18", fpn=True)), box_head(256)
    pool = LevelBySize({"p2": 16, "p3": 64}, 7, aligned=True)
    tap = Tap(pool, moco_projector(BOX_HEAD_WIDTH, 8, 4), box_head=head)
    parts = Branch(encoder, {"box": tap}).handed_over()
    assert parts == {"backbone": encoder.body, "fpn": encoder.fpn, "head": head}


def test_a_box_head_stands_between_pool_and_projector() -> None:
    """Breaks when the head is registered but not run."""
    seen: list[torch.Size] = []

    class Head(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.shape)
            return x.flatten(1)[:, :5] * 2

    tap = Tap(RegionPool("c2", 3, aligned=True), nn.Identity(), box_head=Head())
    out = tap({"c2": torch.ones(1, 7, 16, 16)}, torch.tensor([[[8.0, 8, 40, 40]]]), 64)
    assert seen == [(1, 7, 3, 3)] and out.tolist() == [[2.0] * 5]


def c4_branch() -> Branch:
    torch.manual_seed(1)
    encoder = build_encoder(EncoderConfig(backbone="resnet18", c4=True))
    head = Res5Head(encoder)
    pool = RegionPool("c4", 4, aligned=True)
    return Branch(encoder, {"box": Tap(pool, moco_projector(head.width, 16, 6), box_head=head)})


def test_a_c4_branch_hands_over_one_whole_trained_backbone() -> None:
    """Breaks when the box head's stage is left behind, handed over under another name, or copied."""
    network = c4_branch()
    parts = network.handed_over()
    usual = build_encoder(EncoderConfig(backbone="resnet18")).body.state_dict()
    assert list(parts) == ["backbone"] and parts["backbone"].state_dict().keys() == usual.keys()
    boxes = torch.tensor([[[4.0, 4, 60, 60]]]).expand(2, 1, 4)
    network(view(2, 3, 64, 64), boxes)["box"].sum().backward()
    assert all(p.grad is not None for p in parts["backbone"].parameters())
    assert len({id(p) for p in network.parameters()}) == len(network.state_dict(keep_vars=True)) - len(
        [*network.named_buffers()]
    )
    twin = copy.deepcopy(network)  # a teacher
    twin.handed_over()["backbone"].load_state_dict(usual)
    assert torch.equal(
        twin.state_dict()["taps.box.box_head.last.layer4.0.conv1.weight"], usual["layer4.0.conv1.weight"]
    )
    assert not torch.equal(parts["backbone"].state_dict()["conv1.weight"], usual["conv1.weight"])


def test_a_last_stage_that_nothing_trains_is_refused() -> None:
    """Breaks when a method without a C4 head hands over a random last stage."""
    encoder = build_encoder(EncoderConfig(backbone="test_resnet", c4=True))
    with pytest.raises(ValueError, match=r"nothing would train the last stage.*encoder.c4: false"):
        Branch(encoder, {"box": Tap(RegionPool("c4", 1, aligned=True), moco_projector(64, 16, 6))})
