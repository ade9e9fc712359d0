import copy
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as scripts
from cityscapesscripts.helpers.labels import labels
from PIL import Image
from pycocotools import mask as masks

from boxwise.data.formats.cityscapes import COUNTABLE, THINGS, VOID, read_cityscapes
from boxwise.transfer.metrics import FIGURES, curves, figures
from boxwise.transfer.metrics.cityscapes import cityscapes_figures

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
HEIGHT, WIDTH = 96, 160


def ellipse(rng: np.random.Generator, small: bool) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    tall, wide = rng.uniform(2, 5, 2) if small else rng.uniform(8, 26, 2)
    top, left = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
    return ((y - top) / tall) ** 2 + ((x - left) / wide) ** 2 < 1


def moved(mask: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    return np.roll(mask, rng.integers(-most, most + 1, 2), (0, 1))


def city(root: Path, seed: int, images: int = 6) -> tuple[dict, list[dict]]:
    """Streets of void and road with objects, small ones and groups, as Cityscapes lays them out and as they are
    read; the last two images have no objects or no detections. Scores are tied, objects are found several times,
    and much is seen where nothing is."""
    rng = np.random.default_rng(seed)
    results: list[dict] = []
    for folder in ("leftImg8bit/val/town", "gtFine/val/town"):
        (root / folder).mkdir(parents=True)
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
        name = f"town_{number:06d}_000019"
        Image.fromarray(ids).save(root / f"gtFine/val/town/{name}_gtFine_instanceIds.png")
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"leftImg8bit/val/town/{name}_leftImg8bit.png")
        for label, mask in seen if number < images - 1 else []:
            rle = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode("ascii")}
            score = round(float(rng.random()), 1)
            about = {"image_id": number + 1, "category_id": label, "score": score}
            results.append(about | {"segmentation": segmentation})
    return read_cityscapes(root, "val")[0], results


def instance_ids(root: Path) -> list[str]:
    return [str(file) for file in sorted(root.glob("gtFine/val/town/*"))]


def oracle(
    truth: dict, results: list[dict], folder: Path, patch: pytest.MonkeyPatch
) -> tuple[dict, np.ndarray]:
    """The averages of the scripts, and AP by class and overlap, from the files that they read."""
    patch.setattr(np, "in1d", np.isin, raising=False)  # gone from numpy since the scripts were written
    args = copy.copy(scripts.args)
    args.quiet, args.gtInstancesFile = True, str(folder / "gtInstances.json")
    args.predictionPath = str(folder)
    scripts.setInstanceLabels(args)
    said = []
    for image in truth["images"]:
        lines = []
        for k, result in enumerate(results):
            if result["image_id"] == image["id"]:
                mask = masks.decode(result["segmentation"])
                Image.fromarray(mask * 255).save(folder / f"found_{k}.png")
                lines.append(f"found_{k}.png {result['category_id']} {result['score']}\n")
        said.append(str(folder / f"{image['id']}_pred.txt"))
        Path(said[-1]).write_text("".join(lines))
    files = instance_ids(folder)
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
    measured = [label for label in labels if not label.ignoreInEval]
    assert {label.id: label.name for label in measured if label.hasInstances} == THINGS
    assert {label.id for label in labels if label.ignoreInEval} == {*VOID, -1}
    assert {label.id for label in labels if label.hasInstances} == {*COUNTABLE}


def test_a_city_without_objects_or_without_detections(tmp_path: Path) -> None:
    """Breaks when nothing to find is taken for nothing found, or when all that was found may be ignored."""
    truth, results = city(tmp_path, 0)
    assert figures("cityscapes", truth, [], kinds=("segm",)) == {"mask_AP": 0, "mask_AP50": 0}
    unseen = [{"image_id": 1, "category_id": 26, "score": 0.5, "segmentation": truth["images"][0]["void"]}]
    assert cityscapes_figures(truth, unseen) == {"mask_AP": 0, "mask_AP50": 0}
    lonely = truth["images"][-2]
    nobody = [a for a in truth["annotations"] if a["image_id"] == lonely["id"]]
    empty = {**truth, "images": [lonely], "annotations": nobody}
    mine = [r for r in results if r["image_id"] == lonely["id"]]
    assert not nobody and len(mine) > 5
    assert cityscapes_figures(empty, mine) == {"mask_AP": -1, "mask_AP50": -1}


def test_boxes_are_measured_as_coco_measures_them(tmp_path: Path) -> None:
    """Breaks when boxes are dropped from a set whose own scripts know none."""
    truth, _ = city(tmp_path, 1, images=3)
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    hits = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in objects]
    found = figures("cityscapes", truth, hits)
    assert list(found) == list(FIGURES["bbox"]) and found["AP"] == pytest.approx(100)


def test_what_lacks_void_or_masks_is_turned_away(tmp_path: Path) -> None:
    """Breaks when figures come out for truth that does not say what is to be ignored."""
    truth, results = city(tmp_path, 2, images=3)
    with pytest.raises(ValueError, match="image 1 does not say where it is void"):
        cityscapes_figures(
            {**truth, "images": [{k: v for k, v in i.items() if k != "void"} for i in truth["images"]]}, []
        )
    with pytest.raises(ValueError, match="image 1 has no segmentation"):
        cityscapes_figures(truth, [{k: v for k, v in r.items() if k != "segmentation"} for r in results])
