"""`boxwise pretrain` as a process: killed at any moment it goes on bit for bit; asked to stop it saves and says so."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killed import HALF, start
from tiny import facts, flags, photos, rows, settings

from boxwise.engine import checkpoint
from processes import kill, until

STEPS = 14
RECIPES = {"scrl": 0, "mocov2": 1}
"""A teacher and boxes, without workers; a queue, with one."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that cannot be read among them."""
    data = photos(tmp_path_factory.mktemp("images"), 22)
    (data / "004.png").write_bytes(b"")
    return data


def argv(recipe: str, data: Path, out: Path, *more: str) -> list[str]:
    given = settings(recipe, steps=STEPS, workers=RECIPES[recipe], **{"run.save_every": 3})
    return ["pretrain", recipe, "--data", str(data), "--out", str(out), *flags(given), *more]


def children(pid: int) -> list[int]:
    """Processes that `pid` started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def calm(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that nobody disturbed, each typed into a shell: no process of this file has touched them."""
    runs = {recipe: tmp_path_factory.mktemp("calm") / recipe for recipe in RECIPES}
    for recipe, out in runs.items():
        words = [sys.executable, "-m", "boxwise", *argv(recipe, images, out)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(out / "export")
    return runs


@pytest.mark.parametrize("recipe", RECIPES)
def test_kill_9_at_any_moment_costs_no_bit(
    recipe: str, images: Path, calm: dict[str, Path], tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    saves, words = out / "checkpoints", argv(recipe, images, out)
    again = [*words, "--resume"]

    process = start(words, log)  # before the first checkpoint
    until((out / "metrics.jsonl").exists, process)
    kill(process)
    assert checkpoint.found(saves) == []

    for known in (0, 1):  # in the middle of a save, with none and with one before it
        process = start(again, log, slow=True)
        until(lambda n=known: len(checkpoint.found(saves)) == n, process)
        until(lambda: any(p.stat().st_size == HALF for p in saves.glob("*.tmp")), process)
        kill(process)
        assert len(checkpoint.found(saves)) == known
        if not known:
            process = start(again, log)
            until(lambda: checkpoint.found(saves), process)
            kill(process)

    chance = random.Random(recipe)
    for _ in range(5):
        process = start(again, log)
        time.sleep(chance.uniform(0.0, 0.8))
        kill(process)

    process = start(again, log)
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]
    for file in ("model.safetensors", "config.json"):
        ours, theirs = ((run / "export" / file).read_bytes() for run in (out, calm[recipe]))
        assert ours == theirs, file
    last = f"step-{STEPS:08d}.pt"
    ours, theirs = (checkpoint.load(run / "checkpoints" / last) for run in (out, calm[recipe]))
    assert ours["module"].keys() == theirs["module"].keys()
    kinds = ("teacher", "queue") if recipe == "mocov2" else ("teacher", "predictor")
    assert all(any(name.startswith(kind) for name in ours["module"]) for kind in kinds)
    for name, tensor in theirs["module"].items():
        assert torch.equal(ours["module"][name], tensor), name
    for i, held in theirs["optimiser"]["state"].items():
        assert torch.equal(ours["optimiser"]["state"][i]["momentum_buffer"], held["momentum_buffer"])
    kept = [
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows(run)]
        for run in (out, calm[recipe])
    ]
    assert kept[0] == kept[1] and [row["step"] for row in kept[0]] == [*range(1, STEPS + 1)]
    assert facts(out)["status"] == "finished" and list(saves.glob("*.tmp")) == []
    lists = [(run / "bad_images.txt").read_text() for run in (out, calm[recipe])]
    assert lists[0] == lists[1] and lists[0].count("\t004.png\t") == 1


@pytest.mark.parametrize(
    ("recipe", "number", "code"), [("scrl", signal.SIGTERM, 143), ("mocov2", signal.SIGINT, 130)]
)
def test_a_stopped_run_saves_says_so_and_goes_on(
    recipe: str, number: signal.Signals, code: int, images: Path, calm: dict[str, Path], tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    words = argv(recipe, images, out)
    process = start(words, log)
    until(lambda: (out / "metrics.jsonl").exists() and rows(out), process)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code
    step = checkpoint.load(checkpoint.found(out / "checkpoints")[0])["step"]
    assert facts(out)["status"] == "interrupted" and facts(out)["step"] == step < STEPS
    said = log.read_text()
    assert f"stopped after step {step} of {STEPS}" in said and "go on with --resume" in said
    assert not (out / "export").exists()
    process = start([*words, "--resume"], log)
    process.join()
    assert process.exitcode == 0
    ours, theirs = ((run / "export" / "model.safetensors").read_bytes() for run in (out, calm[recipe]))
    assert ours == theirs and facts(out)["status"] == "finished"


def test_workers_end_with_a_killed_trainer(images: Path, tmp_path: Path) -> None:
    """Breaks when an orphan waits for ever to hand over a batch that nobody will take."""
    out = tmp_path / "run"
    process = start(argv("mocov2", images, out), tmp_path / "log")
    until(lambda: (out / "metrics.jsonl").exists() and rows(out), process)
    assert process.pid is not None
    workers = children(process.pid)
    assert workers
    kill(process)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.05)


def test_two_processes_do_not_share_a_run(images: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    words = argv("scrl", images, out)
    process = start(words, log, slow=True)
    until((out / "metrics.jsonl").exists, process)
    second = start([*words, "--resume"], tmp_path / "second")
    second.join()
    assert second.exitcode == 1
    assert f"in use by process {process.pid}" in (tmp_path / "second").read_text()
    kill(process)
