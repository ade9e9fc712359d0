"""Processes that tests start, wait for and kill, alone or as the ranks of one run."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

import torch
import torch.multiprocessing as mp

SAVE = torch.save


def until(true: Callable[[], object], process: BaseProcess) -> None:
    """Waits for `true`; fails if the process has ended without it."""
    deadline = time.monotonic() + 60
    while not true():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)


def kill(process: BaseProcess) -> None:
    process.kill()  # signal 9; says nothing where the run came to its end first, as on a quick machine it may
    process.join()


def save_slowly(*, half: int, pause: float) -> None:
    """Makes this process's torch.save write `half` bytes, pause, and write the rest: a kill can hit the middle."""

    def slow(state: object, file: IO[bytes]) -> None:
        whole = io.BytesIO()
        SAVE(state, whole)
        file.write(whole.getvalue()[:half])
        file.flush()
        time.sleep(pause)
        file.write(whole.getvalue()[half:])

    torch.save = slow


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def as_torchrun(number: int, world: int, port: int) -> None:
    """Makes this process number `number` of `world`, by what torchrun tells the processes that it starts."""
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }


def finished(ranks: Sequence[BaseProcess], out: Path) -> None:
    """Starts all ranks and waits for them; fails with the ends of their logs, `out`.*.log, if one fails."""
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    logs = "".join(p.read_text()[-3000:] for p in out.parent.glob(f"{out.name}.*.log"))
    assert [process.exitcode for process in ranks] == [0] * len(ranks), logs


def two_ranks(work: Callable[[int, str], None], folder: Path) -> tuple[Any, Any]:
    """What `work` leaves in `folder`/0.pt and 1.pt, run by two processes."""
    mp.spawn(work, args=(str(folder),), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    return first, second
