import numpy as np
import pytest
import torch
from torch import Tensor

from boxwise.data.targets import Labelled
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.samples import Sample, TestSamples, TrainSamples, collate, target_size


def config(**changes: object) -> FasterRCNNFPN:
    return FasterRCNNFPN(**{"min_size": 64, "max_size": 96, "flip": 0.0, **changes})


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (128, 128, (64, 64)),
        (90, 120, (64, 85)),
        (64, 200, (31, 96)),
        (20, 20, (64, 64)),
        (1, 5000, (1, 96)),
        (5000, 1, (96, 1)),
        (1, 1, (64, 64)),
    ],
)
def test_sizes(height: int, width: int, expected: tuple[int, int]) -> None:
    """The longer side rules where it would pass its limit, and no side vanishes."""
    assert target_size(height, width, short=64, long=96) == expected


def test_boxes_lie_on_the_objects_after_resizing(drawn: Labelled) -> None:
    """Boxes scaled by another factor than the pixels, or by the other side's, miss the bright rectangles."""
    samples = TrainSamples(drawn, config(min_size=96, max_size=300), seed=0)
    for i in (0, 1, 4):
        sample = samples.sample(i, epoch=0)
        height, width = sample.image.shape[1:]
        scale = np.array(sample.image.shape[1:]) / np.array(sample.source)
        assert min(height, width) == 96 and abs(scale[0] - scale[1]) < 0.01
        for box, label in zip(sample.boxes, sample.labels):
            left, top, right, bottom = box.round().int().tolist()
            inside = sample.image[label - 1, top + 2 : bottom - 2, left + 2 : right - 2]
            assert inside.numel() > 50 and inside.float().mean() > 240
            rest = sample.image[label - 1].float().clone()
            rest[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = 0
            assert rest.max() < 120


def test_a_flip_mirrors_pixels_and_boxes_together(drawn: Labelled) -> None:
    plain = TrainSamples(drawn, config(flip=0.0), seed=0).sample(1, epoch=0)
    mirrored = TrainSamples(drawn, config(flip=1.0), seed=0).sample(1, epoch=0)
    assert torch.equal(mirrored.image, plain.image.flip(-1))
    width = plain.image.shape[2]
    expected = plain.boxes[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1]) + torch.tensor(
        [width, 0.0, width, 0]
    )
    torch.testing.assert_close(mirrored.boxes, expected)


def test_draws_are_functions_of_seed_epoch_and_index(drawn: Labelled) -> None:
    """Resuming and any number of workers must see the same flips and sizes; the next epoch must not."""
    spec = config(flip=0.5, train_sizes=(48, 64, 80), max_size=200)
    first, again = TrainSamples(drawn, spec, seed=5), TrainSamples(drawn, spec, seed=5)
    shapes = set()
    pixels = []
    for epoch in range(12):
        a, b = first.sample(1, epoch), again.sample(1, epoch)
        assert torch.equal(a.image, b.image) and torch.equal(a.boxes, b.boxes)
        shapes.add(a.image.shape[1])
        pixels.append(a.image)
    assert shapes == {48, 64, 80}
    of_one_size = [p for p in pixels if p.shape[1] == 64]
    assert any(not torch.equal(p, of_one_size[0]) for p in of_one_size)
    other = TrainSamples(drawn, spec, seed=6)
    assert any(other.sample(1, e).image.shape != pixels[e].shape for e in range(12))


def test_flips_happen_as_often_as_told(drawn: Labelled) -> None:
    samples = TrainSamples(drawn, config(flip=0.25), seed=0)
    plain = TrainSamples(drawn, config(flip=0.0), seed=0).sample(5, 0).image
    share = np.mean([not torch.equal(samples.sample(5, e).image, plain) for e in range(300)])
    assert 0.18 < share < 0.33


def test_crowds_are_not_trained_on(drawn: Labelled) -> None:
    """A crowd box covers many objects, and would teach a detector to join them."""
    _, labels = drawn.read(1 + 1)
    assert not len(labels.boxes)
    _, labels = drawn.read(5)
    assert labels.crowd.tolist() == [False, False, True]
    sample = TrainSamples(drawn, config(), seed=0).sample(5, 0)
    assert sample.labels.tolist() == labels.labels[:2].tolist() and len(sample.boxes) == 2


def test_images_to_measure_are_never_flipped_and_carry_no_boxes(drawn: Labelled) -> None:
    sample = TestSamples(drawn, config(flip=1.0, train_sizes=(32,))).sample(1)
    plain = TrainSamples(drawn, config(), seed=0).sample(1, 0)
    assert torch.equal(sample.image, plain.image) and sample.boxes.shape == (0, 4)


def sample_of(height: int, width: int, boxes: int, index: int) -> Sample:
    return Sample(
        image=torch.full((3, height, width), 100 + index, dtype=torch.uint8),
        boxes=torch.arange(4.0 * boxes).view(boxes, 4) + index,
        labels=torch.full((boxes,), index),
        index=index,
        source=(2 * height, 2 * width),
    )


def test_collate_pads_to_the_right_and_below() -> None:
    batch = collate([sample_of(40, 64, 2, 1), sample_of(33, 20, 0, 2), sample_of(64, 65, 1, 3)])
    assert batch.images.shape == (3, 3, 64, 96) and batch.images.dtype == torch.uint8
    assert batch.sizes == ((40, 64), (33, 20), (64, 65)) and len(batch) == 3
    assert batch.sources == ((80, 128), (66, 40), (128, 130)) and batch.index == (1, 2, 3)
    for i, (height, width) in enumerate(batch.sizes):
        shown = batch.images[i] == 101 + i
        assert shown[:, :height, :width].all() and shown.sum() == 3 * height * width
        assert batch.images[i][~shown].sum() == 0
    targets = batch.targets()
    assert [len(t["boxes"]) for t in targets] == [2, 0, 1]
    assert targets[0]["boxes"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]] and targets[2]["labels"].tolist() == [
        3
    ]
    assert targets[2]["boxes"].tolist() == [[3, 4, 5, 6]]


def test_a_batch_moves_as_a_whole() -> None:
    batch = collate([sample_of(40, 64, 2, 1)]).to("meta")
    assert {t.device.type for t in (batch.images, batch.boxes, batch.labels)} == {"meta"}
    assert batch.sizes == ((40, 64),)


def test_samples_are_plain_tensors(drawn: Labelled) -> None:
    """tv_tensors in a batch slow every later operation down and break pickling between versions."""
    sample = TrainSamples(drawn, config(flip=1.0), seed=0).sample(0, 0)
    assert type(sample.image) is Tensor and type(sample.boxes) is Tensor
