"""What this machine has, and what would go wrong on it, in one table."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version

import torch

from boxwise.data.cores import cores
from boxwise.engine.device import PACKAGES, device_of, dtype_of
from boxwise.run.memory import free_memory

LITTLE_MEMORY = 2 << 30
LITTLE_SHARED_MEMORY = 256 << 20


def doctor() -> tuple[str, bool]:
    """A line for each check, and whether all passed."""
    device = device_of("auto")
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: sys.version.split()[0]),
        *((name, lambda name=name: version(name)) for name in PACKAGES),
        ("device", lambda: _device(device)),
        ("precision", lambda: f"auto means {str(dtype_of('auto', device)).removeprefix('torch.')}"),
        ("memory", lambda: _memory(device)),
        ("cores", lambda: str(cores())),
        ("shared memory", _shared_memory),
        ("roi_align", lambda: _roi_align(device)),
        ("jpeg", _jpeg),
    ]
    lines, healthy = [], True
    for name, check in checks:
        try:
            lines.append(f"ok    {name:<18} {check()}")
        except (RuntimeError, OSError, ImportError) as error:
            healthy = False
            lines.append(f"FAIL  {name:<18} {error}")
    return "\n".join(lines), healthy


def _device(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "mps":
        return "mps"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"


def _memory(device: torch.device) -> str:
    free = free_memory(device)
    if free < LITTLE_MEMORY:
        raise RuntimeError(f"{free / 2**30:.1f} GiB free on {device.type}: too little to train a ResNet-50")
    return f"{free / 2**30:.1f} GiB free on {device.type}"


def _shared_memory() -> str:
    """Workers hand batches over in /dev/shm; containers often have only 64 MiB there."""
    if not os.path.isdir("/dev/shm"):
        return "not used on this system"
    stat = os.statvfs("/dev/shm")
    free = stat.f_bavail * stat.f_frsize
    if free < LITTLE_SHARED_MEMORY:
        raise RuntimeError(
            f"{free / 2**20:.0f} MiB free in /dev/shm: start the container with --shm-size 8g, or use --workers 0"
        )
    return f"{free / 2**20:.0f} MiB free"


def _roi_align(device: torch.device) -> str:
    """One box of ones pools to ones: torchvision's operators load and match this torch."""
    from torchvision.ops import roi_align

    ones = torch.ones(1, 1, 4, 4, device=device)
    pooled = roi_align(ones, torch.tensor([[0.0, 0, 0, 4, 4]], device=device), 2, aligned=True)
    if not bool((pooled == 1).all()):
        raise RuntimeError("gives wrong values: reinstall torch and torchvision together")
    return "right values"


def _jpeg() -> str:
    from torchvision.io import decode_jpeg, encode_jpeg

    grey = torch.full((3, 16, 16), 128, dtype=torch.uint8)
    off = (decode_jpeg(encode_jpeg(grey)).int() - 128).abs().max()
    if off > 2:
        raise RuntimeError("decodes wrongly: reinstall torchvision")
    return "reads and writes"
