"""What a run on labels or questions records: its images on both sides, and which weights arrived."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

from boxwise.engine.device import leads
from boxwise.interop.files import Weights


@runtime_checkable
class Side(Protocol):
    """What is trained on, or what is measured on."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def fingerprint(self) -> str: ...


def facts(train: Side, test: Side, weights: Weights | None) -> dict[str, Any]:
    """What names the images and the weights of a run."""
    return {
        "images": len(train),
        "fingerprint": train.fingerprint(),
        "test_images": len(test),
        "test_fingerprint": test.fingerprint(),
        "weights": None if weights is None else weights.source,
        "weights_digest": None if weights is None else weights.digest,
    }


def listed(side: Side) -> str:
    """The names of the images, one a line."""
    return "".join(f"{side.name(i)}\n" for i in range(len(side)))


def filled(parts: Mapping[str, nn.Module], weights: Weights | None) -> str:
    """Puts `weights` into `parts`; what of them arrived. Raises WeightsError where a part of theirs did not, whole."""
    if weights is None:
        return "random weights\n"
    report = weights.into(parts)
    if leads():
        print(report, file=sys.stderr)
    report.require(part for part in weights.parts if part in parts)
    return f"{report}\n"
