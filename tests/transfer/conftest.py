"""A labelled set on disk, as COCO writes it, and families of detectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from boxwise.data.targets import Labelled, open_labelled
from boxwise.transfer.detectors.one_stage import OneStage
from one_stages import FAMILIES

SIZES = ((90, 120), (128, 128), (64, 200), (150, 70), (128, 96), (31, 40))
CATEGORIES = ({"id": 3, "name": "green"}, {"id": 7, "name": "red"})


def draw(index: int) -> tuple[torch.Tensor, list[dict[str, object]]]:
    """Noise with up to three bright rectangles; image 2 is empty, the third box of an image is a crowd."""
    height, width = SIZES[index]
    generator = torch.Generator().manual_seed(index)
    picture = torch.randint(0, 60, (3, height, width), generator=generator, dtype=torch.uint8)
    annotations: list[dict[str, object]] = []
    for n in range(0 if index == 2 else 1 + index % 3):
        w, h = (int(side * (0.2 + 0.4 * torch.rand(1, generator=generator))) for side in (width, height))
        x, y = (int(room * torch.rand(1, generator=generator)) for room in (width - w, height - h))
        category = CATEGORIES[n % 2]["id"]
        picture[n % 2, y : y + h, x : x + w] = 255
        annotations.append(
            {"category_id": category, "bbox": [x, y, w, h], "area": w * h, "iscrowd": int(n == 2)}
        )
    return picture, annotations


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """Six images of six sizes, ids 100, 111, ..., two categories whose ids are not 1 and 2."""
    root: Path = tmp_path_factory.mktemp("drawn")
    images, annotations = [], []
    for i, (height, width) in enumerate(SIZES):
        picture, boxes = draw(i)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(root / f"{i}.png")
        images.append({"id": 100 + 11 * i, "file_name": f"{i}.png", "height": height, "width": width})
        annotations += [
            {**box, "id": len(annotations) + n + 1, "image_id": 100 + 11 * i} for n, box in enumerate(boxes)
        ]
    file = root / "boxes.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return open_labelled(file, split="train", images=root)


@pytest.fixture(params=[*FAMILIES])
def family(request: pytest.FixtureRequest) -> type[OneStage]:
    """RetinaNet, then FCOS."""
    return FAMILIES[request.param]  # type: ignore[no-any-return]
