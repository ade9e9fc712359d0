"""One image's boxes, and many images' on many cores."""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress

import numpy as np

from boxwise.data.decode import BadImage, decode
from boxwise.data.proposal_parts import Made
from boxwise.data.proposals import Stamp
from boxwise.data.propose import CocoBoxes, Generator
from boxwise.data.sources import Files
from boxwise.data.workers import begin_helper

ALONE = 16
"""Fewer images are not worth other processes."""
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
"""What glibc's malloc.h calls them."""
CHUNK, AHEAD = 4, 4
"""Images handed to a process at once, and such chunks per process that wait."""


def made_of(images: Files, todo: Sequence[int], generator: Generator, *, workers: int) -> Iterator[Made]:
    """The boxes of the images `todo`, in whatever order they are ready."""
    if workers <= 1 or len(todo) < ALONE or isinstance(generator, CocoBoxes):
        yield from (boxes_of(images, i, generator) for i in todo)
        return
    with _pool(images, generator, workers) as pool:
        chunks = (todo[k : k + CHUNK] for k in range(0, len(todo), CHUNK))
        waiting: set[Future[list[Made]]] = set()
        for chunk in chunks:
            waiting.add(pool.submit(_chunk, chunk))
            if len(waiting) >= AHEAD * workers:
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from _results(ready)
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from _results(ready)


def _results(ready: Iterable[Future[list[Made]]]) -> Iterator[Made]:
    for future in ready:
        yield from future.result()


@contextmanager
def _pool(images: Files, generator: Generator, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that are forked off one that has imported everything: of many cores, none waits for imports."""
    known = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    context.set_forkserver_preload([__name__, "skimage.segmentation", "scipy.ndimage"])
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(images, generator))
    try:
        yield pool
    except BrokenProcessPool:
        raise ValueError(
            "a process that proposes boxes was ended from outside, most likely for want of memory: pass fewer "
            "--workers; what is done stays done"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def keep_heap() -> None:
    """Lets glibc reuse the memory of one image's arrays for the next one's, which by default it maps and clears anew
    for each: a tenth of the segmentation's time. Elsewhere nothing happens."""
    with suppress(OSError, AttributeError, TypeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_THRESHOLD, 2**25)
        allocator.mallopt(M_TRIM_THRESHOLD, 2**28)


_work: tuple[Files, Generator] | None = None
"""What a process of the pool works on: sent once, not with every chunk."""


def _begin(images: Files, generator: Generator) -> None:
    global _work
    begin_helper()
    keep_heap()
    _work = (images, generator)


def _chunk(indices: Sequence[int]) -> list[Made]:
    assert _work is not None
    images, generator = _work
    return [boxes_of(images, i, generator) for i in indices]


def boxes_of(images: Files, index: int, generator: Generator) -> Made:
    """The boxes of one image; of one that cannot be read, the reason."""
    name, nothing = images.name(index), np.zeros((0, 4), dtype=np.int64)
    try:
        stamp = Stamp.of(images.path(index))
    except OSError:
        stamp = Stamp(-1, 0)
    try:
        picture = decode(images.path(index), max_value=images.max_value)
        height, width = picture.shape[1:]
        if isinstance(generator, CocoBoxes):
            generator = generator.turned(name, images.path(index), width, height)
    except BadImage as bad:
        return Made(name, stamp, 0, 0, nothing, bad.reason)
    pixels = picture.permute(1, 2, 0).contiguous().numpy()
    return Made(name, stamp, width, height, generator.rects(pixels, name))
