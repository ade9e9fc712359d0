"""A classifier beside a pretraining: what its features know of labels, none of which reaches them.

    x = mean of c5 of the first view, without gradient
    loss = the method's loss + mean over images of -log softmax(W x + b)[class]

SCRL's repository prints the accuracy of such a one as linear_online. One optimiser trains both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from boxwise.geometry.views import Batch
from boxwise.methods.base import Method
from boxwise.nn.encoder import Maps
from boxwise.shapes import Scalar


class Beside(nn.Module):
    """A method, and a classifier that watches its student. What the method computes is the same to the last bit."""

    labels: Int[Tensor, " n"]
    """The class of every image of the set."""

    def __init__(self, method: Method, labels: Int[Tensor, " n"], classes: int) -> None:
        """Raises ValueError for an encoder that stops at c4."""
        super().__init__()
        encoder = method.student.encoder
        if "c5" not in encoder.channels:
            raise ValueError(
                "data.classes: a classifier reads c5, and this encoder stops at c4; set data.classes: false"
            )
        self.method = method
        self.classifier = nn.Linear(encoder.channels["c5"], classes)
        self.register_buffer("labels", labels, persistent=False)
        self._first: Float[Tensor, "_B _C _h _w"] | None = None
        encoder.register_forward_hook(self._see)

    def forward(self, batch: Batch) -> dict[str, Scalar]:
        """The method's terms, "classifier", and the sum of all as "loss"."""
        self._first = None
        losses = self.method(batch)
        assert self._first is not None, "a method runs its student"
        seen, self._first = self._first, None
        rows = seen[: len(batch.index)].float().mean((-2, -1))  # of views in one batch, the first
        with torch.autocast(rows.device.type, enabled=False):
            scores = self.classifier(rows.to(self.classifier.weight.dtype))
            term = F.cross_entropy(scores, self.labels[batch.index])
        return losses | {"classifier": term, "loss": losses["loss"] + term}

    def _see(self, encoder: nn.Module, inputs: tuple[Tensor, ...], maps: Maps) -> None:
        """Keeps what the student made of the first that it was shown."""
        if self._first is None:
            self._first = maps["c5"].detach()
