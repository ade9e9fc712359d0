"""Batches of samples for a training that passes over its images again and again, without a gap."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import distributed as dist

from boxwise.data.loader import Each, Sampler, load_all
from boxwise.engine.device import device_of
from boxwise.recipes.configuration import Trained
from boxwise.run.bad_images import BadImages

T = TypeVar("T")


def stream(
    make: Each[Any, T],
    recipe: Trained,
    bad: BadImages,
    *,
    count: int,
    total: int,
    kind: Callable[..., Sampler] = Sampler,
) -> Callable[[int], Iterable[T]]:
    """Batches of this rank, of `count` images, from any step up to `total`: what the engine asks for."""
    run = recipe.run

    def loads(start: int) -> Iterable[T]:
        met = dist.is_initialized()
        sampler = kind(
            count,
            run.batch_size,
            run.seed,
            start,
            total,
            run.accumulate,
            dist.get_rank() if met else 0,
            dist.get_world_size() if met else 1,
            stream=True,
        )
        return load_all(
            make,
            sampler,
            workers=recipe.data.workers,
            pin=device_of(run.device).type == "cuda",
            on_bad=bad.add,
        )

    return loads
