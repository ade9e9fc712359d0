"""benchmarks/methods.py at tiny size."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from scripts import script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("methods")


def test_every_method_is_adapted_alike(bench: ModuleType) -> None:
    """Breaks when a method keeps its published batch, rate, colours or backbone, and is compared by those."""
    recipes = {name: bench.adapted(name, seed=3, steps=70) for name in bench.NAMES if name != bench.RANDOM}
    small = bench.demo.pretraining(seed=3, steps=70)
    for name, recipe in recipes.items():
        queued = name in ("mocov2", "insloc", "detco", "resim")
        assert recipe.schedule == small.schedule and recipe.run.seed == 3, name
        assert (recipe.run.batch_size, recipe.optim.lr) == ((64, 3e-4) if queued else (16, 1e-3)), name
        assert not queued or (recipe.method.queue, recipe.method.momentum) == (1024, 0.996), name
        assert getattr(recipe.method, "whitened", True), name
        assert recipe.encoder.backbone == "resnet18" and recipe.encoder.fpn_channels in (64, 256), name
        assert all(view.photo.hue == 0.5 and view.photo.jitter == 1.0 for view in recipe.views), name
        assert not [*recipe.conflicts()], name
    assert recipes["soco"].method.limits == small.method.limits
    assert recipes["byol"].method.width == recipes["soco"].method.width == 64


def test_a_second_call_trains_nothing_again(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when a stopped table starts from the beginning, or shows one seed as several."""
    for name, value in {"TRIAL": 2, "FINETUNE_STEPS": 2}.items():
        monkeypatch.setattr(bench, name, value)
    data = bench.scenes(tmp_path / "data", count=8, val=2, unlabelled=16, size=64, seed=0)
    home = tmp_path / "byol-0.001s-seed0"
    home.mkdir()
    bench.pretrain("byol", home, data, 0.001, 0)
    first = bench.measured("byol", tmp_path, data, 0.001, 0, 2)
    written = {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")}
    assert len(written) >= 2 and first["steps"] == 2 and first["peak_mib"] > 100 and len(first["AP"]) == 2
    assert bench.measured("byol", tmp_path, data, 0.001, 0, 2) == first
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")} == written


def test_a_row_holds_means_and_the_range(bench: ModuleType) -> None:
    found = {
        "AP": [1.0, 2.0, 6.0],
        "AP50": [4.0] * 3,
        "AP75": [0.5] * 3,
        "images_per_s": 31.4,
        "step_ms": 510.2,
    }
    assert bench.row("soco", found) == "| soco | 3.00 (1.00 to 6.00) | 4.00 | 0.50 | 31 | 510 |  |  |  |  |"
    found |= {"ssl/pos_sim": 0.583, "ssl/neg_sim": -0.021, "ssl/effective_rank": 30.61}
    assert bench.row("soco", found).endswith("| 0.58 / -0.02 | 30.6 |")
