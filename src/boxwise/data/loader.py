"""From image files to batches of views, made ahead of time: every draw is a function of (seed, epoch, image, view)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from boxwise.data.augment import NUMBERS
from boxwise.data.auto_augment import auto_augmented
from boxwise.data.cut import Cut, ViewSpec, cut_view, draw_cuts
from boxwise.data.loads import CutViews, Load
from boxwise.data.objects import USE, Known, Objects, Proposer, draw_objects, stacked
from boxwise.data.order import NAMED, VIEW, Item, Sampler, numbers
from boxwise.data.paste import Pasting, refuse_too_few
from boxwise.data.sources import Images
from boxwise.data.workers import Ahead, Bad, Policy, StartMethod, Tally, default_workers
from boxwise.shapes import Picture

__all__ = [
    "Bad",
    "Cutter",
    "Each",
    "Item",
    "Load",
    "Policy",
    "Sampler",
    "Tally",
    "default_workers",
    "feed",
    "load_all",
]

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cutter:
    """Worker side: a list of items to their views. Each picture is decoded once, and forgotten once it is cut."""

    images: Images
    specs: tuple[ViewSpec, ...]
    draws: Mapping[str, tuple[int, ...]]
    seed: int
    bad_images: Literal["error", "skip"]
    objects: Objects | None = None
    proposals: Proposer | None = None
    """Where the boxes of `objects` come from."""

    def __call__(self, items: Sequence[Item], bad: list[Bad]) -> CutViews:
        policy = Policy(self.bad_images, len(self.images), self.seed)
        shape, crops = (len(self.specs), len(items)), [spec.crop for spec in self.specs]
        pixels = tuple(_room(len(items), crop.size) for crop in crops)
        crop, flip = np.empty((*shape, 4), dtype=np.float32), np.empty(shape, dtype=np.bool_)
        noise, source = np.empty((*shape, NUMBERS), dtype=np.float32), np.empty(len(items), dtype=np.int64)
        known, pasting = [], Pasting(self.specs, len(items))
        for row, item in enumerate(items):
            source[row], picture = policy.read(item, self.images.read, bad)
            rngs = [numbers(self.seed, VIEW + i, item) for i in range(len(self.specs))]
            for i, rng in enumerate(rngs):
                noise[i, row] = rng.random(NUMBERS, dtype=np.float32)
            cuts, seen = self._cuts(item, rngs, int(source[row]), picture)
            known.append(seen)
            pasting.add(row, picture, cuts, rngs)
            for i, cut in enumerate(cuts):
                crop[i, row], flip[i, row] = cut.box, cut.flip
                if i in pasting.specs:
                    crop[i, row] = (0, 0, crops[i].size, crops[i].size)
                    continue
                part = cut_view(picture, cut, crops[i])
                pixels[i][row] = auto_augmented(part, rngs[i]) if self.specs[i].auto_augment else part
        pasting.compose(pixels, source)
        draws = {name: self._draw(name, size, items) for name, size in self.draws.items()}
        return CutViews(pixels, crop, flip, noise, source, draws, tuple(bad), stacked(known), pasting.boxes)

    def _cuts(
        self, item: Item, rngs: Sequence[np.random.Generator], index: int, picture: Picture
    ) -> tuple[list[Cut], list[Known]]:
        """Where the views of image number `index` are cut, and the objects that each knows, if any are to be known."""
        height, width = picture.shape[1:]
        draw = partial(draw_cuts, rngs, [spec.crop for spec in self.specs], width=width, height=height)
        if self.objects is None:
            return draw(), []
        assert self.proposals is not None, "objects are chosen from proposals"
        rng, proposed = numbers(self.seed, USE, item), self.proposals.boxes(index)
        crops = [spec.crop for spec in self.specs]
        return draw_objects(rng, draw, crops, proposed, self.objects, width=width, height=height)

    def batch_bytes(self, count: int) -> int:
        """What a batch of `count` images takes in shared memory."""
        views = sum(3 * spec.crop.size**2 for spec in self.specs)
        return count * (views + 4 * sum(int(np.prod(size)) for size in self.draws.values()))

    def _draw(self, name: str, size: tuple[int, ...], items: Sequence[Item]) -> Tensor:
        use = NAMED + zlib.crc32(name.encode())
        rows = [numbers(self.seed, use, item).random(size or 1, dtype=np.float32) for item in items]
        return torch.from_numpy(np.stack(rows).reshape(len(items), *size))


def _room(count: int, side: int) -> UInt8[Tensor, "B 3 S S"]:
    """In the order in memory of what is put into it."""
    shape = (count, 3, side, side)
    return torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True)
class Each(Generic[S, T]):
    """Worker side: a list of items to a collated batch, sample by sample."""

    sample: Callable[[int, int], S]
    """(index, epoch) to one sample."""
    collate: Callable[[Sequence[S]], T]
    policy: Policy | None = None
    """What becomes of images that cannot be read; none: an error."""

    def __call__(self, items: Sequence[Item], bad: list[Bad]) -> T:
        return self.collate([self._sample(item, bad) for item in items])

    def _sample(self, item: Item, bad: list[Bad]) -> S:
        if self.policy is None:
            return self.sample(item.index, item.epoch)
        return self.policy.read(item, lambda index: self.sample(index, item.epoch), bad)[1]


def load_all(
    make: Each[S, T],
    sampler: Sampler,
    *,
    workers: int | None = None,
    pin: bool = False,
    start_method: StartMethod | None = None,
    on_bad: Callable[[Sequence[Bad]], object] | None = None,
) -> Ahead[T]:
    """Batches of samples, for detectors."""
    workers = default_workers(pin, world=sampler.world) if workers is None else workers
    return Ahead(make, sampler, workers=workers, pin=pin, start_method=start_method, on_bad=on_bad)


@dataclass(frozen=True, slots=True)
class Feed:
    """Loads of views for pretraining, one per micro-batch of this rank."""

    made: Ahead[CutViews]
    specs: tuple[ViewSpec, ...]

    def __len__(self) -> int:
        return len(self.made)

    def __iter__(self) -> Iterator[Load]:
        return (views.load(self.specs) for views in self.made)


def feed(
    images: Images,
    views: tuple[ViewSpec, ...],
    draws: Mapping[str, tuple[int, ...]],
    *,
    batch_size: int,
    accumulate: int = 1,
    seed: int,
    start: int,
    total: int,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
    bad_images: Literal["error", "skip"] = "skip",
    pin: bool = False,
    start_method: StartMethod | None = None,
    objects: Objects | None = None,
    proposals: Proposer | None = None,
) -> Feed:
    """Loads of the steps `start` to `total`, `accumulate` each; `batch_size` counts all ranks and parts.

    With `objects`, views know boxes that are chosen from `proposals`.

    Raises ValueError with the mend where images are fewer than a batch, or shared memory is too small for the
    workers; while read, BadImage under the policy "error", or when replacements cannot be read either.
    """
    sampler = Sampler(len(images), batch_size, seed, start, total, accumulate, rank, world)
    refuse_too_few(views, sampler.micro_batch, accumulate * world)
    workers = default_workers(pin, world=world) if workers is None else workers
    cutter = Cutter(images, views, dict(draws), seed, bad_images, objects, proposals)
    room = cutter.batch_bytes(sampler.micro_batch)
    return Feed(
        Ahead(cutter, sampler, workers=workers, pin=pin, start_method=start_method, batch_bytes=room), views
    )
