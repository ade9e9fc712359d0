"""Optimiser and learning rates against the official implementations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from boxwise.config import LARS, Schedule
from boxwise.engine.optim import build_optimiser, learning_rate

Golden = Callable[[str], dict[str, np.ndarray]]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_trap_17_lars_takes_socos_steps(golden: Golden, dtype: torch.dtype, tolerance: float) -> None:
    arrays = golden("soco_lars")
    lr, momentum, decay, trust, eps = arrays["hyper"].tolist()
    names = sorted(name.removeprefix("init_") for name in arrays if name.startswith("init_"))
    module = nn.ParameterDict({n: torch.from_numpy(arrays[f"init_{n}"]).to(dtype) for n in names})
    config = LARS(momentum=momentum, weight_decay=decay, trust=trust, eps=eps, norm="joint")
    optimiser = build_optimiser(module, config, lr=lr)
    steps = sorted({int(name[5]) for name in arrays if name.startswith("after")})
    for step in steps:
        for name in names:
            module[name].grad = torch.from_numpy(arrays[f"grad{step}_{name}"]).to(dtype)
        optimiser.step_if(torch.tensor(1.0))
        for name in names:
            expected = arrays[f"after{step}_{name}"]
            error = np.abs(module[name].detach().numpy() - expected).max()
            assert error <= tolerance * np.abs(expected).max(), f"{name} after step {step}"


def test_trap_18_scrls_rate_is_read_one_step_ahead(golden: Golden) -> None:
    for base, epochs, steps, warmup, k, lr in golden("scrl_schedules")["lr"].tolist():
        schedule = Schedule(epochs=epochs, warmup_epochs=warmup, early=True)
        ours = learning_rate(
            int(k), base=base, schedule=schedule, steps_per_epoch=int(steps), total=round(epochs * steps)
        )
        assert ours == pytest.approx(lr, rel=1e-6, abs=1e-9)


def test_trap_18_socos_rate_warms_up_from_a_share_and_ends_above_zero(golden: Golden) -> None:
    for base, epochs, steps, warmup, multiplier, k, lr in golden("soco_schedules")["lr"].tolist():
        schedule = Schedule(epochs=epochs, warmup_epochs=warmup, warmup_from=1 / multiplier, final_lr=1e-6)
        ours = learning_rate(
            int(k), base=base, schedule=schedule, steps_per_epoch=int(steps), total=round(epochs * steps)
        )
        assert ours == pytest.approx(lr, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 7])
def test_trap_18_mocos_rate_stands_still_within_an_epoch(golden: Golden, steps: int) -> None:
    for base, epochs, epoch, lr in golden("common_ema_schedules")["moco_lr_per_epoch"].tolist():
        schedule = Schedule(epochs=epochs, per="epoch")
        for k in (epoch * steps, epoch * steps + steps - 1):
            ours = learning_rate(
                int(k), base=base, schedule=schedule, steps_per_epoch=steps, total=round(epochs * steps)
            )
            assert ours == pytest.approx(lr, rel=1e-6, abs=1e-9)
