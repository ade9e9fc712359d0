"""The command line in processes that are killed, or asked to stop, at a chosen moment."""

from __future__ import annotations

import contextlib
import multiprocessing
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from processes import save_slowly

# A server that has imported torch forks each process in milliseconds; a new one takes seconds.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["boxwise.cli", "boxwise.run.pretrain", "timm", "lightning_fabric", "torch.utils.tensorboard"]
)
HALF = 4000
"""Bytes of a checkpoint that a slow process has written when it pauses."""


def command(words: list[str], log: Path, slow: bool) -> None:
    """The command line, in a process of its own."""
    from boxwise.cli import main

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # workers as a process from a shell starts them
    if slow:
        save_slowly(half=HALF, pause=0.3)
    with log.open("a") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        code = main(words)
    raise SystemExit(code)


def start(words: list[str], log: Path, *, slow: bool = False) -> BaseProcess:
    process = context.Process(target=command, args=(words, log, slow))
    process.start()
    return process
