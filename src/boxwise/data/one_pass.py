"""A set that is read once, in its order; what cannot be read is left out, and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from boxwise.data.decode import BadImage
from boxwise.data.order import Item
from boxwise.data.workers import Bad

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OnePass:
    """Every image once; the last batch may be smaller."""

    count: int
    batch_size: int

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        for first in range(0, self.count, self.batch_size):
            last = min(first + self.batch_size, self.count)
            yield [Item(epoch=0, index=index) for index in range(first, last)]


@dataclass(frozen=True, slots=True)
class EachReadable(Generic[S, T]):
    """Worker side: a list of items to a batch of those that can be read; none where none of them can."""

    sample: Callable[[int], S]
    """Raises BadImage."""
    collate: Callable[[Sequence[S]], T]
    bad_images: Literal["error", "skip"]

    def __call__(self, items: Sequence[Item], bad: list[Bad]) -> T | None:
        samples: list[S] = []
        for item in items:
            try:
                samples.append(self.sample(item.index))
            except BadImage as error:
                if self.bad_images == "error":
                    raise
                bad.append(Bad(item.index, str(error.path), error.reason))
        return self.collate(samples) if samples else None
