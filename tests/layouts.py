"""Small data sets in the exact layouts of VOC, LVIS, Cityscapes, DensePose and YOLO, for several rooms' tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

COCO_CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "bee"}]
VOC_OBJECT = """
	<object>
		<name>{name}</name>
		<pose>Left</pose>
		<truncated>1</truncated>
		<difficult>{difficult}</difficult>
		<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
		<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
	</object>"""
LVIS_CATEGORIES = [
    {"id": k, "name": name, "synset": f"{name}.n.01", "frequency": frequency, "image_count": 1}
    for k, name, frequency in ((1, "aerosol_can", "c"), (2, "air_conditioner", "f"), (3, "zucchini", "r"))
]


def picture(path: Path, width: int = 40, height: int = 30, *, exif: int | None = None) -> Path:
    """A photo that can be read; with `exif`, one that was held so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    note = Image.Exif()
    if exif is not None:
        note[0x0112] = exif
    Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8)).save(path, exif=note)
    return path


def coco_set(root: Path, *, bees: bool = True) -> Path:
    """Two images to train on, with a crowd, outlines and an image without boxes; one of a bee to measure on."""
    cat = {"category_id": 3, "bbox": [4, 5, 10, 20], "segmentation": [[4, 5, 14, 5, 14, 25]], "area": 100.0}
    bee = {"category_id": 7 if bees else 3, "bbox": [20, 2, 4, 4], "segmentation": [[20, 2, 24, 2, 24, 6]]}
    crowd = {"category_id": 3, "bbox": [0, 0, 40, 30], "iscrowd": 1, "segmentation": [[0, 0, 40, 0, 40, 30]]}
    for split, found in (("train", [[cat, bee, crowd], []]), ("val", [[{**bee, "category_id": 7}]])):
        images = [
            {"id": k, "file_name": f"{split}{k}.png", "width": 40, "height": 30} for k in range(len(found))
        ]
        for image in images:
            picture(root / f"{split}2017" / str(image["file_name"]))
        boxes = [{"image_id": k, **one} for k, some in enumerate(found) for one in some]
        annotations = [{"id": n, **one} for n, one in enumerate(boxes, start=1)]
        content = {"images": images, "annotations": annotations, "categories": COCO_CATEGORIES}
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return root


def edit(file: Path, change: Callable[[Any], object]) -> None:
    """A json, changed in place."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def voc_image(folder: Path, name: str, objects: Sequence[tuple[str, tuple[float, ...], int]]) -> None:
    """`objects`: name, box of VOC's (1-based, its last pixel included), difficult."""
    picture(folder / f"JPEGImages/{name}.jpg")
    held = "".join(VOC_OBJECT.format(name=n, box=box, difficult=d) for n, box, d in objects)
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    text = f"<annotation>\n\t<filename>{name}.jpg</filename>\n\t{size}{held}\n</annotation>\n"
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / f"Annotations/{name}.xml").write_text(text)


def voc_lists(folder: Path, **names: Sequence[str]) -> None:
    (folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    for split, listed in names.items():
        (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in listed))


def voc_devkit(root: Path) -> Path:
    """VOCdevkit with 2007 (two trainval, one test image) and 2012 (one trainval image)."""
    old, new = root / "VOCdevkit/VOC2007", root / "VOCdevkit/VOC2012"
    voc_image(old, "000005", [("dog", (1, 1, 40, 30), 0), ("person", (11, 6, 20, 25), 1)])
    voc_image(old, "000007", [("car", (5, 5, 9, 9), 0)])
    voc_image(old, "000001", [("person", (3, 4, 12, 13), 0), ("dog", (20, 20, 20, 20), 1)])
    voc_image(new, "2008_000002", [("tvmonitor", (34.5, 11, 40, 29), 0)])
    voc_lists(old, trainval=["000005", "000007"], train=["000005"], val=["000007"], test=["000001"])
    voc_lists(new, trainval=["2008_000002"], train=["2008_000002"], val=[])
    return root / "VOCdevkit"


def yolo_set(root: Path, **settings: Any) -> Path:
    """Two images to train on, of which one has no labels, and one to measure on."""
    for name in ("train/a", "train/sub/b", "val/c"):
        picture(root / f"images/{name}.jpg")
    for name, text in (
        ("train/a", "0 0.5 0.5 0.25 0.2\n1 0.1 0.1 0.5 0.1 0.5 0.5\n"),
        ("val/c", "1 0.25 0.5 0.5 1.0\n"),
    ):
        (root / f"labels/{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"labels/{name}.txt").write_text(text)
    lines = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"], **settings}
    (root / "data.yaml").write_text(yaml.safe_dump({k: v for k, v in lines.items() if v is not None}))
    return root / "data.yaml"


def lvis_set(root: Path) -> Path:
    """Photos named by their address; the val split has one of COCO's train2017, as LVIS does."""
    for split, photos in (
        ("train", ["train2017/000000000009", "train2017/000000000025"]),
        ("val", ["val2017/000000000139", "train2017/000000000030"]),
    ):
        images, annotations = [], []
        for k, name in enumerate(photos, start=1):
            picture(root / f"{name}.jpg")
            address = f"http://images.cocodataset.org/{name}.jpg"
            about: dict[str, Any] = {"id": k, "width": 40, "height": 30, "coco_url": address, "license": 1}
            images.append({**about, "neg_category_ids": [3], "not_exhaustive_category_ids": [2]})
            square = [4.0, 5.0, 10.0, 5.0, 10.0, 12.0, 4.0, 12.0]
            box = {"bbox": [4.0, 5.0, 6.0, 7.0], "area": 42.0, "segmentation": [square]}
            annotations.append({"id": k, "image_id": k, "category_id": k, **box})
        content = {"info": {}, "images": images, "annotations": annotations, "categories": LVIS_CATEGORIES}
        (root / f"lvis_v1_{split}.json").write_text(json.dumps({**content, "licenses": []}))
    return root


CITY_OBJECTS = [
    {"label": "road", "polygon": [[0, 0], [39, 0], [39, 29], [0, 29]]},
    {"label": "car", "polygon": [[2, 3], [11, 3], [11, 8], [2, 8]]},
    {"label": "car", "polygon": [[8, 3], [15, 3], [15, 6], [8, 6]]},
    {"label": "cargroup", "polygon": [[20, 10], [24, 10], [24, 14], [20, 14]]},
    {"label": "person", "polygon": [[30, 20], [32, 20], [32, 27], [30, 27]]},
    {"label": "license plate", "polygon": [[3, 6], [4, 6], [4, 7], [3, 7]]},
    {"label": "sky", "polygon": [[35, 0], [39, 0], [39, 2], [35, 2]], "deleted": 1},
]
"""Polygons hold their last pixel. The second car hides a part of the first."""


def city_ids(*, counted: bool) -> np.ndarray:
    """The picture of instances (`counted`) or classes that CITY_OBJECTS stand for, by slices."""
    ids = np.full((30, 40), 7, dtype=np.uint16)
    ids[3:9, 2:12] = 26000 if counted else 26
    ids[3:7, 8:16] = 26001 if counted else 26
    ids[10:15, 20:25] = 26
    ids[20:28, 30:33] = 24000 if counted else 24
    return ids


def cityscapes_set(root: Path, *, pictures: bool = True) -> Path:
    """One image a split; without `pictures`, polygons are all that is known of it."""
    for split, city in (("train", "aachen"), ("val", "munster")):
        stem = f"{split}/{city}/{city}_000000_000019"
        picture(root / f"leftImg8bit/{stem}_leftImg8bit.png")
        truth = root / f"gtFine/{stem}_gtFine_polygons.json"
        truth.parent.mkdir(parents=True, exist_ok=True)
        truth.write_text(json.dumps({"imgHeight": 30, "imgWidth": 40, "objects": CITY_OBJECTS}))
        if pictures:
            Image.fromarray(city_ids(counted=True)).save(root / f"gtFine/{stem}_gtFine_instanceIds.png")
            plain = Image.fromarray(city_ids(counted=False).astype(np.uint8))
            plain.save(root / f"gtFine/{stem}_gtFine_labelIds.png")
    return root


def densepose_set(root: Path) -> Path:
    """DensePose-COCO: train and minival, COCO 2014's photos, two people of whom one is marked."""
    marks = {
        "dp_x": [10.0, 200.5],
        "dp_y": [128.0, 64.25],
        "dp_I": [2.0, 23.0],
        "dp_U": [0.25, 0.5],
        "dp_V": [0.75, 0.125],
        "dp_masks": [{"size": [256, 256], "counts": "PPP8"}, *[[]] * 13],
    }
    person = {"category_id": 1, "iscrowd": 0, "area": 200.0, "num_keypoints": 1}
    person |= {"keypoints": [5, 6, 2, *[0] * 48], "segmentation": [[4, 5, 14, 5, 14, 25, 4, 25]]}
    for name, folder in (("train", "train2014"), ("minival", "val2014")):
        image = f"COCO_{folder}_000000000009.jpg"
        picture(root / folder / image)
        annotations = [
            {"id": 1, "image_id": 9, "bbox": [4.0, 5.0, 10.0, 20.0], **person, **marks},
            {"id": 2, "image_id": 9, "bbox": [20.0, 5.0, 8.0, 8.0], **person},
        ]
        content = {
            "images": [{"id": 9, "file_name": image, "width": 40, "height": 30}],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
        }
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / f"annotations/densepose_coco_2014_{name}.json").write_text(json.dumps(content))
    return root
