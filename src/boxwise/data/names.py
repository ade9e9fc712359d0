"""Many names as one block of bytes, which costs a worker one copy, not a million objects; and a draw among names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True, slots=True, eq=False)
class Names:
    """A sequence of file names; bytes that are no text survive."""

    block: bytes
    ends: Int64[np.ndarray, " n"]
    """Where each name ends in `block`."""

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        encoded = [os.fsencode(name) for name in names]
        return cls(b"".join(encoded), np.cumsum([len(name) for name in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.block[start : int(self.ends[index])])


def draw(names: Sequence[str], count: int, *, seed: int) -> list[int]:
    """Places, in order, of the `count` names with the least sha256 of "SEED:NAME".

    A function of the seed and the names alone, on any machine, in whatever order they are listed. A smaller draw
    of one seed lies within every larger one.
    """
    lots = [hashlib.sha256(os.fsencode(f"{seed}:{name}")).digest() for name in names]
    return sorted(sorted(range(len(names)), key=lots.__getitem__)[:count])


def count_of(labels: float | int | None, total: int) -> int:
    """How many of `total` images a share (a float up to 1.0) or a count (an int) is; none: all.

    Raises ValueError for more than there are, and for less than one.
    """
    if labels is None:
        return total
    most = total if isinstance(labels, int) else 1
    if isinstance(labels, bool) or not 0 < labels <= most:
        raise ValueError(
            f"labels is {labels}; pass a share above 0 and up to 1.0, or a count from 1 to {total}"
        )
    return labels if isinstance(labels, int) else max(1, round(labels * total))
