"""Arrays of the official implementations, from the folder in BOXWISE_GOLDEN or beside the project."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

BESIDE = Path(__file__).parents[3] / "shared" / "golden"


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """`golden("scrl_loss")` holds the arrays of scrl_loss.npz; the test is skipped where the file is absent."""
    folder = Path(os.environ.get("BOXWISE_GOLDEN", BESIDE))

    def load(name: str) -> dict[str, np.ndarray]:
        file = folder / f"{name}.npz"
        if not file.exists():
            pytest.skip(f"{file} is not here")
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)

    return load
