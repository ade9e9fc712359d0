"""Backbones that give a pyramid of maps: torchvision's ResNets, and timm's."""

from __future__ import annotations

import copy
import difflib
import functools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn

from boxwise.shapes import Image
from boxwise.strict import SettingsError

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
"""Built by torchvision, whose weights and detectors share our names; every other name is timm's."""

LEVELS = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
"""Names of a backbone's maps by their stride; p2 to p5 lie above them."""

UNFIT = frozenset(
    [
        "beit",
        "cait",
        "convit",
        "convmixer",
        "crossvit",
        "csatv2",
        "deepseek_vit",
        "deit",
        "efficientvim",
        "efficientvit_msra",
        "eva",
        "gemma4_vit",
        "inception_resnet_v2",
        "inception_v3",
        "inception_v4",
        "levit",
        "mlp_mixer",
        "naflexvit",
        "nest",
        "pit",
        "qwen3_vit",
        "sequencer",
        "shvit",
        "tnt",
        "visformer",
        "vision_transformer",
        "vision_transformer_hybrid",
        "vision_transformer_relpos",
        "vision_transformer_sam",
        "vitamin",
        "volo",
        "xception",
        "xcit",
    ]
)
"""timm's families without maps at strides 4 to 32, and four old ones whose convolutions eat the border."""

Widths = list[tuple[int, int]]
"""Stride and channels of each map that a body gives."""


class ResNetBody(nn.Module):
    """The trunk of a torchvision ResNet: same names, no classifier, the outputs of all four layers."""

    def __init__(self, whole: torchvision.models.ResNet) -> None:
        super().__init__()
        self.return_layers = ("layer1", "layer2", "layer3", "layer4")
        for name, part in whole.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, part)

    def forward(self, image: Image) -> list[Float[Tensor, "B _C _h _w"]]:
        x, maps = image, []
        for name, part in self.named_children():
            x = part(x)
            if name in self.return_layers:
                maps.append(x)
        return maps


def backbones() -> tuple[str, ...]:
    """All names that may be asked for: torchvision's ResNets, then timm's families that have a pyramid."""
    import timm  # takes half a second, and most runs need none of it

    refused = {name for family in UNFIT for name in timm.list_models(module=family)} | {*RESNETS}
    return (*RESNETS, *(name for name in timm.list_models() if name not in refused))


def build_body(name: str, *, zero_init_last: bool = False) -> tuple[nn.Module, Widths]:
    """A backbone without its classifier, with random weights, and what its maps are.

    Raises ValueError for a name that is unknown, with the nearest ones, and for a backbone that gives no maps.
    """
    return _resnet(name, zero_init_last) if name in RESNETS else _timm(name, zero_init_last)


def _resnet(name: str, zero_init_last: bool) -> tuple[nn.Module, Widths]:
    whole = getattr(torchvision.models, name)(weights=None, zero_init_residual=zero_init_last)
    top = whole.fc.in_features
    return ResNetBody(whole), [(4 << i, top >> (3 - i)) for i in range(4)]


@functools.cache
def maps_of(name: str, side: int) -> bool:
    """Whether a backbone gives maps of images of `side` pixels: those that do not pad need their last stride.

    What cannot be built at all has its own errors, where it is built.
    """
    if name in RESNETS or side >= LEVELS["c5"]:
        return True
    try:
        with torch.device("meta"):
            body, _ = build_body(name)
    except (ValueError, NotImplementedError):
        return True
    try:
        body(torch.zeros(2, 3, side, side, device="meta"))
    except RuntimeError:  # a kernel larger than what is left of the image
        return False
    return True


def unknown(name: str) -> Iterator[str]:
    """What to tell, with the nearest names, of a backbone that neither torchvision nor timm has."""
    if name in RESNETS:
        return
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, backbones(), n=3, cutoff=0.5)
        known = f"nearest: {', '.join(near)}" if near else "`boxwise list backbones` names them all"
        yield f"encoder.backbone: unknown backbone {name!r}; {known}"


def _timm(name: str, zero_init_last: bool) -> tuple[nn.Module, Widths]:
    import timm

    if problems := [*unknown(name)]:
        raise SettingsError(problems)
    if zero_init_last:
        raise ValueError(
            f"encoder.zero_init_last: works for {', '.join(RESNETS)}, not for {name}; set it to false"
        )
    try:
        body = timm.create_model(name, pretrained=False, features_only=True)
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ValueError(f"encoder.backbone: timm gives no feature maps of {name} ({error})") from error
    info: Any = body.feature_info
    return body, list(zip(info.reduction(), info.channels(), strict=True))


def last_of_stride(name: str, widths: Widths) -> dict[str, int]:
    """Where, among a body's maps, the deepest one of each stride is."""
    at = {stride: i for i, (stride, _) in enumerate(widths)}
    missing = [str(stride) for stride in LEVELS.values() if stride not in at]
    if missing:
        has = ", ".join(str(stride) for stride in at)
        raise ValueError(
            f"encoder.backbone: {name} has maps at strides {has} and none at {', '.join(missing)}; take a "
            "backbone with a pyramid, as resnet50, convnext_tiny or mobilenetv3_large_100"
        )
    return {level: at[stride] for level, stride in LEVELS.items()}


def take_last_stage(name: str, body: nn.Module, c4: int) -> nn.Sequential:
    """Removes from `body` all that comes after its map number `c4`.

    Raises ValueError where the body is no row of parts, one called after the other.
    """
    row = name in RESNETS or type(body).__name__ == "FeatureListNet"  # timm's others read through hooks
    if not row or str(getattr(body, "output_fmt", "")).endswith("NHWC"):
        raise ValueError(
            f"encoder.c4: the last stage of {name} cannot be taken off as a box head; set encoder.c4: false, or "
            "take a backbone of separate stages, as resnet50 or convnext_tiny"
        )
    layers: Any = body.return_layers
    parts = dict(body.named_children())
    names = [*parts]
    after = names[names.index([*layers][c4]) + 1 :]
    for part in after:
        delattr(body, part)
    return nn.Sequential(OrderedDict((part, parts[part]) for part in after))


def rejoined(body: nn.Module, last: nn.Module) -> nn.Module:
    """The whole backbone under its usual names, of the very parts of `body` and the last stage taken off it."""
    whole = copy.copy(body)
    whole._modules = {**body._modules, **last._modules}
    return whole
