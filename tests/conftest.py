"""What holds for every test, and fixtures that several rooms share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Tests share the cores, and one thread gives the same last bits everywhere: here, and in what tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

LONG = ("test_readme.py", "test_pretrain.py", "test_compare.py")
"""Files that take longest: begun last, they would keep one process busy while the others idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture
def double() -> Iterator[None]:
    """Everything in float64, the weights of rows too, which are made in the default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
