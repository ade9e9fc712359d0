"""Pretrained features for any use: an encoder from a run, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from boxwise.interop.files import load_weights
from boxwise.nn.encoder import Encoder, EncoderConfig, build_encoder
from boxwise.strict import read


def load_encoder(path: str | Path) -> Encoder:
    """The encoder of a pretraining run, in evaluation mode: images (B, 3, H, W) to maps c2..c5, and p2..p5 with FPN.

    `path` is a run or its export folder. Normalise images by `mean` and `std` of its config.json. Raises
    ValueError for weights that do not say what they are of, WeightsError when they do not fill the encoder.
    """
    weights = load_weights(path)
    settings: dict[str, Any] | None = weights.config.get("encoder")
    if settings is None:
        raise ValueError(
            f"{path}: has no config.json that names its backbone; name a run or its export folder"
        )
    whole = {**settings, "c4": False}  # a run that stopped at c4 hands over the last stage as well
    encoder = build_encoder(read(EncoderConfig, whole, at="encoder"))
    modules: dict[str, nn.Module] = {"backbone": encoder.body}
    if encoder.fpn is not None:
        modules["fpn"] = encoder.fpn
    weights.into(modules).require(list(modules))
    return encoder.eval()
