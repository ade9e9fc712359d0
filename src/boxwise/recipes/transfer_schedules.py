"""What the published fine-tuning protocols share: detectron2's solver, and the sizes of its images.

In all of them an image keeps its shape, is mirrored with probability .5 and normalised as the weights say. Known to
differ from detectron2 in all of them: images of like shapes are not put together in a batch, resizing is
antialiased, and batches are padded to multiples of 32.
"""

from __future__ import annotations

from typing import Any, Literal

from boxwise.config import SGD, Run, Schedule, TransferData
from boxwise.recipes.recipe import TransferRecipe
from boxwise.transfer.detectors.base import DetectorConfig
from boxwise.transfer.evaluate import Measure

VOC_SIDES = tuple(range(480, 801, 32))
"""Shorter sides in training, each as likely as the others."""
COCO_SIDES = tuple(range(640, 801, 32))
CITYSCAPES_SIDES = tuple(range(800, 1025, 32))
TWO_STAGES: dict[str, Any] = {"norm": "sync", "sampling_ratio": 0, "rpn_beta": 0.0, "box_beta": 0.0}
"""detectron2's R-CNNs, with the norms of the papers: trained, and over all devices."""
FPN: dict[str, Any] = {**TWO_STAGES, "rpn_convs": 1, "rpn_post_nms_train": 1000}
"""On a pyramid."""
C4: dict[str, Any] = {**TWO_STAGES, "rpn_pre_nms_train": 12_000, "rpn_pre_nms_test": 6000}
"""On c4 alone."""
ONE_X, TWO_X, TWELVE_K = (
    (90_000, 60_000, 80_000),
    (180_000, 120_000, 160_000),
    (12_000, 9000, 11_000),
)
"""Steps in all, and those after which the rate falls to a tenth."""
WITH_BOXES = TransferData(drop_empty=True)


def protocol(
    name: str,
    detector: DetectorConfig,
    steps: tuple[int, ...],
    *,
    lr: float = 0.02,
    batch: int = 16,
    weight_decay: float = 1e-4,
    warmup: int = 1000,
    warmup_from: float = 0.001,
    precise_bn: int = 200,
    metric: Literal["auto", "voc07"] = "auto",
    data: TransferData = WITH_BOXES,
) -> TransferRecipe:
    """SGD with momentum .9 in float32, at `lr` for `batch` images, through `steps`: all, then those of its falls.

    Norms are not decayed, images without boxes not trained on, and statistics of BatchNorm are measured on
    `precise_bn` batches once more before the figures are: all as in detectron2's files of the papers.
    """
    total, *falls = steps
    return TransferRecipe(
        name=name,
        detector=detector,
        optim=SGD(lr=lr, lr_batch=batch, weight_decay=weight_decay, decay_norms=False),
        schedule=Schedule(
            steps=total,
            kind="multistep",
            milestones=tuple(fall / total for fall in falls),
            warmup_steps=warmup,
            warmup_from=warmup_from,
        ),
        run=Run(batch_size=batch, precision="fp32", log_every=20, save_every=5000),
        data=data,
        measure=Measure(metric=metric, precise_bn=precise_bn),
    )
