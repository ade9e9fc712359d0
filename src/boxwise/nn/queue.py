"""First-in first-out keys, used as negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from boxwise.nn.ranks import gather
from boxwise.shapes import Embeddings


class Queue(nn.Module):
    """The newest K keys of all ranks, as unit vectors; random ones until it has filled."""

    keys: Float[Tensor, "K D"]
    cursor: Int[Tensor, ""]

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(length, width), dim=-1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Embeddings) -> None:
        """Overwrites the oldest rows with the keys of all ranks, in rank order; the same on every rank.

        Wraps, so the length need not divide by the batch. Keys that are not all finite are all dropped.
        Works in place: a loss whose gradient still needs `keys` reads a clone; `info_nce` does not.
        """
        keys = gather(keys)
        length = len(self.keys)
        skipped = max(len(keys) - length, 0)
        new = F.normalize(keys[skipped:].to(self.keys.dtype), dim=-1)
        at = (self.cursor + skipped + torch.arange(len(new), device=keys.device)) % length
        ok = keys.isfinite().all()
        self.keys[at] = torch.where(ok, new, self.keys[at])
        self.cursor.copy_((self.cursor + len(keys) * ok) % length)
