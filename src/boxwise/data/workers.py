"""Processes that make batches ahead of time, and end when the training process does, however it ends."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch.utils.data import DataLoader

from boxwise.data.cores import cores
from boxwise.data.decode import BadImage
from boxwise.data.order import OTHER, Item, numbers

T = TypeVar("T")
StartMethod = Literal["fork", "spawn", "forkserver"]
AHEAD, AHEAD_BYTES = 4, 2**30
"""Batches that each worker holds ready, and what they may take together."""
POLL, GRACE = 0.5, 20.0
"""Seconds between two looks at the parent, and that a worker goes on after SIGTERM from another process: stopped as
a group, the trainer still wants its batch, then saves."""
TELLS = hasattr(signal, "sigtimedwait")
"""Whether the system says who sent a signal."""
REPLACEMENTS = 32
"""Other images tried where one cannot be read."""


@dataclass(frozen=True, slots=True)
class Bad:
    """An image that could not be read, and was replaced."""

    index: int
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What becomes of an item whose file cannot be read: an end with one sentence, or another image."""

    bad_images: Literal["error", "skip"]
    count: int
    """Images in the set."""
    seed: int

    def read(self, item: Item, read: Callable[[int], T], bad: list[Bad]) -> tuple[int, T]:
        """What `read` gives for the item's image, or for the first readable of those that its draw names."""
        try:
            return item.index, read(item.index)
        except BadImage as error:
            if self.bad_images == "error":
                raise
            first = error
            bad.append(Bad(item.index, str(error.path), error.reason))
        for other in numbers(self.seed, OTHER, item).integers(self.count, size=REPLACEMENTS).tolist():
            try:
                return other, read(other)
            except BadImage as error:
                bad.append(Bad(other, str(error.path), error.reason))
        raise BadImage(
            first.path, f"{first.reason}; nor could {REPLACEMENTS} images drawn in its place be read"
        )


class Tally:
    """The bad images of a run, each counted once. Raises ValueError when they are more than `limit` of the set."""

    def __init__(self, count: int, *, limit: float = 0.05) -> None:
        self.count, self.limit = count, limit
        self.found: dict[int, Bad] = {}

    def add(self, bad: Sequence[Bad]) -> list[Bad]:
        """Those that were not known yet."""
        new = {b.index: b for b in bad if b.index not in self.found}
        self.found |= new
        if len(self.found) > self.limit * self.count:
            last = [*self.found.values()][-1]
            raise ValueError(
                f"{len(self.found)} of {self.count} images cannot be read, more than {self.limit:.0%} (such as "
                f"{last.path}: {last.reason}): remove the bad files, or look whether --data is the right place"
            )
        return [*new.values()]


@runtime_checkable
class Plan(Protocol):
    """The items of each batch, in the order of the batches."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[list[Item]]: ...


class Ahead(Generic[T]):
    """What `make` makes of each list of items of `sampler`, in that order.

    `make` appends the images that it had to replace to the list it is given; `on_bad` hears of them when their
    batch is handed over. One pass from start to total, so workers never wait for the end of an epoch. A BadImage
    is raised as in this process, with its path.
    """

    def __init__(
        self,
        make: Callable[[Sequence[Item], list[Bad]], T],
        sampler: Plan,
        *,
        workers: int,
        pin: bool = False,
        start_method: StartMethod | None = None,
        batch_bytes: int | None = None,
        on_bad: Callable[[Sequence[Bad]], object] | None = None,
    ) -> None:
        self.sampler, self.on_bad = sampler, on_bad
        self._loader: DataLoader[tuple[T, tuple[Bad, ...]] | _Refused] = DataLoader(
            _Dataset(make),  # type: ignore[arg-type]
            batch_size=None,
            sampler=sampler,
            collate_fn=_as_made,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=_begin if workers else None,
            prefetch_factor=_ahead(workers, batch_bytes) if workers else None,
            multiprocessing_context=start_method if workers else None,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[T]:
        with _undisturbed():
            loads = iter(self._loader)  # starts the workers
        for made in loads:
            if isinstance(made, _Refused):
                raise BadImage(made.path, made.reason)
            batch, bad = made
            if bad and self.on_bad is not None:
                self.on_bad(bad)
            yield batch


def default_workers(for_gpu: bool, *, world: int = 1) -> int:
    """Processes that help: a GPU's host decodes on all its cores, a CPU that trains spares one in four.

    The ranks on this machine share its cores.
    """
    ranks = min(world, max(1, torch.cuda.device_count())) if for_gpu else world
    share = max(1, cores() // ranks)
    return min(share, 16) if for_gpu else min(max(1, share // 4), share - 1)


class _Refused(NamedTuple):
    """Travels instead of the exception, which torch would wrap in a worker's traceback."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Dataset(Generic[T]):
    make: Callable[[Sequence[Item], list[Bad]], T]

    def __getitem__(self, items: Sequence[Item]) -> tuple[T, tuple[Bad, ...]] | _Refused:
        bad: list[Bad] = []
        try:
            return self.make(items, bad), tuple(bad)
        except BadImage as error:
            return _Refused(str(error.path), error.reason)


def _as_made(made: T) -> T:
    """torch's own turns arrays into tensors, each of which takes a file handle on its way."""
    return made


def _ahead(workers: int, batch_bytes: int | None) -> int:
    """Batches per worker. Raises ValueError where shared memory is too small, instead of a bus error later."""
    if batch_bytes is None:
        return 2
    room, shared = AHEAD_BYTES, Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        if free < workers * batch_bytes:
            raise ValueError(
                f"{workers} workers need {workers * batch_bytes >> 20} MiB of shared memory, {shared} has "
                f"{free >> 20}: enlarge it (docker run --shm-size), or pass fewer --workers (0 needs none)"
            )
        room = min(room, free // 2)
    return max(1, min(AHEAD, room // (workers * batch_bytes)))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Holds SIGTERM and Ctrl-C back in this thread, and in every thread of the processes that it starts meanwhile.

    A worker cannot hold them back by itself: torch starts threads there before `_begin` is called, and a signal
    takes any thread that lets it in.
    """
    if not TELLS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(worker: int) -> None:
    """One thread a worker. Ctrl-C is for the parent, which still wants its batch and then saves. SIGTERM, which
    `_undisturbed` holds back, is left to the thread."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()


def begin_helper() -> None:
    """What a process of a pool does first, to be as quiet and as mortal as a worker."""
    _begin(0)


def _follow_parent(parent: int) -> None:
    """Ends this process when its parent is gone or says so, or a while after another process says so.

    torch's own watch looks every five seconds, and only where a worker waits for work. The exit is always clean:
    torch raises an error in a parent whose worker fails, in the middle of whatever it does.
    """
    process, last = multiprocessing.parent_process(), math.inf
    parents = {parent} if process is None else {parent, process.pid}  # two under a fork server
    while os.getppid() == parent and (process is None or process.is_alive()) and time.monotonic() < last:
        if TELLS:
            told = signal.sigtimedwait({signal.SIGTERM}, POLL)
            if told is not None and told.si_pid in parents:
                break
            last = min(last, time.monotonic() + GRACE) if told is not None else last
        else:
            time.sleep(POLL)
    os._exit(0)
