"""Where a run computes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from boxwise.config import Run
from boxwise.engine.device import (
    device_of,
    dtype_of,
    hardware,
    launch,
    lay_out,
    leads,
    place,
    processes,
    versions,
)

CPU = torch.device("cpu")
TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_PROCID": "2", "SLURM_JOB_NAME": "train"}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, *SLURM, "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_auto_is_bf16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for avx, amx, expected in [
        (True, False, "bfloat16"),
        (False, True, "bfloat16"),
        (False, False, "float32"),
    ]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=avx: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has)
        assert str(dtype_of("auto", CPU)) == f"torch.{expected}"
        assert dtype_of("fp32", CPU) == torch.float32 and dtype_of("bf16", CPU) == torch.bfloat16
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert dtype_of("auto", torch.device("cuda")) == (torch.bfloat16 if has else torch.float32)
    with pytest.raises(ValueError, match=r"run.precision: fp16 needs a CUDA device, this is cpu; pass"):
        dtype_of("fp16", CPU)


def test_auto_takes_the_best_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda has=cuda: has)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda has=mps: has)
        assert device_of("auto").type == expected and device_of("cpu") == CPU
    with pytest.raises(ValueError, match="no cuda device; pass --device auto"):
        device_of("cuda")


def test_what_started_the_processes_counts_more_than_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(devices=2, nodes=2)
    assert processes(run) == (2, 2) and leads()
    for environment, expected in [(TORCHRUN, (4, 2)), (SLURM, (2, 3))]:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert processes(run) == expected and not leads()
            patch.setenv("RANK" if environment is TORCHRUN else "SLURM_PROCID", "0")
            assert leads()
    monkeypatch.setenv("LOCAL_RANK", "1")  # a child that Fabric started
    assert not leads()
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("NODE_RANK", "1")
    assert not leads()


def test_a_place_among_the_processes_is_known_before_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when two ranks take the same share of the images, or each takes all cores of a machine they share."""
    assert place() == (0, 1, 1)
    with monkeypatch.context() as patch:
        for name, value in TORCHRUN.items():
            patch.setenv(name, value)
        assert place() == (int(TORCHRUN["RANK"]), 8, 4)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert place() == (int(SLURM["SLURM_PROCID"]), 6, 2)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert place()[2] == 1
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert place() == (0, 1, 1)


def test_more_processes_than_gpus_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when SLURM shows each task one GPU of four, and Lightning ends in a traceback."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    with pytest.raises(
        ValueError, match=r"4 processes on this machine, and each sees 1 GPUs.*--gpu-bind=none"
    ):
        launch(Run(devices=4, batch_size=8, device="cuda"))


def test_maps_lie_channels_last_but_on_mps() -> None:
    """Breaks when BatchNorm on MPS gets maps whose gradients some versions of torch get wrong."""
    module = torch.nn.Conv2d(3, 4, 3)
    lay_out(module, torch.device("mps"))
    assert module.weight.is_contiguous()
    lay_out(module, torch.device("cpu"))
    assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_mixed_precision_leaves_a_batch_as_it_is() -> None:
    """Breaks when Fabric's plugin rounds boxes to bfloat16, or trips over a frozen batch."""
    precision = launch(Run(device="cpu", precision="bf16")).strategy.precision
    batch = SimpleNamespace(boxes=torch.tensor([1001.0]))
    assert precision.convert_input(batch) is batch
    assert precision.convert_input(batch.boxes).dtype == torch.float32


def test_facts_are_plain_json() -> None:
    facts = json.loads(json.dumps({"versions": versions(), "hardware": hardware()}))
    assert torch.__version__.startswith(facts["versions"]["torch"])
    assert facts["hardware"]["threads"] == torch.get_num_threads() and facts["hardware"]["cpu"]
