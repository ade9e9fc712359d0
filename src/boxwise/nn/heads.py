"""What turns pooled features into embeddings, and the detector's own box head.

Every projector flattens its input first, so that (M, C, s, s) crops may be handed over as they are.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead

from boxwise.nn.backbones import rejoined
from boxwise.nn.encoder import Encoder
from boxwise.nn.row_norm import RowNorm

BOX_HEAD_WIDTH = 1024
"""Numbers per box that `box_head` gives."""


def projector(
    inputs: int, hidden: int, outputs: int, *, last_bias: bool, centred: bool = False
) -> nn.Sequential:
    """The projector and the predictor of BYOL, SoCo and SCRL; SCRL's last layer has no bias.

    Its BatchNorm sees the rows of all ranks, and leaves padding out where `only_kept` says which rows are.
    With `centred`, a BatchNorm without scale and shift follows the last layer, as in SimSiam's projector.
    """
    layers = nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, hidden),
        RowNorm(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs, bias=last_bias),
    )
    if centred:
        layers.append(RowNorm(outputs, affine=False))
    return layers


def moco_projector(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """MoCo-v2's two layers, without BatchNorm."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )


def conv_projector(inputs: int, outputs: int) -> nn.Sequential:
    """ReSim's projection of a map: two 3x3 convolutions, the first with BatchNorm and ReLU.

    The paper states inputs and outputs (1024 and 128 of c4); the width between them, the inputs', is ours.
    """
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, 3, padding=1),
    )


def simsiam_projector(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """SimSiam's three layers, each followed by BatchNorm; the last norm has no scale and shift.

    The norms leave padding out where `only_kept` says which rows are.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, hidden, bias=False),
        RowNorm(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden, bias=False),
        RowNorm(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs, bias=False),
        RowNorm(outputs, affine=False),
    )


def simsiam_predictor(width: int, hidden: int) -> nn.Sequential:
    """SimSiam's bottleneck, `width` to `hidden` to `width`, without BatchNorm at its output."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(width, hidden, bias=False),
        RowNorm(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, width),
    )


def box_head(channels: int, *, size: int = 7) -> nn.Module:
    """The 4conv1fc head of torchvision's v2 detectors, under its names: (M, C, s, s) to (M, 1024)."""
    return FastRCNNConvFCHead((channels, size, size), [channels] * 4, [BOX_HEAD_WIDTH], nn.BatchNorm2d)


class Res5Head(nn.Module):
    """The box head of C4 detectors: the backbone's last stage on crops of c4, then the mean over their cells.

    Takes the stage over from `encoder`, which then holds it no longer. Crops have twice as many cells a side
    (14) as the stage leaves of them (7).
    """

    width: int
    """Numbers per box."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        if encoder.last is None:
            raise ValueError("encoder.c4: a box head made of the last stage needs encoder.c4: true")
        self.last, self.width, encoder.last = encoder.last, encoder.last_channels, None

    def forward(self, crops: Float[Tensor, "M C s s"]) -> Float[Tensor, "M _D"]:
        return self.last(crops).mean((-2, -1))

    def backbone(self, body: nn.Module) -> nn.Module:
        """`body`, the encoder's, and this stage as the one backbone that they are of."""
        return rejoined(body, self.last)
