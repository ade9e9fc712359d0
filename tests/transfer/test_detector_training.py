"""A detector in the one loop, fed by workers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from boxwise.config import SGD, Run, Schedule
from boxwise.data.loader import Each, Sampler, load_all
from boxwise.data.targets import Labelled
from boxwise.engine.folder import RunFolder
from boxwise.engine.loop import fit
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.samples import DetectionBatch, TrainSamples, collate
from boxwise.transfer.task import DetectionTask

CONFIG = FasterRCNNFPN(
    backbone="resnet18",
    fpn_channels=16,
    min_size=64,
    max_size=96,
    train_sizes=(48, 64),
    box_batch_size_per_image=8,
    rpn_post_nms_train=40,
)


def batches(drawn: Labelled, start: int, total: int, *, workers: int = 0) -> Iterator[DetectionBatch]:
    samples = TrainSamples(drawn, CONFIG, 3)
    sampler = Sampler(len(drawn), 4, 3, start, total, stream=True)
    return iter(load_all(Each(samples.sample, collate), sampler, workers=workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_batches(drawn: Labelled, workers: int) -> None:
    """Flips, sizes and order belong to the image and the epoch, not to the process that reads it."""
    for ours, theirs in zip(batches(drawn, 0, 5), batches(drawn, 0, 5, workers=workers), strict=True):
        assert ours.index == theirs.index and ours.sizes == theirs.sizes
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.boxes, theirs.boxes)


def train(
    drawn: Labelled, folder: Path, *, stop_at: int = 4, resume: bool = False
) -> dict[str, torch.Tensor]:
    """Four steps, with a checkpoint after each second; the images give out at `stop_at`."""
    torch.manual_seed(0)
    task = DetectionTask(CONFIG.build(classes=2, mean=(0.5,) * 3, std=(0.2,) * 3))

    def loads(start: int) -> Iterator[DetectionBatch]:
        for step, batch in enumerate(batches(drawn, start, 4), start):
            if step == stop_at:
                raise OSError("the disk went away")
            yield batch

    with RunFolder.open(folder, kind="finetune", config="", data={}, seed=0, resume=resume) as opened:
        fit(
            task,
            loads,
            optimiser=SGD(lr=0.02, lr_batch=4),
            schedule=Schedule(steps=4),
            run=Run(batch_size=4, device="cpu", precision="fp32", save_every=2, log_every=1),
            steps_per_epoch=1,
            total=4,
            folder=opened,
            resume=resume,
        )
    return task.module.state_dict()


def test_a_resumed_run_ends_where_an_undisturbed_one_does(drawn: Labelled, tmp_path: Path) -> None:
    """Bit for bit, though the detector draws anchors and boxes for its losses at random."""
    whole = train(drawn, tmp_path / "whole")
    with pytest.raises(OSError, match="went away"):
        train(drawn, tmp_path / "cut", stop_at=3)
    resumed = train(drawn, tmp_path / "cut", resume=True)
    assert resumed.keys() == whole.keys()
    assert [n for n, t in whole.items() if not torch.equal(t, resumed[n])] == []
    torch.manual_seed(0)
    untrained = CONFIG.build(classes=2, mean=(0.5,) * 3, std=(0.2,) * 3).state_dict()
    assert not torch.equal(
        whole["detector.rpn.head.cls_logits.weight"], untrained["rpn.head.cls_logits.weight"]
    )
