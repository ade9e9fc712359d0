"""GPS and GPSm on a small made-up mesh, held to loops that take one point, one pair and one threshold at a time."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as masks

from boxwise.data.outlines import rle
from boxwise.transfer.metrics.densepose import DENSEPOSE_FIGURES, densepose_figures, packed, unpacked
from boxwise.transfer.metrics.geodesics import NORMS, Geodesics, load_geodesics

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
PARTS, VERTICES = 24, 60
WIDTH, HEIGHT = 320, 240


def mesh(seed: int = 0) -> dict[str, np.ndarray]:
    """Points in space with the straight way between them; each part has four samples, some vertices are samples of
    several parts, as on a seam."""
    rng = np.random.default_rng(seed)
    places = rng.normal(0, 0.1, (VERTICES, 3))
    part = np.repeat(np.arange(1, PARTS + 1), 4)
    vertex = np.concatenate([np.arange(VERTICES), rng.integers(0, VERTICES, len(part) - VERTICES)])
    rng.shuffle(vertex)
    triangle = [np.linalg.norm(places[i] - places[j]) for i in range(VERTICES) for j in range(i)]
    return {
        "distances": np.array(triangle, dtype=np.float32),
        "part": part,
        "uv": rng.uniform(0, 1, (len(part), 2)),
        "vertex": vertex,
        "norms": rng.uniform(0.1, 0.4, PARTS),
    }


@pytest.fixture
def body(tmp_path: Path) -> Geodesics:
    np.savez(tmp_path / "mesh.npz", **mesh())
    return load_geodesics(tmp_path / "mesh.npz")


def people(seed: int, images: int = 8) -> tuple[dict, list[dict]]:
    """People with and without points, crowds and empty images; what is found is theirs, moved and changed here and
    there, found twice, or nowhere."""
    rng = np.random.default_rng(seed)
    truth: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    results: list[dict] = []
    for number in range(images):
        truth["images"].append({"id": number, "width": WIDTH, "height": HEIGHT})
        for _ in range(int(rng.integers(0, 5)) if number != 3 else 0):
            surface, box = person(rng)
            annotation = {
                "id": len(truth["annotations"]),
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": box,
                "area": box[2] * box[3] * 0.7,
            }
            if rng.random() < 0.7:
                annotation |= points(rng, surface) | {"dp_masks": squares(surface)}
            elif rng.random() < 0.3:
                annotation["iscrowd"] = 1
            truth["annotations"].append(annotation)
            for _ in range(int(rng.integers(0, 3)) if number != 4 else 0):
                results.append(found(rng, number, surface, box))
        for _ in range(int(rng.integers(0, 3))):
            results.append(found(rng, number, *person(rng)))
    return truth, results


def person(rng: np.random.Generator) -> tuple[np.ndarray, list[float]]:
    """A surface that fills a box but for its corners, in patches of parts."""
    width, height = rng.uniform(12, 140, 2)
    box = [float(v) for v in (rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height), width, height)]
    tall, wide = int(height), int(width)
    patches = rng.integers(1, PARTS + 1, (3, 2))
    part = patches[np.arange(tall)[:, None] * 3 // tall, np.arange(wide)[None] * 2 // wide]
    y, x = np.mgrid[:tall, :wide]
    part[(y / tall - 0.5) ** 2 + (x / wide - 0.5) ** 2 > 0.3] = 0
    u, v = rng.integers(0, 256, (2, 3, 2))
    at = np.arange(tall)[:, None] * 3 // tall, np.arange(wide)[None] * 2 // wide
    return np.stack([part, u[at], v[at]]).astype(np.uint8), box


def points(rng: np.random.Generator, surface: np.ndarray) -> dict:
    """Marked where they are, and every tenth of no part."""
    count = 12
    x, y = rng.uniform(0, 255, (2, count))
    row, column = (y / 256 * surface.shape[1]).astype(int), (x / 256 * surface.shape[2]).astype(int)
    part, u, v = surface[:, row, column]
    part = np.where(part == 0, rng.integers(0, PARTS + 1, count), part)
    return {
        "dp_x": x.tolist(),
        "dp_y": y.tolist(),
        "dp_I": part.astype(float).tolist(),
        "dp_U": (u / 255).tolist(),
        "dp_V": (v / 255).tolist(),
    }


def squares(surface: np.ndarray) -> list:
    """Two masks of 256 pixels, upper and lower half, and what is not to be seen empty."""
    rows, columns = (np.arange(256) * side // 256 for side in surface.shape[1:])
    whole = (surface[0][rows[:, None], columns[None]] > 0).astype(np.uint8)
    upper, lower = whole.copy(), whole.copy()
    upper[128:], lower[:128] = 0, 0
    coded = [masks.encode(np.asfortranarray(part)) for part in (upper, lower)]
    return [*({"size": [256, 256], "counts": c["counts"].decode("ascii")} for c in coded), *[[]] * 12]


def found(rng: np.random.Generator, image: int, surface: np.ndarray, box: list[float]) -> dict:
    """Moved by up to three pixels, some parts mistaken, u and v a little off."""
    moved = [box[0] + rng.uniform(-3, 3), box[1] + rng.uniform(-3, 3), box[2], box[3]]
    seen = surface.astype(int)
    mistaken = rng.integers(1, PARTS + 1)
    seen[0][seen[0] == mistaken] = rng.integers(1, PARTS + 1)
    if rng.random() < 0.3:
        seen[0, : seen.shape[1] // 2] = 0
    seen[1:] = (seen[1:] + rng.integers(-9, 10, (2, 1, 1))).clip(0, 255)
    about = {"image_id": image, "category_id": 1, "score": round(float(rng.random()), 1), "bbox": moved}
    return about | packed(seen.astype(np.uint8))


# The loops.


def vertex_of(part: int, u: float, v: float, held: dict) -> int | None:
    near = [
        ((u - held["uv"][k][0]) ** 2 + (v - held["uv"][k][1]) ** 2, k)
        for k in range(len(held["part"]))
        if held["part"][k] == part
    ]
    return int(held["vertex"][min(near)[1]]) if near else None


def slow_gps(annotation: dict, result: dict, held: dict) -> float:
    surface, (left, top, width, height) = unpacked(result), annotation["bbox"]
    total, count = 0.0, 0
    for k, part in enumerate(annotation["dp_I"]):
        if part == 0:
            continue
        count += 1
        column = int(annotation["dp_x"][k] * width / 255 + left - result["bbox"][0])
        row = int(annotation["dp_y"][k] * height / 255 + top - result["bbox"][1])
        if not (0 <= column < int(result["bbox"][2]) and 0 <= row < int(result["bbox"][3])):
            continue
        seen = [int(n) for n in surface[:, row, column]]
        there = vertex_of(seen[0], seen[1] / 255, seen[2] / 255, held)
        known = vertex_of(int(part), annotation["dp_U"][k], annotation["dp_V"][k], held)
        if there is None or known is None:
            continue
        i, j = max(there, known), min(there, known)
        apart = 0.0 if i == j else float(held["distances"][i * (i - 1) // 2 + j])
        total += math.exp(-(apart**2) / (2 * held["norms"][int(part) - 1] ** 2))
    return total / count if count else 0.0


def slow_overlap(annotation: dict, result: dict) -> float:
    """IoU of masks, pixel by pixel of the image; the annotated one is read between the pixels of its square."""
    square = np.zeros((256, 256))
    for part in annotation["dp_masks"]:
        if part:
            square[masks.decode(part) > 0] = 1
    left, top, width, height = annotation["bbox"]
    tall, wide = round(height), round(width)
    surface = unpacked(result)
    both = either = 0
    boxes = annotation["bbox"], result["bbox"]
    for y in range(*ends(1, HEIGHT, *boxes)):
        for x in range(*ends(0, WIDTH, *boxes)):
            row, column = y - int(top), x - int(left)
            inside = 0 <= row < min(tall, int(top + height) - int(top))
            inside = inside and 0 <= column < min(wide, int(left + width) - int(left))
            known = inside and between(square, row * 255 / (tall - 1), column * 255 / (wide - 1)) > 0.5
            row, column = y - int(result["bbox"][1]), x - int(result["bbox"][0])
            seen = 0 <= row < surface.shape[1] and 0 <= column < surface.shape[2]
            seen = seen and surface[0, row, column] > 0
            both, either = both + (known and seen), either + (known or seen)
    return both / either if either else 0.0


def ends(side: int, most: int, *boxes: list[float]) -> tuple[int, int]:
    """First and last pixel that a box may reach, by columns or rows."""
    last = max(int(b[side] + b[side + 2]) + 2 for b in boxes)
    return max(min(int(b[side]) for b in boxes), 0), min(last, most)


def between(square: np.ndarray, y: float, x: float) -> float:
    top, left = min(int(y), 254), min(int(x), 254)
    down, right = y - top, x - left
    upper = square[top, left] * (1 - right) + square[top, left + 1] * right
    lower = square[top + 1, left] * (1 - right) + square[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def box_iou(a: list[float], b: list[float], crowd: int) -> float:
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - shared)


def slow_figures(truth: dict, results: list[dict], similarity: dict, prefix: str) -> dict[str, float]:
    """By the rules one at a time; `similarity` of (place in results, id of annotation)."""
    figures = {}
    for size, low, high in (("", 0, 1e10), ("m", 1024, 9216), ("l", 9216, 1e10)):
        aps, recalls = [], []
        verdicts = {t: [] for t in range(10)}
        objects = 0
        for image in truth["images"]:
            people = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
            skip = {a["id"]: "dp_x" not in a or not low <= a["area"] <= high for a in people}
            objects += sum(not s for s in skip.values())
            people.sort(key=lambda a: skip[a["id"]])
            mine = [(k, r) for k, r in enumerate(results) if r["image_id"] == image["id"]]
            mine = sorted(mine, key=lambda m: -m[1]["score"])[:20]
            match: dict = {}
            ignored: dict = {(t, k): all(skip.values()) for t in range(10) for k, _ in mine}
            for t in range(10):
                taken = set()
                for k, _ in mine:
                    least, best = 0.5 + 0.05 * t, None
                    for a in people:
                        if a["id"] in taken and not a["iscrowd"]:
                            continue
                        if best is not None and not skip[best] and skip[a["id"]]:
                            break
                        value = similarity.get((k, a["id"]), 0.0)
                        if value >= least:
                            least, best = value, a["id"]
                    if best is not None:
                        match[t, k], ignored[t, k] = best, skip[best]
                        taken.add(best)
            for k, r in mine:
                if (9, k) in match:
                    continue
                least, best = 0.8, None
                for a in people:
                    if a["id"] in taken and not a["iscrowd"]:
                        continue
                    value = box_iou(r["bbox"], a["bbox"], a["iscrowd"])
                    if value >= least:
                        least, best = value, a["id"]
                if best is not None:
                    for t in range(10):
                        ignored[t, k] = skip[best]
                    if skip[best]:
                        match[9, k] = best
                        taken.add(best)
            for t in range(10):
                for k, r in mine:
                    beyond = not low <= r["bbox"][2] * r["bbox"][3] <= high
                    if not (ignored[t, k] or ((t, k) not in match and beyond)):
                        verdicts[t].append((r["score"], (t, k) in match))
        for t in range(10 if objects else 0):
            right = wrong = 0
            curve = []
            for _, hit in sorted(verdicts[t], key=lambda v: -v[0]):
                right, wrong = right + hit, wrong + (not hit)
                curve.append((right / objects, right / (right + wrong)))
            reached = [
                max((p for r, p in curve if r >= recall), default=0) for recall in np.linspace(0, 1, 101)
            ]
            aps.append(sum(reached) / 101)
            recalls.append(right / objects)
        for name, values in (("AP", aps), ("AR", recalls)):
            figures[f"{prefix}_{name}{size}"] = 100 * sum(values) / 10 if objects else -1
            if not size:
                figures |= {f"{prefix}_{name}50": 100 * values[0], f"{prefix}_{name}75": 100 * values[5]}
    return figures


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_the_loops(seed: int, body: Geodesics) -> None:
    """Breaks when a point is read at another pixel or another vertex, when distances are of another pair, when
    masks lie elsewhere, or when other detections are ignored."""
    truth, results = people(seed)
    before = copy.deepcopy((truth, results))
    mine = densepose_figures(truth, results, body)
    held = mesh()
    gps, gpsm = {}, {}
    for k, result in enumerate(results):
        for a in truth["annotations"]:
            if a["image_id"] == result["image_id"] and "dp_x" in a:
                gps[k, a["id"]] = slow_gps(a, result, held)
                if gps[k, a["id"]] > 0.2:  # below, no mask can lift it to 0.5
                    gpsm[k, a["id"]] = math.sqrt(gps[k, a["id"]] * slow_overlap(a, result))
    expected = slow_figures(truth, results, gps, "gps") | slow_figures(truth, results, gpsm, "gpsm")
    assert list(mine) == list(DENSEPOSE_FIGURES) and len(mine) == 20
    for name in DENSEPOSE_FIGURES:
        assert mine[name] == pytest.approx(expected[name], abs=1e-9, rel=0), name
    assert 0 < mine["gps_AP"] < mine["gps_AP50"] < 100 and mine["gpsm_AP"] != mine["gps_AP"]
    assert (truth, results) == before


def one(**changes: object) -> tuple[dict, dict]:
    """A person of 40 x 40 pixels, part 1 with one point in the middle, and the detection that is right."""
    surface = np.zeros((3, 40, 40), dtype=np.uint8)
    surface[0] = 1
    held = mesh()
    first = int(np.flatnonzero(held["part"] == 1)[0])
    u, v = (round(float(c) * 255) for c in held["uv"][first])
    surface[1], surface[2] = u, v
    annotation = {
        "id": 0,
        "image_id": 0,
        "category_id": 1,
        "bbox": [10.0, 10.0, 40.0, 40.0],
        "area": 1600.0,
        "iscrowd": 0,
        "dp_x": [127.5],
        "dp_y": [127.5],
        "dp_I": [1.0],
        "dp_U": [u / 255],
        "dp_V": [v / 255],
        "segmentation": [[10, 10, 50, 10, 50, 50, 10, 50]],
    }
    truth = {
        "images": [{"id": 0, "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{**annotation, **changes}],
    }
    result = {"image_id": 0, "category_id": 1, "score": 0.5, "bbox": [10.0, 10.0, 40.0, 40.0]}
    return truth, result | packed(surface)


def test_a_perfect_and_a_mistaken_point(body: Geodesics) -> None:
    """Breaks when the formula loses its square, its 2 or the norm of the annotated part."""
    truth, right = one()
    figures = densepose_figures(truth, [right], body)
    perfect = ("gps_AP", "gps_APm", "gps_AR", "gpsm_AP", "gpsm_AR75")
    assert [figures[n] for n in perfect] == pytest.approx([100] * 5)
    assert figures["gps_APl"] == figures["gpsm_ARl"] == -1
    nothing = densepose_figures(truth, [], body)
    assert {v for n, v in nothing.items() if not n.endswith("l")} == {0}
    held, surface = mesh(), unpacked(right).copy()
    (known,) = body.nearest(np.array([1]), surface[1:, 0, 0][None] / 255)
    places = [np.flatnonzero(held["part"] == p)[0] for p in range(2, PARTS + 1)]
    values = []
    for place in places:
        surface[0], surface[1:] = held["part"][place], np.round(held["uv"][place] * 255)[:, None, None]
        (there,) = body.nearest(np.array([held["part"][place]]), surface[1:, 0, 0][None] / 255)
        i, j = max(known, there), min(known, there)
        apart = 0.0 if i == j else float(held["distances"][i * (i - 1) // 2 + j])
        gps = math.exp(-(apart**2) / (2 * held["norms"][0] ** 2))
        found = densepose_figures(truth, [right | packed(surface)], body)
        assert found["gps_AP"] == pytest.approx(10 * sum(gps >= 0.5 + 0.05 * t for t in range(10)))
        values.append(found["gps_AP"])
    assert len(set(values)) > 3


def test_masks_pull_gpsm_down(body: Geodesics) -> None:
    """Breaks when background that is taken for body costs nothing: a point alone cannot see it. Half of the mask:
    sqrt(0.5) is above five of ten thresholds."""
    truth, right = one(segmentation=[[10, 10, 50, 10, 50, 30, 10, 30]], dp_y=[60.0])
    figures = densepose_figures(truth, [right], body)
    assert figures["gps_AP"] == pytest.approx(100) and figures["gpsm_AP"] == pytest.approx(50)
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[10:30, 10:50] = 1
    runs = [int(n) for n in np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=2, append=2)))]
    for outline in (
        rle(mask),
        {"size": [100, 100], "counts": runs},
    ):  # packed, as turned images have it, and plain
        assert densepose_figures(one(segmentation=outline, dp_y=[60.0])[0], [right], body) == figures


def test_people_without_points_are_ignored(body: Geodesics) -> None:
    """Breaks when finding someone nobody marked is wrong."""
    truth, right = one()
    far = {**right, "bbox": [55.0, 55.0, 40.0, 40.0], "score": 0.9}
    unmarked = {k: v for k, v in truth["annotations"][0].items() if not k.startswith("dp_")}
    two = {**truth, "annotations": [*truth["annotations"], {**unmarked, "id": 1, "bbox": [55, 55, 40, 40]}]}
    assert densepose_figures(two, [far, right], body)["gps_AP"] == pytest.approx(100)
    assert densepose_figures(truth, [far, right], body)["gps_AP"] == pytest.approx(50)
    alone = {**truth, "annotations": [unmarked]}
    assert set(densepose_figures(alone, [far, right], body).values()) == {-1}


def test_surfaces_go_through_json() -> None:
    """Breaks when a PNG mixes its channels or its sides, or loses a part to a palette."""
    surface = np.random.default_rng(0).integers(0, 256, (3, 5, 9)).astype(np.uint8)
    about = {"image_id": 4, "bbox": [0.5, 0.5, 9.9, 5.1]}
    coded = packed(surface)
    assert coded["uv_shape"] == [3, 5, 9] and np.array_equal(unpacked(about | coded), surface)
    with pytest.raises(ValueError, match=r"image 4 has a surface of \(5, 9\) pixels in a box of \(5, 10\)"):
        unpacked(about | coded | {"bbox": [0, 0, 10, 5]})
    with pytest.raises(ValueError, match="image 4 has no uv_data"):
        unpacked(about)


def test_the_official_norms_are_taken_unless_told(tmp_path: Path, body: Geodesics) -> None:
    """Breaks when a mesh without norms is measured by one for all parts, or its own are not read."""
    np.savez(tmp_path / "plain.npz", **{k: v for k, v in mesh().items() if k != "norms"})
    norms = load_geodesics(tmp_path / "plain.npz").norms
    assert tuple(norms) == NORMS and len(NORMS) == PARTS and len(set(NORMS)) == 8
    assert (norms[0], norms[2], norms[4], norms[8], norms[23]) == (0.351, 0.107, 0.126, 0.237, 0.150)
    assert np.array_equal(body.norms, mesh()["norms"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"distances": None}, "lacks distances"),
        ({"distances": np.zeros(1769)}, "1769 distances are not those of all pairs of 60 vertices"),
        ({"part": np.repeat(np.arange(24), 4)}, "its parts are not 1 to 24"),
        ({"uv": np.zeros((2, 96))}, "are not of the same samples"),
        ({"distances": -np.ones(1770)}, "its distances are not all 0 or more"),
        ({"distances": np.full(1770, np.nan)}, "its distances are not all 0 or more"),
        ({"uv": np.full((96, 2), np.inf)}, "its uv are not all numbers"),
        ({"vertex": np.array(["a"] * 96)}, "vertex: no numbers"),
        ({"norms": np.zeros(24)}, "norms are not 24 positive numbers"),
        ({"part": np.array([{}] * 96)}, "cannot be read"),
    ],
)
def test_a_file_that_is_no_mesh(change: dict, reason: str, tmp_path: Path) -> None:
    """Breaks when a wrong file fails far from its name, or when code in a file is run."""
    arrays = {k: v for k, v in (mesh() | change).items() if v is not None}
    np.savez(tmp_path / "mesh.npz", **arrays)
    with pytest.raises(ValueError, match=f"mesh.npz: .*{reason}.*--geodesics takes an .npz with distances"):
        load_geodesics(tmp_path / "mesh.npz")


def test_a_file_that_is_nothing(tmp_path: Path) -> None:
    """Breaks when a missing or another kind of file ends in a trace."""
    (tmp_path / "mesh.npz").write_text("no mesh")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("mesh.npz", "missing.npz", "one.npy"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read"):
            load_geodesics(tmp_path / name)
