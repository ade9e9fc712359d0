"""What linear probes read of a frozen encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from boxwise.data.names import Names
from boxwise.data.sources import Files
from boxwise.nn.encoder import Encoder, EncoderConfig, build_encoder
from boxwise.nn.pools import Align
from boxwise.transfer.probes.linear import WholePicture
from boxwise.transfer.probes.patch_location import Patches, PatchesOfMap, patches
from boxwise.transfer.probes.roi_linear import LabelledRegions

SIDE = 72
"""Of views: c5 has 3 cells of 24 pixels, where a stride of 32 would be assumed."""


def an_encoder() -> Encoder:
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(backbone="test_resnet")).eval()


@pytest.mark.parametrize("level", ["c2", "c5"])
def test_a_whole_picture_is_read_as_the_mean_of_the_map_that_was_asked_for(level: str) -> None:
    encoder = an_encoder()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        cells = encoder.body(images)[{"c2": -4, "c5": -1}[level]]
        found = WholePicture(encoder, level)(images, torch.zeros(0, 5))
    torch.testing.assert_close(found, torch.stack([x.flatten(1).sum(1) / x[0].numel() for x in cells]))


@pytest.mark.parametrize(("level", "bins", "aligned"), [("c5", 1, False), ("c5", 1, True), ("c4", 3, False)])
def test_boxes_are_read_as_torchvision_reads_them(level: str, bins: int, aligned: bool) -> None:
    """Breaks when the stride is assumed (views of 72 pixels have 3 cells of 24), when boxes read a neighbour's map or
    leave their order, or when bins come before channels."""
    encoder = an_encoder()
    images, boxes = torch.randn(3, 3, SIDE, SIDE), torch.rand(7, 2, 2).sort(dim=1).values.flatten(1) * SIDE
    boxes = torch.cat([torch.tensor([[2.0], [0], [2], [0], [0], [2], [2]]), boxes], dim=1)
    with torch.no_grad():
        cells = encoder.body(images)[{"c4": -2, "c5": -1}[level]]
        found = LabelledRegions(encoder, level, Align(bins, aligned))(images, boxes)
    scale = {"c4": 5, "c5": 3}[level] / SIDE
    expected = torchvision.ops.roi_align(cells, boxes, bins, scale, aligned=aligned).flatten(1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_patches_of_c5_are_read_as_the_mean_of_their_bins() -> None:
    """Breaks when a patch is one bin or all its bins, or columns run before rows."""
    encoder = an_encoder()
    images = torch.randn(3, 3, SIDE, SIDE)
    with torch.no_grad():
        cells = encoder.body(images)[-1]
        found = PatchesOfMap(encoder, 2, Align(7, True))(images, torch.zeros(0, 5))
    expected = []
    for i in range(3):
        for top in (0, 36):
            for left in (0, 36):
                box = torch.tensor([[0, left, top, left + 36, top + 36]], dtype=torch.float32)
                crop = torchvision.ops.roi_align(cells[i][None], box, 7, 3 / SIDE, aligned=True)
                expected.append(crop[0].flatten(1).sum(1) / 49)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [2, 3])
def test_the_class_of_a_patch_says_where_it_lies(grid: int, tmp_path: Path) -> None:
    """Breaks when patches run column by column, when width and height change places, or classes are not in the order
    of the boxes."""
    Image.new("RGB", (90, 60), (7, 8, 9)).save(tmp_path / "a.png")
    questions = Patches(Files(tmp_path, Names.of(["a.png"])), grid)
    asked = questions.ask(0)
    assert asked.picture[:, 0, 0].tolist() == [7, 8, 9] and asked.boxes is None
    assert asked.classes.tolist() == [*range(grid**2)]
    boxes = patches(torch.zeros(2, 3, 60, 90), grid)
    assert len(boxes) == 2 * len(questions.classes) == 2 * grid**2
    for n, (image, *box) in enumerate(boxes.tolist()):
        row, column = divmod(n % grid**2, grid)
        assert questions.classes[n % grid**2] == f"row {row}, column {column}" and image == n // grid**2
        wide, high = 90 / grid, 60 / grid
        assert box == pytest.approx([column * wide, row * high, (column + 1) * wide, (row + 1) * high])
