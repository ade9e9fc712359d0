import copy
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as scripts
from cityscapesscripts.helpers.labels import labels
from PIL import Image
from pycocotools import mask as masks

from boxwise.transfer.metrics import FIGURES, curves, figures
from boxwise.transfer.metrics.cityscapes import LABELS, VOID, cityscapes_figures

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
HEIGHT, WIDTH = 96, 160
CATEGORIES = [{"id": 3 + k, "name": name} for k, name in enumerate(LABELS)]


def ellipse(rng: np.random.Generator, small: bool) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    tall, wide = rng.uniform(2, 5, 2) if small else rng.uniform(8, 26, 2)
    top, left = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
    return ((y - top) / tall) ** 2 + ((x - left) / wide) ** 2 < 1


def moved(mask: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    return np.roll(mask, rng.integers(-most, most + 1, 2), (0, 1))


def city(folder: Path, seed: int, images: int = 6) -> tuple[dict, list[dict]]:
    """Streets of void and road with objects, small ones and groups; the last two images have no objects or no
    detections. Scores are tied, objects are found several times, and much is seen where nothing is."""
    rng = np.random.default_rng(seed)
    truth: dict = {"images": [], "categories": CATEGORIES, "annotations": []}
    results: list[dict] = []
    for number in range(images):
        ids = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
        for label in (0, 4, 9, 29):
            ids[ellipse(rng, False)] = label
        seen = []
        for k in range(0 if number == images - 2 else 14):
            label = int(rng.choice([24, 26, 26, 33]))
            mask = ellipse(rng, bool(rng.random() < 0.3))
            ids[mask] = label if rng.random() < 0.25 else 1000 * label + k
            seen += [(label, moved(mask, rng, 3)) for _ in range(int(rng.integers(0, 4)))]
        ids[:4] = 29_001  # a caravan: an object of a class that is not measured, and not void
        seen += [
            (int(rng.choice([24, 26, 33, 31])), ellipse(rng, bool(rng.random() < 0.3))) for _ in range(9)
        ]
        seen.append((24, np.zeros((HEIGHT, WIDTH), dtype=bool)))
        file = folder / f"town_{number:06d}_000019_gtFine_instanceIds.png"
        Image.fromarray(ids).save(file)
        truth["images"].append(
            {"id": 50 + number, "width": WIDTH, "height": HEIGHT, "instance_ids": str(file)}
        )
        for label, mask in seen if number < images - 1 else []:
            rle = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode("ascii")}
            name = next(n for n, i in LABELS.items() if i == label)
            category = next(c["id"] for c in CATEGORIES if c["name"] == name)
            score = round(float(rng.random()), 1)
            results.append(
                {
                    "image_id": 50 + number,
                    "category_id": category,
                    "score": score,
                    "segmentation": segmentation,
                }
            )
    return truth, results


def oracle(
    truth: dict, results: list[dict], folder: Path, patch: pytest.MonkeyPatch
) -> tuple[dict, np.ndarray]:
    """The averages of the scripts, and AP by class and overlap, from the files that they read."""
    patch.setattr(np, "in1d", np.isin, raising=False)  # gone from numpy since the scripts were written
    args = copy.copy(scripts.args)
    args.quiet, args.gtInstancesFile = True, str(folder / "gtInstances.json")
    args.predictionPath = str(folder)
    scripts.setInstanceLabels(args)
    names = {c["id"]: c["name"] for c in truth["categories"]}
    said = []
    for image in truth["images"]:
        lines = []
        for k, result in enumerate(results):
            if result["image_id"] == image["id"]:
                mask = masks.decode(result["segmentation"])
                Image.fromarray(mask * 255).save(folder / f"found_{k}.png")
                lines.append(f"found_{k}.png {LABELS[names[result['category_id']]]} {result['score']}\n")
        said.append(str(folder / f"{image['id']}_pred.txt"))
        Path(said[-1]).write_text("".join(lines))
    files = [image["instance_ids"] for image in truth["images"]]
    matches = scripts.matchGtWithPreds(said, files, scripts.getGtInstances(files, args), args)
    aps = scripts.evaluateMatches(matches, args)
    return scripts.computeAverages(aps, args), aps[0]


@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_the_scripts_of_cityscapes(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when void, groups or small objects count otherwise, when a second detection of an object is forgiven,
    or when AP becomes COCO's."""
    truth, results = city(tmp_path, seed)
    before = copy.deepcopy((truth, results))
    mine = figures("cityscapes", truth, results, kinds=("segm",))
    averages, aps = oracle(truth, results, tmp_path, monkeypatch)
    assert list(mine) == ["mask_AP", "mask_AP50"]
    assert mine["mask_AP"] == pytest.approx(100 * averages["allAp"], abs=1e-10, rel=0)
    assert mine["mask_AP50"] == pytest.approx(100 * averages["allAp50%"], abs=1e-10, rel=0)
    assert 0 < mine["mask_AP"] < mine["mask_AP50"] < 100
    curve = curves(truth, results, "segm", metric="cityscapes")
    assert curve["AP"] == pytest.approx(100 * np.nanmean(aps, axis=0), abs=1e-10, rel=0)
    assert (truth, results) == before


def test_the_labels_are_those_of_the_scripts() -> None:
    """Breaks when an id is mistyped: its class would be void, or never found."""
    assert {
        label.name: label.id for label in labels if label.hasInstances and not label.ignoreInEval
    } == LABELS
    assert sorted(label.id for label in labels if label.ignoreInEval) == sorted(VOID)


def test_a_city_without_objects_or_without_detections(tmp_path: Path) -> None:
    """Breaks when nothing to find is taken for nothing found, or when all that was found may be ignored."""
    truth, results = city(tmp_path, 0)
    assert figures("cityscapes", truth, [], kinds=("segm",)) == {"mask_AP": 0, "mask_AP50": 0}
    empty = {**truth, "images": truth["images"][-2:-1]}
    mine = [r for r in results if r["image_id"] == empty["images"][0]["id"]]
    assert len(mine) > 5 and cityscapes_figures(empty, mine) == {"mask_AP": -1, "mask_AP50": -1}
    ids = np.array(Image.open(truth["images"][0]["instance_ids"]))
    void = masks.encode(np.asfortranarray(np.isin(ids, VOID).astype(np.uint8)))
    unseen = [{"image_id": 50, "category_id": 3, "score": 0.5, "segmentation": void}]
    assert cityscapes_figures(truth, unseen) == {"mask_AP": 0, "mask_AP50": 0}


def test_boxes_are_measured_as_coco_measures_them(tmp_path: Path) -> None:
    """Breaks when boxes are dropped from a set whose own scripts know none."""
    truth, _ = city(tmp_path, 1, images=3)
    annotation = {
        "id": 1,
        "image_id": 50,
        "category_id": 3,
        "bbox": [4, 4, 50, 50],
        "area": 2500,
        "iscrowd": 0,
    }
    truth["annotations"] = [annotation]
    hit = [{"image_id": 50, "category_id": 3, "bbox": [4, 4, 50, 50], "score": 0.5}]
    found = figures("cityscapes", truth, hit)
    assert list(found) == list(FIGURES["bbox"]) and found["AP"] == pytest.approx(100)


def test_another_set_is_turned_away(tmp_path: Path) -> None:
    """Breaks when figures come out for truth that lacks void and groups."""
    truth, results = city(tmp_path, 2, images=3)
    with pytest.raises(ValueError, match="image 50 names no file of instance ids"):
        cityscapes_figures({**truth, "images": [{"id": 50, "width": 9, "height": 9}]}, [])
    with pytest.raises(ValueError, match="category dog is none of Cityscapes'"):
        cityscapes_figures({**truth, "categories": [{"id": 1, "name": "dog"}]}, [])
    with pytest.raises(ValueError, match="image 50 has no segmentation"):
        cityscapes_figures(truth, [{k: v for k, v in r.items() if k != "segmentation"} for r in results])
