"""The benchmark of the search times all of its parts, and they make the product's boxes."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from boxwise.data.selective_search import selective_search
from scripts import script


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return script("proposals")


PIXELS = np.kron(np.random.default_rng(0).integers(0, 256, (6, 7, 3)), np.ones((12, 12, 1))).astype(np.uint8)


def test_the_parts_that_are_timed_are_the_whole_search(benchmark: ModuleType) -> None:
    """Breaks when a part is left out of the sum, or the product's search has a part that is not timed."""
    spent, rects = benchmark.by_part(PIXELS)
    assert rects.tolist() == selective_search(PIXELS).tolist() and len(rects) > 20
    parts = [ms for name, ms in spent.items() if name not in benchmark.AIMS]
    assert spent[benchmark.WHOLE] == pytest.approx(sum(parts))
    assert spent["ours, beyond the segmentation"] == pytest.approx(sum(parts) - spent[benchmark.SEGMENTS])


def test_the_table_states_every_part_and_how_often_the_boxes_agree(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when the package's boxes are not compared, or a disagreement is counted as none."""
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(benchmark, "package", lambda pixels: (5.0, benchmark.by_part(PIXELS)[1]))
    spent, same = benchmark.measure([PIXELS, PIXELS[:50], PIXELS], rounds=2)
    text = benchmark.report(spent, photos=3, rounds=2, same=same, load=0.0)
    assert "| package selectivesearch | 5.0 |" in text and "same boxes on 2 of 3 photos" in text
    assert all(f"| {name} |" in text for name in spent)
