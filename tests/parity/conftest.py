"""Arrays of the official implementations, from the folder in BOXWISE_GOLDEN or beside the project."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import golden_files
import numpy as np
import pytest

BESIDE = Path(__file__).parents[3] / "shared" / "golden"


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """`golden("scrl_loss")` holds the arrays of scrl_loss.npz."""
    return functools.partial(golden_files.read, named=os.environ.get("BOXWISE_GOLDEN"), beside=BESIDE)
