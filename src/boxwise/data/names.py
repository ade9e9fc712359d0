"""Many strings as one block of bytes: a million names cost a worker one copy, not a million objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
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
