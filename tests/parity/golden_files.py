"""Where the arrays of the official implementations are read from, and what their absence means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


def read(name: str, *, named: str | None, beside: Path) -> dict[str, np.ndarray]:
    """The arrays of `name`.npz, from the folder that was `named`, else from the one `beside` the project.

    The test is skipped where no folder was named and there is none; a folder that lacks the file is a failure.
    """
    folder = beside if named is None else Path(named)
    if named is None and not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    file = folder / f"{name}.npz"
    if not file.is_file():
        pytest.fail(f"{file} is not here: nothing was compared")
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
