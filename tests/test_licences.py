"""What is in the package was written for it."""

from __future__ import annotations

import re
from pathlib import Path

import boxwise

HOUSE = Path(boxwise.__file__).parent
ROOT = HOUSE.parents[1]
FOREIGN = re.compile(
    r"copyright|all rights reserved|licensed under|spdx-license|cc[- ]by[- ]nc|noncommercial|\(c\) 20\d\d",
    re.IGNORECASE,
)


def test_trap_25_no_file_bears_the_licence_of_another_project() -> None:
    """Breaks when a file is taken over from a code base whose terms (CC-BY-NC, academic use) forbid it."""
    files = [path for folder in (HOUSE, ROOT / "benchmarks") for path in folder.rglob("*.py")]
    assert len(files) > 100
    assert not [str(path) for path in files if FOREIGN.search(path.read_text())]
    for foreign in ("# Copyright (c) Facebook, Inc. and its affiliates.", "LICENSE: CC-BY-NC 4.0"):
        assert FOREIGN.search(foreign)


def test_trap_25_the_licence_is_apaches() -> None:
    """Breaks when the licence file and the package's own word drift apart."""
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert "Apache-2.0" in (ROOT / "pyproject.toml").read_text()
