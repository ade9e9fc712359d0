"""Checkpoints: one file each, written whole or not at all, and found again after any crash."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from boxwise.engine.atomic import written
from boxwise.engine.metrics import Meter

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NAME = re.compile(r"step-(\d{8})\.pt")

State = dict[str, Any]


def save(folder: Path, step: int, state: State, *, keep: int) -> Path:
    """Writes `state` (tensors and values) as the checkpoint after `step` steps, keeps the newest `keep`."""
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    with written(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # what torch makes of a full disk
            why = str(error).partition("\n")[0]
            raise OSError(
                f"{path}: cannot be written ({why}); make room on the disk, then go on with --resume"
            ) from None
    for old in found(folder)[max(keep, 1) :]:
        old.unlink()
    for left in folder.glob("*.tmp"):  # by a process killed while it saved
        left.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if NAME.fullmatch(p.name)), reverse=True)


def load(path: Path) -> State:
    """A checkpoint's state, on the CPU. Raises ValueError when the file is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load would not notice a flipped bit
            if (member := archive.testzip()) is not None:
                raise ValueError(f"{path}: damaged ({member} fails its checksum)")
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    return state


def newest(folder: Path, say: Callable[[str], None]) -> tuple[Path, State] | None:
    """The newest checkpoint that loads. Damaged ones after it are told to `say` and set aside as `*.damaged`.

    None where there is no checkpoint; ValueError where there are some but none loads.
    """
    damaged: dict[Path, ValueError] = {}
    for path in found(folder):
        try:
            state = load(path)
        except ValueError as error:
            damaged[path] = error
            continue
        for bad, why in damaged.items():
            say(f"{why}; going back to the checkpoint before it")
            os.replace(bad, bad.with_suffix(".pt.damaged"))
        return path, state
    if damaged:
        raise ValueError(f"{folder}: none of {len(damaged)} checkpoints can be read; pass --overwrite")
    return None


@dataclass(frozen=True, slots=True)
class Training:
    """All that a run must find again to go on as if it had never stopped."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    meter: Meter

    def save(self, folder: Path, *, step: int, seconds: float, world: int, keep: int) -> None:
        """Writes the checkpoint after `step` steps, taken in `seconds` by `world` processes."""
        state = {
            "step": step,
            "seconds": seconds,
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            "meter": self.meter.state(),
            "threads": torch.get_num_threads(),
            "world": world,
        }
        save(folder, step, state, keep=keep)

    def resume(
        self, folder: Path, fabric: Fabric, *, threads: int | None, say: Callable[[str], None]
    ) -> tuple[int, float]:
        """Goes back to the newest checkpoint of `folder`: the steps it has taken, and their seconds.

        (0, 0.0) where there is none yet. Torch gets the thread count of before, unless `threads` asks for
        another: sums of floats depend on it. Raises ValueError when the checkpoint belongs to another model.
        """
        here = newest(folder, say) if fabric.is_global_zero else None
        name = fabric.broadcast(here and here[0].name)
        if name is None:
            return 0, 0.0
        state = here[1] if here else load(folder / name)
        try:
            self.module.load_state_dict(state["module"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{folder / name}: is of another model ({error})") from None
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.meter.load(state["meter"])
        if threads is None:
            torch.set_num_threads(state["threads"])
        for what, now in (("threads", torch.get_num_threads()), ("world", fabric.world_size)):
            if state[what] != now:
                say(f"{what}: {state[what]} before, {now} now; the last bits will differ")
        say(f"resumed at step {state['step']} from {name}")
        return state["step"], state["seconds"]
