"""Which tests may be skipped for want of official values."""

from __future__ import annotations

from pathlib import Path

import golden_files
import numpy as np
import pytest


def test_only_without_any_folder_is_a_test_skipped(tmp_path: Path) -> None:
    """Breaks when `make parity` passes with nothing compared, since its folder is misspelt or lacks a file."""
    absent = tmp_path / "absent"
    with pytest.raises(pytest.skip.Exception, match="absent is not here"):
        golden_files.read("one", named=None, beside=absent)
    for named, beside in ((str(tmp_path), absent), (str(absent), tmp_path), (None, tmp_path)):
        with pytest.raises(pytest.fail.Exception, match=r"one\.npz is not here: nothing was compared"):
            golden_files.read("one", named=named, beside=beside)
    np.savez(tmp_path / "one.npz", x=np.arange(3))
    for named, beside in ((str(tmp_path), absent), (None, tmp_path)):
        assert golden_files.read("one", named=named, beside=beside)["x"].tolist() == [0, 1, 2]
