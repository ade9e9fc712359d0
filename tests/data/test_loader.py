"""Which image is read when, by whom, and what happens when a file is bad or the trainer dies."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from boxwise.data import workers as workers_module
from boxwise.data.augment import Photo
from boxwise.data.cut import Crop, ViewSpec
from boxwise.data.decode import BadImage
from boxwise.data.loader import Bad, Each, Item, Load, Sampler, Tally, default_workers, feed, load_all
from boxwise.data.sources import Files, open_images
from boxwise.data.workers import Policy

SPECS = (
    ViewSpec(crop=Crop(size=32)),
    ViewSpec(crop=Crop(size=48, interpolation="bicubic"), photo=Photo(blur_kind="gauss23", solarize=0.2)),
)
DRAWS = {"boxes": (4, 3), "order": ()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 pictures of noise, each of its own size."""
    folder = tmp_path_factory.mktemp("photos")
    dice = np.random.default_rng(0)
    for i in range(22):
        pixels = dice.integers(0, 256, (40 + i, 90 - 2 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png", compress_level=1)
    return folder


def loads(images: Files, **changes: object) -> list[Load]:
    options = {"batch_size": 8, "accumulate": 1, "seed": 7, "start": 0, "total": 5, "workers": 0} | changes
    return list(feed(images, SPECS, DRAWS, **options))  # type: ignore[arg-type]


def tensors(batch: Load) -> list[Tensor]:
    views = [t for v in batch.batch.views for t in (v.image, v.crop, v.flip)]
    photos = [getattr(p, name) for p in batch.photos for name in p.__slots__]
    return [*views, *photos, batch.batch.index, *batch.batch.draws.values()]


def same(a: Iterable[Load], b: Iterable[Load]) -> bool:
    return all(
        torch.equal(s, t)
        for x, y in zip(a, b, strict=True)
        for s, t in zip(tensors(x), tensors(y), strict=True)
    )


def joined(parts: Sequence[Load]) -> list[Tensor]:
    return [torch.cat(column) for column in zip(*map(tensors, parts), strict=True)]


def test_a_load_holds_what_the_settings_say(photos: Path) -> None:
    """Breaks when a view has another's size, or draws have other shapes than a method declared."""
    first = loads(open_images(photos))[0]
    assert [v.image.shape for v in first.batch.views] == [(8, 3, 32, 32), (8, 3, 48, 48)]
    assert {name: draw.shape for name, draw in first.batch.draws.items()} == {
        "boxes": (8, 4, 3),
        "order": (8,),
    }
    assert all(draw.min() >= 0 and draw.max() < 1 for draw in first.batch.draws.values())
    assert not torch.equal(first.batch.draws["boxes"][:, 0, 0], first.batch.draws["order"])
    assert not torch.equal(first.batch.views[0].crop, first.batch.views[1].crop)
    assert not torch.equal(first.photos[0].factors, first.photos[1].factors)
    ready = first.ready("cpu")
    assert [v.image.dtype for v in ready.views] == [torch.float32] * 2
    assert torch.equal(ready.views[1].crop, first.batch.views[1].crop)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_change_nothing(photos: Path, start_method: str) -> None:
    """Breaks when a draw depends on the process that makes it, or batches arrive out of order."""
    images = open_images(photos)
    assert same(loads(images), loads(images, workers=2, start_method=start_method))


def test_only_pictures_and_a_methods_draws_take_file_handles(photos: Path) -> None:
    """Each tensor of a worker takes one; breaks where 16 workers with batches ahead pass a limit of 1024."""
    made = feed(open_images(photos), SPECS, DRAWS, batch_size=8, seed=7, start=0, total=1, workers=1).made
    for views in made:
        assert all(
            isinstance(part, np.ndarray) for part in (views.crop, views.flip, views.noise, views.source)
        )
        assert len(views.pixels) + len(views.draws) == 4


def test_any_step_can_be_the_first(photos: Path) -> None:
    """Resuming: breaks when a draw depends on what was drawn before. Steps 0 to 6 cross three epochs."""
    images = open_images(photos)
    whole = loads(images, total=7, accumulate=2)
    for start in (1, 2, 5, 6):
        assert same(loads(images, total=7, accumulate=2, start=start), whole[2 * start :])
    assert loads(images, total=7, start=7) == []


@pytest.mark.parametrize(("accumulate", "world"), [(2, 1), (1, 4), (2, 2)])
def test_ranks_and_parts_together_are_the_single_batch(photos: Path, accumulate: int, world: int) -> None:
    """Breaks when ranks read the same images, leave some out, or draw by their place in the batch."""
    images = open_images(photos)
    whole = loads(images)
    ranks = [loads(images, accumulate=accumulate, world=world, rank=rank) for rank in range(world)]
    for step, expected in enumerate(whole):
        parts = [ranks[r][step * accumulate + part] for part in range(accumulate) for r in range(world)]
        assert all(torch.equal(s, t) for s, t in zip(joined(parts), tensors(expected), strict=True))


def test_each_pass_and_each_seed_has_its_own_order_and_draws(photos: Path) -> None:
    """Breaks when every epoch shows the same crops, or the seed is left out of one of the draws."""
    images = open_images(photos)
    first, second = (
        loads(images, total=2),
        loads(images, start=2, total=4),
    )  # two batches of 8 make a pass of 22
    rows = {int(i): n for n, i in enumerate(torch.cat([x.batch.index for x in first]))}
    again = [int(i) for i in torch.cat([x.batch.index for x in second])]
    assert list(rows) != again
    before, after = joined(first), joined(second)
    shared = [i for i in again if i in rows]
    assert shared
    for i in shared:
        assert not torch.equal(before[1][rows[i]], after[1][again.index(i)])  # crops of view 0
        assert not torch.equal(before[-2][rows[i]], after[-2][again.index(i)])  # the method's boxes
    other = joined(loads(images, total=2, seed=8))
    assert not torch.equal(other[-3], before[-3])
    assert not set(other[-2].flatten().tolist()) & set(before[-2].flatten().tolist())


def items(**options: int | bool) -> list[list[Item]]:
    return list(Sampler(**{"count": 22, "batch_size": 5, "seed": 3, "start": 0, "total": 9} | options))  # type: ignore[arg-type]


def test_a_pass_shows_each_image_once_and_drops_what_makes_no_batch() -> None:
    steps = items()
    assert [sorted({item.epoch for item in step}) for step in steps] == [[0]] * 4 + [[1]] * 4 + [[2]]
    for epoch in (0, 1):
        seen = [item.index for step in steps for item in step if item.epoch == epoch]
        assert len(seen) == 20 == len(set(seen)) and set(seen) <= set(range(22))


def test_a_stream_drops_nothing_and_passes_follow_without_a_gap() -> None:
    """For few labels; breaks when a set smaller than a batch is refused, or an image comes twice in a pass."""
    flat = [item for step in items(stream=True) for item in step]
    assert [item.epoch for item in flat] == [n // 22 for n in range(45)]
    assert {item.index for item in flat[:22]} == set(range(22)) == {item.index for item in flat[22:44]}
    tiny = items(stream=True, count=3, total=2)
    assert [item.epoch for item in tiny[0]] == [0, 0, 0, 1, 1]
    assert items(stream=True, start=4) == items(stream=True)[4:]


def test_the_sampler_says_how_long_it_is() -> None:
    sampler = Sampler(count=22, batch_size=6, seed=0, start=2, total=7, accumulate=3, rank=1, world=2)
    assert len(sampler) == 15 == len(list(sampler))
    assert {len(part) for part in sampler} == {1}


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ({"count": 22, "batch_size": 64}, r"22 images are fewer than one batch of 64: .*--batch-size 22"),
        ({"count": 9, "batch_size": 16, "accumulate": 2, "world": 2}, "--batch-size 8"),
        (
            {"count": 22, "batch_size": 6, "world": 4},
            r"does not divide into 1 parts on 4 ranks: .*--batch-size 8",
        ),
        ({"count": 0, "batch_size": 1}, "no image"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_with_one_that_can(options: dict[str, int], mend: str) -> None:
    with pytest.raises(ValueError, match=mend):
        Sampler(seed=0, start=0, total=1, **options)


def test_feed_refuses_at_once_not_at_the_first_batch(photos: Path) -> None:
    with pytest.raises(ValueError, match="fewer than one batch of 64"):
        feed(open_images(photos), SPECS, DRAWS, batch_size=64, seed=0, start=0, total=1, workers=0)


@pytest.fixture
def spoilt(photos: Path, tmp_path: Path) -> Files:
    """The same pictures; numbers 4 and 15 are cut short."""
    for file in photos.iterdir():
        data = file.read_bytes()
        cut = int(file.stem) in (4, 15)
        (tmp_path / file.name).write_bytes(data[: len(data) // 3] if cut else data)
    return open_images(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_replaced_by_their_draw_and_told(
    photos: Path, spoilt: Files, workers: int
) -> None:
    """Breaks when a replacement depends on the process, moves its neighbours, or goes untold."""
    clean, patched = loads(open_images(photos), total=4), loads(spoilt, total=4, workers=workers)
    told: set[int] = set()
    for want, have in zip(clean, patched, strict=True):
        bad = torch.isin(want.batch.index, torch.tensor([4, 15]))
        told |= {b.index for b in have.bad}
        assert {b.index for b in have.bad} >= set(want.batch.index[bad].tolist())
        assert not torch.isin(have.batch.index, torch.tensor([4, 15])).any()
        assert torch.equal(have.batch.index[~bad], want.batch.index[~bad])
        for x, y in zip(have.batch.views, want.batch.views, strict=True):
            assert torch.equal(x.image[~bad], y.image[~bad])
        for x, y in zip(have.batch.draws.values(), want.batch.draws.values(), strict=True):
            assert torch.equal(x, y)  # draws belong to the item, whatever stands in
        for b in have.bad:
            assert b.path.endswith(f"{b.index:02}.png") and "damaged or cut short" in b.reason
    assert told == {4, 15}
    assert same(patched, loads(spoilt, total=4))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_policy_ends_with_one_sentence(spoilt: Files, workers: int) -> None:
    """Breaks when a worker's traceback reaches the user, or the path is lost."""
    with pytest.raises(BadImage) as error:
        loads(spoilt, total=2, workers=workers, bad_images="error")
    assert error.value.path.stem in ("04", "15") and error.value.path.is_file()
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


def test_nothing_readable_ends_at_once(photos: Path) -> None:
    """Breaks when a set that went bad is drawn from for ever."""

    @dataclass
    class Gone:
        images: Files

        def __len__(self) -> int:
            return len(self.images)

        def read(self, index: int) -> Tensor:
            raise BadImage(self.images.path(index), "no such file")

        def name(self, index: int) -> str:
            return self.images.name(index)

        def fingerprint(self) -> str:
            return self.images.fingerprint()

    with pytest.raises(BadImage, match="nor could 32 images drawn in its place be read"):
        loads(Gone(open_images(photos)))  # type: ignore[arg-type]


def test_a_tally_counts_each_bad_image_once_and_stops_above_its_share() -> None:
    tally = Tally(100)
    bad = [Bad(i, f"{i}.jpg", "cut short") for i in range(6)]
    assert tally.add(bad[:3]) == bad[:3]
    assert tally.add(bad[1:5]) == bad[3:5]
    assert len(tally.found) == 5  # 5 % is still allowed
    with pytest.raises(ValueError, match=r"6 of 100 images cannot be read, more than 5%.*5\.jpg: cut short"):
        tally.add(bad)


def _sample(index: int, epoch: int) -> tuple[int, int]:
    if index == 2:
        raise BadImage("two.jpg", "empty file")
    return index, epoch


def test_samples_for_detectors_come_collated_in_order() -> None:
    """Breaks when index and epoch are swapped, or a skipped sample is not replaced and told."""
    sampler = Sampler(count=5, batch_size=4, seed=1, start=0, total=3, stream=True)
    told: list[Bad] = []
    make = Each(_sample, tuple, Policy("skip", count=5, seed=1))
    batches = list(load_all(make, sampler, workers=0, on_bad=told.extend))
    for batch, wanted in zip(batches, sampler, strict=True):
        for (index, epoch), item in zip(batch, wanted, strict=True):
            assert epoch == item.epoch
            assert index == item.index if item.index != 2 else index != 2
    assert {b.index for b in told} == {2} and told[0].path == "two.jpg"
    with pytest.raises(BadImage, match=r"two\.jpg: empty file"):
        list(load_all(Each(_sample, tuple), sampler, workers=0))


def _broken(index: int, epoch: int) -> int:
    return [0, 1][index]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_ours_keeps_its_traceback(workers: int) -> None:
    """Breaks when the way that bad images take swallows where a bug is."""
    sampler = Sampler(count=9, batch_size=9, seed=0, start=0, total=1)
    with pytest.raises(IndexError) as error:
        list(load_all(Each(_broken, tuple), sampler, workers=workers))
    assert "_broken" in str(error.value) or any("_broken" in str(t) for t in error.traceback)


def test_too_little_shared_memory_is_said_before_the_start(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container of 64 MB a worker otherwise dies of a bus error."""
    usage = workers_module.shutil.disk_usage("/")._replace(free=2**15)
    monkeypatch.setattr(workers_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"2 workers need .*--shm-size.*--workers"):
        loads(open_images(photos), workers=2)
    assert len(loads(open_images(photos), workers=0, total=1)) == 1


def test_batches_ahead_fit_their_bytes() -> None:
    assert workers_module._ahead(4, 2**20) == workers_module.AHEAD
    assert workers_module._ahead(8, 2**26) == 2
    assert workers_module._ahead(16, 2**22) >= 1


def test_workers_by_default_leave_room_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, alone, gpu, four in ((1, 0, 1, 0), (2, 1, 2, 0), (8, 2, 8, 1), (64, 16, 16, 4)):
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)), raising=False
        )
        assert default_workers(False) == alone
        assert default_workers(True) == gpu
        assert default_workers(False, world=4) == four


TRAINER = """
    import multiprocessing, sys, time
    from boxwise.data.cut import Crop, ViewSpec
    from boxwise.data.loader import feed
    from boxwise.data.sources import open_images

    if __name__ == "__main__":
        specs = (ViewSpec(crop=Crop(size=32)),)
        draws = {"many": (3000,)}
        made = feed(open_images(sys.argv[1]), specs, draws, batch_size=8, seed=0, start=0, total=10**6,
                    workers=2, start_method=sys.argv[2])
        iterator = iter(made)
        next(iterator)
        print(*[p.pid for p in multiprocessing.active_children()], flush=True)
        while True:
            time.sleep(1) if sys.argv[3] == "waits" else next(iterator)
"""


def alive(pid: int) -> bool:
    """A process that is neither gone nor dead and waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize(("start_method", "mood"), [("fork", "waits"), ("spawn", "reads")])
def test_a_killed_trainer_leaves_no_orphans(
    photos: Path, tmp_path: Path, start_method: str, mood: str
) -> None:
    """kill -9 while workers wait to hand over (nobody reads), and while they work."""
    script = tmp_path / "trainer.py"
    script.write_text(textwrap.dedent(TRAINER))
    trainer = subprocess.Popen(
        [sys.executable, str(script), str(photos), start_method, mood], stdout=subprocess.PIPE, text=True
    )
    try:
        assert trainer.stdout is not None
        pids = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        time.sleep(0.5)
    finally:
        trainer.kill()
        trainer.wait()
    deadline = time.monotonic() + 4
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of POSIX")
def test_workers_outlast_a_signal_to_the_group(photos: Path) -> None:
    """A cluster stops every process at once; the trainer must still get the batch it waits for, then save."""
    made = iter(
        feed(
            open_images(photos),
            SPECS,
            DRAWS,
            batch_size=8,
            seed=7,
            start=0,
            total=40,
            workers=2,
            start_method="fork",
        )
    )
    next(made)
    children = [p.pid for p in multiprocessing.active_children()]
    for name in ("-INT", "-TERM"):
        subprocess.run(["kill", name, *map(str, children)], check=True)
    assert len(list(made)) == 39


ENDING = """
    import sys
    from boxwise.data.cut import Crop, ViewSpec
    from boxwise.data.loader import feed
    from boxwise.data.sources import open_images

    specs = (ViewSpec(crop=Crop(size=32)),)
    made = feed(open_images(sys.argv[1]), specs, {}, batch_size=8, seed=0, start=0, total=10**6, workers=2,
                start_method="fork")
    iterator = iter(made)
    next(iterator)
    print("read", flush=True)
    raise ValueError("something went wrong")
"""


def test_a_trainer_that_fails_ends_soon(photos: Path, tmp_path: Path) -> None:
    """Breaks when workers that outlast signals make their own parent wait."""
    script = tmp_path / "ending.py"
    script.write_text(textwrap.dedent(ENDING))
    trainer = subprocess.Popen(
        [sys.executable, str(script), str(photos)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None and trainer.stdout.readline() == "read\n"
    start = time.monotonic()
    assert "something went wrong" in trainer.communicate(timeout=60)[1]
    assert time.monotonic() - start < 15 and trainer.returncode == 1
