"""Where a benchmark ran, and its dated result."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def machine(device: torch.device | str = "cpu") -> str:
    """The processor's name, or the GPU's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def system_load() -> float:
    """How many processes wanted the processor in the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def save(text: str, name: str, folder: Path, device: torch.device | str = "cpu") -> Path:
    """Writes a page whose file name tells benchmark, day and hardware."""
    folder.mkdir(parents=True, exist_ok=True)
    slug = "-".join(re.findall(r"[a-z0-9]+", machine(device).lower()))
    path = folder / f"{name}-{datetime.date.today()}-{slug}.md"
    path.write_text(text)
    return path
