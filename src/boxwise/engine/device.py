"""Where a run computes: devices, precision, processes, and the facts about them that a run records."""

from __future__ import annotations

import inspect
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from boxwise.config import Run
from boxwise.data.cores import cores

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PACKAGES = (
    "boxwise",
    "torch",
    "torchvision",
    "lightning-fabric",
    "timm",
    "numpy",
    "pillow",
    "faster-coco-eval",
)


def device_of(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `mps` stands for; ValueError where it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in there.items() if is_there)
    if not there[name]:
        raise ValueError(f"run.device: this machine has no {name} device; pass --device auto")
    return torch.device(name)


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """What a run multiplies matrices in. `auto`: bfloat16 where the processor has it, else float32."""
    if precision == "auto":
        return torch.bfloat16 if _has_bf16(device) else torch.float32
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(
            f"run.precision: fp16 needs a CUDA device, this is {device.type}; pass --precision auto"
        )
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _has_bf16(device: torch.device) -> bool:
    """In hardware: an emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def processes(run: Run) -> tuple[int, int]:
    """Processes per node, and nodes. What torchrun or SLURM started counts more than the settings."""
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env and "WORLD_SIZE" in env:
        local = int(env["LOCAL_WORLD_SIZE"])
        return local, int(env["WORLD_SIZE"]) // local
    if _under_slurm():
        nodes = int(env.get("SLURM_NNODES", "1"))
        return int(env["SLURM_NTASKS"]) // nodes, nodes
    return run.devices, run.nodes


def _require_gpus(device: torch.device, local: int) -> None:
    seen = torch.cuda.device_count() if device.type == "cuda" else local
    if seen < local:
        raise ValueError(
            f"run.devices: {local} processes on this machine, and each sees {seen} GPUs; pass --devices {seen}, or let "
            "every process see all of them (SLURM: --gpus-per-node, with --gpu-bind=none)"
        )


def _under_slurm() -> bool:
    """Whether SLURM started the processes, and not a person in a shell that SLURM gave."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def leads() -> bool:
    """Whether this is the process that writes; known before any process group exists."""
    env = os.environ
    if "RANK" in env:
        return int(env["RANK"]) == 0
    if _under_slurm():
        return int(env.get("SLURM_PROCID", "0")) == 0
    return int(env.get("NODE_RANK", "0")) == 0 and int(env.get("LOCAL_RANK", "0")) == 0


def place() -> tuple[int, int, int]:
    """Rank of this process, number of processes, and how many of them share this machine's cores; by torchrun
    or SLURM, and a process of its own otherwise. Known before any process group exists."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_WORLD_SIZE", "1"))
    if _under_slurm():
        ranks, nodes = int(env["SLURM_NTASKS"]), int(env.get("SLURM_NNODES", "1"))
        # SLURM as a rule gives each task cores of its own, which its affinity shows.
        return int(env.get("SLURM_PROCID", "0")), ranks, 1 if "SLURM_CPUS_PER_TASK" in env else ranks // nodes
    return 0, 1, 1


def launch(run: Run) -> Fabric:
    """Fabric for `run`, its processes started: with `devices` above 1 it runs this very command again."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision, Precision
    from lightning_fabric.strategies.ddp import DDPStrategy

    class Autocast(MixedPrecision):
        """Mixed precision that leaves batches alone: boxes in bfloat16 would be off by whole pixels."""

        def convert_input(self, data: Any) -> Any:
            return data

    device = device_of(run.device)
    dtype = dtype_of(run.precision, device)
    local, nodes = processes(run)
    if run.batch_size % (local * nodes * run.accumulate):
        raise ValueError(
            f"run.batch_size: {run.batch_size} images do not divide into {local * nodes} processes "
            f"of {run.accumulate} parts"
        )
    _require_gpus(device, local)
    precision: Precision = Precision()
    if dtype == torch.bfloat16:
        precision = Autocast("bf16-mixed", device.type)
    elif dtype == torch.float16:
        precision = Autocast("16-mixed", device.type, torch.amp.GradScaler(device.type))
    # A queue in the buffers must not travel each step; what must agree is synchronised where it is made.
    known = inspect.signature(DistributedDataParallel).parameters
    travel: Any = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    fabric = Fabric(
        accelerator=device.type,
        devices=local,
        num_nodes=nodes,
        strategy=DDPStrategy(**travel) if local * nodes > 1 else "auto",
        plugins=[precision],
    )
    fabric.launch()
    return fabric


def lay_out(module: nn.Module, device: torch.device) -> None:
    """Maps with channels last in memory, but not on MPS: there BatchNorm's gradients of such maps are wrong in some
    versions of torch that are supported."""
    if device.type != "mps":
        module.to(memory_format=torch.channels_last)


def versions() -> dict[str, str]:
    """Python and the packages whose version may change a result."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The machine: processor, cores this process may use, threads of torch, memory, GPUs."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not on Windows
        memory = 0
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
