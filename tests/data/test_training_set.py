"""What is trained on, and how often: empty images, difficult things, few keypoints, rare categories."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_targets import ground, opened

from boxwise.config import TransferData
from boxwise.data.order import Item, Sampler
from boxwise.data.targets import Labelled, open_labelled
from boxwise.data.training_set import Repeated, needed, repeat_factors, training_set
from layouts import voc_devkit


def ids(labelled: Labelled) -> list[int]:
    return [labelled.image_id(i) for i in range(len(labelled))]


def test_nothing_is_left_out_unless_asked(tmp_path: Path) -> None:
    labelled = opened(tmp_path)
    assert ids(training_set(labelled, TransferData())) == [12, 5, 8]
    assert needed(TransferData()) == ()


def test_images_without_boxes_can_be_left_out(tmp_path: Path) -> None:
    """Breaks when an image of crowds alone counts as one with boxes, or rows are taken for places in a subset."""
    content = ground()
    content["annotations"][2]["iscrowd"] = 1
    labelled = opened(tmp_path, content)
    assert ids(training_set(labelled, TransferData(drop_empty=True))) == [12]
    assert ids(training_set(labelled.subset([2, 1, 0]), TransferData(drop_empty=True))) == [12]
    with pytest.raises(ValueError, match=r"boxes\.json: none of 2 images is left to train on"):
        training_set(labelled.subset([1, 2]), TransferData(drop_empty=True))


def test_difficult_things_can_be_left_out(tmp_path: Path) -> None:
    """The person of the first image. Breaks when boxes after it are those of others, or the outlines slip."""
    voc_devkit(tmp_path)
    data = TransferData(difficult=False)
    train = open_labelled(tmp_path, split="train", extras=needed(data))
    found = training_set(train, data)
    assert [found.read(i)[1].boxes.tolist() for i in range(3)] == [
        [[0, 0, 40, 30]],
        [[4, 4, 9, 9]],
        [[33.5, 10, 40, 29]],
    ]
    assert found.read(0)[1].extras == {"difficult": (0,)}
    assert [a["category_id"] for a in found.coco()["annotations"]] == [12, 7, 20]
    assert len(train.read(0)[1].boxes) == 2, "the set itself is as it was"


def test_images_with_few_keypoints_can_be_left_out(tmp_path: Path) -> None:
    """Hidden points (1) are labelled, absent ones (0) are not; those of an image count together."""
    content = ground()
    for annotation, marks in zip(
        content["annotations"], ([1, 1, 2, 0, 0, 0], [1, 1, 1, 0, 0, 0], [3, 3, 1, 4, 4, 2]), strict=True
    ):
        annotation["keypoints"] = marks
    data = TransferData(min_keypoints=2)
    labelled = opened(tmp_path, content, extras=needed(data))
    assert ids(training_set(labelled, data)) == [5]
    assert ids(training_set(labelled, TransferData(min_keypoints=1))) == [12, 5]


# Rare categories


@pytest.fixture
def rare(tmp_path: Path) -> Labelled:
    """100 images: the first shows a dog (1 in 100) and a cat, four a bee (4), 96 a cat, the last none."""
    images = [{"id": i, "file_name": "12.png", "width": 40, "height": 30} for i in range(1, 101)]
    shown = {i: [3] for i in range(1, 96)} | {96: [7], 97: [7], 98: [7], 99: [7, 7]}
    shown[1].append(90)
    boxes = [(i, k) for i, kinds in shown.items() for k in kinds]
    annotations = [
        {"id": n, "image_id": i, "category_id": k, "bbox": [1, 1, 5, 5]} for n, (i, k) in enumerate(boxes, 1)
    ]
    return opened(tmp_path, ground(images=images, annotations=annotations))


def test_factors_follow_the_rarest_category(rare: Labelled) -> None:
    """By hand: sqrt(.09 / .01) = 3, sqrt(.09 / .04) = 1.5. Breaks when boxes are counted for images."""
    factors = repeat_factors(rare, 0.09)
    assert factors.tolist() == pytest.approx([3.0, *[1.0] * 94, *[1.5] * 4, 1.0])
    few = repeat_factors(rare.subset([0, 95, 96, 99]), 0.5)
    assert few.tolist() == pytest.approx([2**0.5, 1.0, 1.0, 1.0]), "shares are of the set that is trained on"
    assert repeat_factors(rare, 0.001).tolist() == [1.0] * 100


def passes(sampler: Sampler, steps: int) -> list[list[Item]]:
    return [batch for _, batch in zip(range(steps), sampler, strict=False)]


def repeated(
    factors: list[float], *, start: int = 0, rank: int = 0, world: int = 1, seed: int = 5
) -> Repeated:
    given: dict[str, Any] = {"rank": rank, "world": world, "stream": True}
    return Repeated(len(factors), 4, seed, start, 4000, 1, **given, factors=np.array(factors))


def test_passes_repeat_images_by_their_factors() -> None:
    """Breaks when a fraction is rounded for good, or the draws of a pass are those of the first."""
    sampler = repeated([1.0, 2.0, 1.25, 1.0])
    held = [np.bincount(sampler.order(epoch) % 4, minlength=4) for epoch in range(400)]
    assert {tuple(times) for times in held} == {(1, 2, 1, 1), (1, 2, 2, 1)}
    assert sum(times[2] == 2 for times in held) / 400 == pytest.approx(0.25, abs=0.08)
    assert not np.array_equal(sampler.order(0), sampler.order(1))


def test_the_stream_is_its_passes_in_order_without_a_gap() -> None:
    """Breaks when a pass of another length shifts what follows, or copies share their draws."""
    sampler = repeated([1.0, 2.0, 1.25, 1.0])
    items = [item for batch in passes(sampler, 60) for item in batch]
    wanted = [(epoch, code % 4, code // 4) for epoch in range(60) for code in sampler.order(epoch).tolist()][
        : len(items)
    ]
    assert [item.index for item in items] == [index for _, index, _ in wanted]
    assert len(set(items)) == len(items), "no image has the same draws twice"


def test_a_repeated_stream_resumes_and_divides_among_ranks() -> None:
    factors = [1.0, 2.0, 1.25, 1.0, 3.5]
    whole = passes(repeated(factors), 40)
    assert passes(repeated(factors, start=17), 23) == whole[17:]
    parts = [passes(repeated(factors, rank=rank, world=2), 40) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    assert passes(repeated(factors, seed=6), 40) != whole
    assert passes(pickle.loads(pickle.dumps(repeated(factors))), 40) == whole


def test_without_repeats_it_is_the_plain_stream() -> None:
    plain = Sampler(7, 4, 5, 0, 4000, stream=True)
    assert passes(repeated([1.0] * 7), 30) == passes(plain, 30)


def test_settings_are_told_apart_in_yaml() -> None:
    from boxwise.strict import plain, read

    data = TransferData(drop_empty=True, repeat_threshold=0.001, workers=2)
    again: TransferData = read(TransferData, json.loads(json.dumps(plain(data))), at="data")
    assert again == data
