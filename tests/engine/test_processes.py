"""Real processes: killed at any moment, stopped twice, or two of them training together."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_task import ToyTask, batch_of, fresh, train

from boxwise.engine import checkpoint
from boxwise.engine.folder import read_json
from boxwise.engine.guard import Diverged
from boxwise.engine.metrics import read_rows
from processes import as_torchrun, finished, free_port, kill, save_slowly, until

TOTAL, HALF = 40, 2000
# A server that has imported torch forks each process in milliseconds; spawning one takes seconds.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["boxwise.engine.loop", "boxwise.engine.device", "lightning_fabric", "torch.utils.tensorboard"]
)


def process(target: Callable[..., None], *args: Any) -> BaseProcess:
    return context.Process(target=target, args=args)


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    started = process(target, *args)
    started.start()
    return started


def run(path: Path, resume: bool, pause: float) -> None:
    torch.set_num_threads(1)
    save_slowly(half=HALF, pause=0.05)
    task = ToyTask(fresh(), lambda step: time.sleep(pause))
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        train(path, task, total=TOTAL, resume=resume, save_every=6, log_every=4)


def state(path: Path) -> dict[str, Any]:
    loaded = checkpoint.load(path / "checkpoints" / f"step-{TOTAL:08d}.pt")
    momenta = {f"m{i}": s["momentum_buffer"] for i, s in loaded["optimiser"]["state"].items()}
    return loaded["module"] | momenta


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    path = tmp_path_factory.mktemp("calm") / "run"
    process = start(run, path, False, 0.0)
    process.join()
    assert process.exitcode == 0
    return path


def test_kill_9_at_any_moment_costs_no_bit(calm: Path, tmp_path: Path) -> None:
    """Before the first checkpoint, in the middle of a save, and at random; then on to the end."""
    path = tmp_path / "run"
    saves = path / "checkpoints"

    process = start(run, path, False, 0.02)
    until((path / "run.json").exists, process)
    kill(process)
    assert checkpoint.found(saves) == []

    for _ in range(2):
        process = start(run, path, True, 0.0)
        known = len(checkpoint.found(saves))
        until(lambda: any(p.stat().st_size == HALF for p in saves.glob("*.tmp")), process)
        kill(process)
        assert len(checkpoint.found(saves)) == known
        for left in saves.glob("*.tmp"):
            assert left.stat().st_size == HALF
        process = start(run, path, True, 0.0)
        until(lambda n=known: len(checkpoint.found(saves)) > n, process)
        kill(process)

    chance = random.Random(0)
    for _ in range(6):
        process = start(run, path, True, 0.01)
        time.sleep(chance.uniform(0.0, 0.5))
        kill(process)
        assert not (path / "run.json").exists() or read_json(path / "run.json")["status"] in (
            "running",
            "finished",
        )

    process = start(run, path, True, 0.0)
    process.join()
    assert process.exitcode == 0 and read_json(path / "run.json")["status"] == "finished"
    disturbed, undisturbed = state(path), state(calm)
    assert disturbed.keys() == undisturbed.keys() and len(disturbed) > 20
    for name, value in undisturbed.items():
        assert torch.equal(disturbed[name], value), name
    without_time = [
        [
            {k: v for k, v in row.items() if not k.startswith("time/")}
            for row in read_rows(p / "metrics.jsonl")
        ]
        for p in (path, calm)
    ]
    assert without_time[0] == without_time[1] and without_time[0][-1]["step"] == TOTAL
    assert list(saves.glob("*.tmp")) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_exit_codes(tmp_path: Path, number: int, code: int) -> None:
    path = tmp_path / "run"
    process = start(run, path, False, 0.01)
    until(lambda: (path / "metrics.jsonl").exists() and read_rows(path / "metrics.jsonl"), process)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code and read_json(path / "run.json")["status"] == "interrupted"
    assert (
        read_json(path / "run.json")["step"]
        == checkpoint.load(checkpoint.found(path / "checkpoints")[0])["step"]
    )


def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = start(run, path, False, 30.0)
    until(lambda: "started" in log.read_text() if (log := path / "train.log").exists() else False, process)
    until((path / "metrics.jsonl").exists, process)
    time.sleep(0.3)  # into the first step, which takes 30 seconds
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.2)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(5)
    assert process.exitcode == 130


def rank(path: Path, number: int, world: int, port: int, norm: bool, accumulate: int) -> None:
    """One process as torchrun starts it."""
    torch.set_num_threads(1)
    as_torchrun(number, world, port)
    with path.with_suffix(f".{number}.log").open("w") as log, contextlib.redirect_stderr(log):
        joint(path, norm, number, world, accumulate)


def joint(path: Path, norm: bool, number: int = 0, world: int = 1, accumulate: int = 1) -> None:
    """Trains on this rank's share of each joint batch, in float64 and without draws of its own."""

    def feed(first: int) -> Iterator[tuple[int, torch.Tensor]]:
        for step in range(first, 12):
            for part in batch_of(step, dtype=torch.float64).chunk(accumulate):
                yield step, part.chunk(world)[number]

    task = ToyTask(fresh(norm=norm, noise=0, push=False).double())
    train(path, task, total=12, feed=feed, sync_norm=norm, accumulate=accumulate, log_every=1, clip_norm=0.1)


@pytest.mark.parametrize(("norm", "accumulate"), [(True, 1), (False, 2)])
def test_two_ranks_equal_one_process_with_the_joint_batch(
    tmp_path: Path, norm: bool, accumulate: int
) -> None:
    """Breaks when gradients, losses, norms or BatchNorm are those of one rank's half of the batch."""
    one, two = tmp_path / "one", tmp_path / "two"
    joint(one, norm, accumulate=accumulate)
    port = free_port()
    finished([process(rank, two, number, 2, port, norm, accumulate) for number in range(2)], two)
    alone, together = (checkpoint.load(p / "checkpoints" / "step-00000012.pt") for p in (one, two))
    assert together["world"] == 2
    for name, value in alone["module"].items():
        torch.testing.assert_close(together["module"][name], value, rtol=1e-10, atol=1e-12)
    rows = [read_rows(p / "metrics.jsonl") for p in (one, two)]
    for a, b in zip(*rows, strict=True):
        for key in (
            "train/loss",
            "train/loss_near",
            "train/loss_far",
            "train/grad_norm",
            "train/ema_momentum",
        ):
            assert a[key] == pytest.approx(b[key], rel=1e-5)


def stumble(path: Path, number: int, port: int, how: str) -> None:
    """Two ranks of which the second meets a NaN, or a SIGTERM, at its fifth step."""
    torch.set_num_threads(1)
    as_torchrun(number, 2, port)
    module = fresh(norm=False)

    def before(step: int) -> None:
        if number == 1 and step == 4:
            if how == "nan":
                module.spoil = {"far": float("nan")}
            else:
                os.kill(os.getpid(), signal.SIGTERM)

    with path.with_suffix(f".{number}.log").open("w") as log, contextlib.redirect_stderr(log):
        try:
            train(path, ToyTask(module, before), total=12, log_every=6, save_every=100)
        except Diverged as error:
            print(error, file=log)
            raise SystemExit(3) from None


@pytest.mark.parametrize(("how", "code", "status"), [("nan", 3, "diverged"), ("term", 143, "interrupted")])
def test_what_befalls_one_rank_ends_all(tmp_path: Path, how: str, code: int, status: str) -> None:
    """Breaks when a rank goes on alone: the others would wait for it for ever."""
    path, port = tmp_path / "run", free_port()
    ranks = [start(stumble, path, number, port, how) for number in range(2)]
    for process in ranks:
        process.join(60)
    logs = [(tmp_path / f"run.{number}.log").read_text() for number in range(2)]
    assert [process.exitcode for process in ranks] == [code, code], logs
    assert read_json(path / "run.json")["status"] == status
    if how == "nan":
        assert all("step 5: loss term far is nan" in log for log in logs)
        assert checkpoint.found(path / "checkpoints") == []
    else:
        assert [p.name for p in checkpoint.found(path / "checkpoints")] == ["step-00000006.pt"]
