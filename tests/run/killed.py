"""The command line in processes that are killed, or asked to stop, at a chosen moment."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

import torch

# A server that has imported torch forks each process in milliseconds; a new one takes seconds.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["boxwise.cli", "boxwise.run.pretrain", "timm", "lightning_fabric", "torch.utils.tensorboard"]
)
HALF = 4000
"""Bytes of a checkpoint that a slow process has written when it pauses."""
SAVE = torch.save


def slow_to_save(state: object, file: IO[bytes]) -> None:
    """torch.save in two halves with a pause between, so that a kill can hit the middle."""
    whole = io.BytesIO()
    SAVE(state, whole)
    file.write(whole.getvalue()[:HALF])
    file.flush()
    time.sleep(0.3)
    file.write(whole.getvalue()[HALF:])


def command(words: list[str], log: Path, slow: bool) -> None:
    """The command line, in a process of its own."""
    from boxwise.cli import main

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # workers as a process from a shell starts them
    if slow:
        torch.save = slow_to_save
    with log.open("a") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        code = main(words)
    raise SystemExit(code)


def start(words: list[str], log: Path, *, slow: bool = False) -> BaseProcess:
    process = context.Process(target=command, args=(words, log, slow))
    process.start()
    return process


def until(true: Callable[[], object], process: BaseProcess) -> None:
    """Waits for `true`; fails if the process has ended without it."""
    deadline = time.monotonic() + 60
    while not true():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)


def kill(process: BaseProcess) -> None:
    process.kill()  # signal 9
    process.join()
