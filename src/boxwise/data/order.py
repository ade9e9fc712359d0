"""Which image is read when: everything follows from seed, step and rank, so a run resumes at any step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDER, OTHER, REPEAT, VIEW, NAMED = 0, 1, 2, 2**16, 2**32
"""What random numbers are for: the order of a pass, a picture in place of a bad one, how often a pass repeats an
image, view number i (VIEW + i), a method's own by name (NAMED + checksum)."""
COPY = 2**20
"""What the second copy of an image in a pass adds to the number of the pass, so that its draws are its own."""


@dataclass(frozen=True, slots=True)
class Item:
    """An image in one pass over the set."""

    epoch: int
    index: int


def numbers(seed: int, use: int, item: Item) -> np.random.Generator:
    """The random numbers of one use for one item: the same in every process, whatever was drawn before.

    Philox counts; nothing is hashed or warmed up, so a generator for every view of every image costs little.
    """
    return np.random.Generator(np.random.Philox(key=use << 64 | seed, counter=[0, 0, item.index, item.epoch]))


def whole_batches(images: int, batch_size: int, *, parts: int = 1) -> int:
    """Batches in one pass over `images` images; what is left over is dropped.

    Raises ValueError where there is not one, with a batch that leaves each of `parts` at least two images.
    """
    if images < batch_size:
        count = "1 image is" if images == 1 else f"{images} images are"
        fits = images // (2 * parts) * 2 * parts
        mend = f", or pass --batch-size {fits}" if fits else ""
        raise ValueError(f"{count} fewer than one batch of {batch_size}: add images{mend}")
    return images // batch_size


@dataclass(frozen=True, slots=True)
class Sampler:
    """The items of each micro-batch of one rank, from step `start` to `total`; a step has `accumulate` of them.

    Each pass is a permutation of its own. What is left of a pass after its last whole batch is dropped, or, as a
    `stream`, passes follow one another without a gap, and the set may be smaller than a batch. The ranks' and
    parts' items of a step (part after part, in each rank after rank) are the batch of a single process.
    """

    count: int
    batch_size: int
    """Images per optimiser step, over all ranks and parts."""
    seed: int
    start: int
    total: int
    accumulate: int = 1
    rank: int = 0
    world: int = 1
    stream: bool = False

    def __post_init__(self) -> None:
        parts = self.accumulate * self.world
        if self.batch_size < 1 or self.batch_size % parts:
            raise ValueError(
                f"a batch of {self.batch_size} does not divide into {self.accumulate} parts on {self.world} "
                f"ranks: pass --batch-size {max(1, round(self.batch_size / parts)) * parts}"
            )
        if self.count < 1:
            raise ValueError("there is no image to read")
        if not self.stream:
            whole_batches(self.count, self.batch_size, parts=parts)

    @property
    def micro_batch(self) -> int:
        """Images that one rank takes at a time."""
        return self.batch_size // (self.accumulate * self.world)

    def __len__(self) -> int:
        return max(0, self.total - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Item]]:
        passes: dict[int, NDArray[np.int64]] = {}
        for step in range(self.start, self.total):
            for part in range(self.accumulate):
                first = (part * self.world + self.rank) * self.micro_batch
                places = [self._place(step, row) for row in range(first, first + self.micro_batch)]
                for epoch in {epoch for epoch, _ in places} - passes.keys():
                    passes[epoch] = self.order(epoch)
                yield [self._item(epoch, int(passes[epoch][row])) for epoch, row in places]
                for past in [epoch for epoch in passes if epoch < places[0][0]]:
                    del passes[past]

    def order(self, epoch: int) -> NDArray[np.int64]:
        """A pass: numbers of images; copy k of image i, where a pass repeats it, is i + k * count."""
        return self.shuffled(epoch, self.count)

    def shuffled(self, epoch: int, count: int) -> NDArray[np.int64]:
        """The numbers up to `count`, in the order of this pass."""
        return numbers(self.seed, ORDER, Item(epoch, 0)).permutation(count)

    def _item(self, epoch: int, code: int) -> Item:
        copy, index = divmod(code, self.count)
        return Item(epoch + copy * COPY, index)

    def _place(self, step: int, row: int) -> tuple[int, int]:
        """Which pass, and where in it."""
        if self.stream:
            return divmod(step * self.batch_size + row, self.count)
        epoch, batch = divmod(step, self.count // self.batch_size)
        return epoch, batch * self.batch_size + row
