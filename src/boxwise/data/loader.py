"""Which image is read when, and how it reaches the training process: everything follows from (seed, epoch, image)."""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from boxwise.data.augment import NUMBERS, PhotoDraws, augment, draw_photo
from boxwise.data.cut import ViewSpec, cut_view, draw_cut
from boxwise.data.sources import BadImage, Images
from boxwise.geometry.views import Batch, View
from boxwise.shapes import Picture

T = TypeVar("T")
ORDER, VIEW, BAD = 1, 2, 3
"""Keep draws of the same seed, epoch and image apart."""
REPLACEMENTS = 32
"""Other images tried where one cannot be read."""


class Item(NamedTuple):
    """An image in one pass over the set."""

    epoch: int
    index: int


@dataclass(frozen=True, slots=True)
class Sampler:
    """The items of each micro-batch of one rank, from step `start` to `total`; a step has `accumulate` of them.

    Each pass is a permutation of its own. What is left of a pass after its last whole batch is dropped, or, as a
    `stream`, passes follow one another without a gap, and the set may be smaller than a batch. The ranks' and
    parts' items of a step are together the batch of a single process.
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
        if self.batch_size % (self.accumulate * self.world):
            raise ValueError(
                f"a batch of {self.batch_size} does not divide into {self.accumulate} parts on {self.world} ranks"
            )
        if self.count < 1:
            raise ValueError("there is no image to read")
        if not self.stream and self.count < self.batch_size:
            raise ValueError(
                f"{self.count} images are fewer than one batch of {self.batch_size}: add images, or pass "
                f"--batch-size {max(2, self.count // 2 * 2)}"
            )

    def __len__(self) -> int:
        return max(0, self.total - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Item]]:
        passes: dict[int, NDArray[np.int64]] = {}
        for step in range(self.start, self.total):
            places = [self._place(step, row) for row in range(self.batch_size)]
            passes = {epoch: passes.get(epoch, self._order(epoch)) for epoch in {p[0] for p in places}}
            items = [Item(epoch, int(passes[epoch][row])) for epoch, row in places]
            micro = self.batch_size // (self.accumulate * self.world)
            for part in range(self.accumulate):
                first = (part * self.world + self.rank) * micro
                yield items[first : first + micro]

    def _place(self, step: int, row: int) -> tuple[int, int]:
        if self.stream:
            return divmod(step * self.batch_size + row, self.count)
        epoch, batch = divmod(step, self.count // self.batch_size)
        return epoch, batch * self.batch_size + row

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch, ORDER]).permutation(self.count)


class Bad(NamedTuple):
    """A file that could not be read, and was replaced."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Load:
    """A micro-batch as a worker hands it over: bytes, geometry, and every draw as a number on the host."""

    batch: Batch
    """Views as cut, uint8, not yet mirrored."""
    photos: tuple[PhotoDraws, ...]
    specs: tuple[ViewSpec, ...]
    bad: tuple[Bad, ...]

    def ready(self, device: torch.device | str) -> Batch:
        """The batch as a method takes it: on `device`, augmented, normalised."""
        batch = self.batch.to(device)
        made = zip(batch.views, self.photos, self.specs, strict=True)
        return replace(batch, views=tuple(augment(view, draws, spec.photo) for view, draws, spec in made))

    def pin_memory(self) -> Load:
        """Called by torch's DataLoader. Photometric draws stay on the host, where they are read."""
        views = tuple(
            View(**{f.name: _pinned(getattr(v, f.name)) for f in fields(v)}) for v in self.batch.views
        )
        draws = {name: draw.pin_memory() for name, draw in self.batch.draws.items()}
        return replace(self, batch=Batch(views, self.batch.index.pin_memory(), draws))


@dataclass(frozen=True, slots=True)
class Cutter:
    """Worker side: a list of items to a Load. Each image is decoded once."""

    images: Images
    specs: tuple[ViewSpec, ...]
    draws: Mapping[str, tuple[int, ...]]
    seed: int
    bad_images: Literal["error", "skip"]

    def __call__(self, items: Sequence[Item]) -> Load:
        bad: list[Bad] = []
        pictures = [self._read(item, bad) for item in items]
        views, photos = zip(*(self._view(i, items, pictures) for i in range(len(self.specs))), strict=True)
        draws = {
            name: torch.stack([self._noise(item, zlib.crc32(name.encode()), shape) for item in items])
            for name, shape in self.draws.items()
        }
        index = torch.tensor([item.index for item in items])
        return Load(Batch(views, index, draws), photos, self.specs, tuple(bad))

    def _read(self, item: Item, bad: list[Bad]) -> Picture:
        """The picture, or where it cannot be read, another that the draw decides."""
        others = np.random.default_rng([self.seed, *item, BAD]).integers(len(self.images), size=REPLACEMENTS)
        for index in (item.index, *map(int, others)):
            try:
                return self.images.read(index)
            except BadImage as error:
                if self.bad_images == "error":
                    raise
                bad.append(Bad(self.images.name(index), error.reason))
        raise ValueError(
            f"{self.images.name(item.index)} and {REPLACEMENTS} images drawn in its place cannot be read "
            f"({bad[0].reason}): remove the bad files, or look whether the folder is the right one"
        )

    def _view(self, i: int, items: Sequence[Item], pictures: Sequence[Picture]) -> tuple[View, PhotoDraws]:
        crop = self.specs[i].crop
        cuts, pixels, noise = [], [], []
        for item, picture in zip(items, pictures, strict=True):
            rng = np.random.default_rng([self.seed, *item, VIEW, i])
            noise.append(rng.random(NUMBERS, dtype=np.float32))
            cut = draw_cut(rng, crop, width=picture.shape[2], height=picture.shape[1])
            cuts.append(cut)
            pixels.append(cut_view(picture, cut, crop))
        boxes = torch.tensor([cut.box for cut in cuts], dtype=torch.float32)
        view = View(torch.stack(pixels), boxes, torch.tensor([cut.flip for cut in cuts]))
        return view, draw_photo(torch.from_numpy(np.stack(noise)), self.specs[i].photo)

    def _noise(self, item: Item, use: int, shape: tuple[int, ...]) -> Tensor:
        rng = np.random.default_rng([self.seed, *item, use])
        return torch.from_numpy(np.asarray(rng.random(shape, dtype=np.float32)))


@dataclass(frozen=True, slots=True)
class Each(Generic[T]):
    """Worker side: a list of items to a collated batch, item by item."""

    sample: Callable[[int, int], T]
    """(index, epoch) to one sample."""
    collate: Callable[[Sequence[T]], Any]

    def __call__(self, items: Sequence[Item]) -> Any:
        return self.collate([self.sample(item.index, item.epoch) for item in items])


@dataclass(frozen=True, slots=True)
class _Dataset:
    """Any function of a list of items, as torch's DataLoader wants it."""

    make: Callable[[Sequence[Item]], Any]

    def __getitem__(self, items: Sequence[Item]) -> Any:
        return self.make(items)


def load_all(
    make: Callable[[Sequence[Item]], Any],
    sampler: Sampler,
    *,
    workers: int | None = None,
    pin: bool = False,
    start_method: Literal["fork", "spawn", "forkserver"] | None = None,
) -> DataLoader[Any]:
    """What `make` makes of each list of items of `sampler`, made by `workers` processes ahead of time.

    One pass from start to total: workers never wait for the end of an epoch. They end when their parent does.
    """
    workers = default_workers(pin) if workers is None else workers
    return DataLoader(
        _Dataset(make),  # type: ignore[arg-type]
        batch_size=None,
        sampler=sampler,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_begin if workers else None,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=start_method if workers else None,
    )


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
    start_method: Literal["fork", "spawn", "forkserver"] | None = None,
) -> DataLoader[Load]:
    """Loads of views for pretraining, one per micro-batch of this rank."""
    sampler = Sampler(len(images), batch_size, seed, start, total, accumulate, rank, world)
    cutter = Cutter(images, views, dict(draws), seed, bad_images)
    return load_all(cutter, sampler, workers=workers, pin=pin, start_method=start_method)


def default_workers(for_gpu: bool) -> int:
    """Processes that help: a GPU's host decodes on all its cores, a CPU that trains spares one in four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16) if for_gpu else min(max(1, cores // 4), cores - 1)


def _begin(worker: int) -> None:
    """One thread a worker; Ctrl-C is for the parent, which still wants batches until its checkpoint is written."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _pinned(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.pin_memory()
