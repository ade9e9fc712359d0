import copy
import json
from pathlib import Path

import numpy as np
import pytest
from lvis import LVIS, LVISEval

from boxwise.transfer.metrics import curves, figures
from boxwise.transfer.metrics.lvis import LVIS_FIGURES, lvis_figures
from detections import found, random_detections, with_masks

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools
    pytest.mark.filterwarnings("ignore:The .warn. method:DeprecationWarning"),  # lvis
]
NAMES = {"AR300": "AR@300", "ARs": "ARs@300", "ARm": "ARm@300", "ARl": "ARl@300"}


def federated(seed: int) -> tuple[dict, list[dict]]:
    """Each image knows of some categories that it shows none, and of some that it is not annotated to the last."""
    rng = np.random.default_rng(seed)
    truth, results = with_masks(*random_detections(seed, images=16, classes=6, noise=0.05))
    truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    ids = [c["id"] for c in truth["categories"]]
    for category, frequency in zip(truth["categories"], "frcfcrf"):
        category["frequency"] = frequency
    for image in truth["images"]:
        shown = {a["category_id"] for a in truth["annotations"] if a["image_id"] == image["id"]}
        image["neg_category_ids"] = [c for c in ids if c not in shown and rng.random() < 0.4]
        image["not_exhaustive_category_ids"] = [c for c in sorted(shown) if rng.random() < 0.4]
    return truth, results


def oracle(
    truth: dict, results: list[dict], kind: str, folder: Path, patch: pytest.MonkeyPatch
) -> dict[str, float]:
    patch.setattr(np, "float", float, raising=False)  # gone from numpy since the package was written
    (folder / "truth.json").write_text(json.dumps(truth))
    given = [{k: v for k, v in r.items() if kind == "bbox" or k != "bbox"} for r in results]
    judge = LVISEval(LVIS(str(folder / "truth.json")), copy.deepcopy(given), kind)
    judge.run()
    return {n: float(v) for n, v in judge.get_results().items()}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_the_package_of_lvis(
    seed: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when detections count where nobody looked, when unmatched ones of half-annotated categories are wrong,
    or when rare, common and frequent are mixed up."""
    truth, results = federated(seed)
    before = copy.deepcopy((truth, results))
    mine = figures("lvis", truth, results, kinds=(kind,))  # type: ignore[arg-type]
    expected = oracle(truth, results, kind, tmp_path, monkeypatch)
    assert list(mine) == list(LVIS_FIGURES[kind]) and len(expected) == len(mine)  # type: ignore[index]
    for name, value in mine.items():
        plain = name.removeprefix("mask_")
        known = expected[NAMES.get(plain, plain)]
        assert value == pytest.approx(100 * known if known >= 0 else -1, abs=1e-10, rel=0), name
    assert len({mine[LVIS_FIGURES[kind][k]] for k in (0, 6, 7, 8)}) == 4  # type: ignore[index]
    assert (truth, results) == before
    whole = curves(truth, results, kind, metric="lvis")["AP"]  # type: ignore[arg-type]
    assert np.mean(whole) == pytest.approx(mine[LVIS_FIGURES[kind][0]])  # type: ignore[index]


def test_three_hundred_detections_an_image_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when each category may have 300, or all may have more: false alarms of one category then leave room for
    the others."""
    truth, results = federated(3)
    rng = np.random.default_rng(0)
    image = max(truth["images"], key=lambda i: sum(r["image_id"] == i["id"] for r in results))
    image["neg_category_ids"] = [13]
    results = [{k: v for k, v in r.items() if k != "segmentation"} for r in results]
    noise = [found(image["id"], 13, [5.0, 5.0, 9.0, 9.0], float(s)) for s in rng.uniform(0.3, 1, 400)]
    crowded = [*results[::2], *noise, *results[1::2]]
    mine, expected = lvis_figures(truth, crowded), oracle(truth, crowded, "bbox", tmp_path, monkeypatch)
    for name, value in mine.items():
        known = expected[NAMES.get(name, name)]
        assert value == pytest.approx(100 * known if known >= 0 else -1, abs=1e-10, rel=0), name
    assert mine != lvis_figures(truth, results)


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_another_json_is_turned_away(key: str) -> None:
    """Breaks when COCO's json is measured as if every image knew nothing of most categories."""
    truth, results = federated(4)
    with pytest.raises(ValueError, match=f"image 8 has no {key}"):
        broken = [{k: v for k, v in i.items() if k != key or i["id"] != 8} for i in truth["images"]]
        lvis_figures({**truth, "images": broken}, results)
    with pytest.raises(ValueError, match="category 3 c1 has no frequency"):
        kinds = [
            {k: v for k, v in c.items() if k != "frequency" or c["id"] != 3} for c in truth["categories"]
        ]
        lvis_figures({**truth, "categories": kinds}, results)
