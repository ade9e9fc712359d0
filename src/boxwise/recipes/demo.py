"""What `boxwise demo` runs: small enough for two CPU cores and ten minutes. Ours; no paper has such a run."""

from __future__ import annotations

from dataclasses import replace

from boxwise.config import AdamW, PretrainData, Run, Schedule, TransferData
from boxwise.data.cut import Crop, ViewSpec
from boxwise.methods import scrl
from boxwise.nn.encoder import EncoderConfig
from boxwise.recipes.pretrain import scrl_fpn
from boxwise.recipes.recipe import Recipe, TransferRecipe
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN

SIZE = 96
"""Pixels a side of the scenes."""
CHANNELS = 64
"""Width of FPN and box head."""
WIDTH = 64
"""Numbers in an embedding: fewer than a batch has rows, which whitening needs."""
LIMITS = (48.0, 96.0, 192.0)
"""Largest boxes, in pixels, of p2, p3 and p4, in pretraining as in the detector: a thing spans a dozen cells."""


def pretraining(*, seed: int, steps: int) -> Recipe:
    """`scrl_fpn` with a ResNet-18 and a narrow FPN on small views; its targets are whitened, since it is short."""
    photo = replace(
        scrl_fpn().views[1].photo, jitter=1.0, hue=0.5, saturation=0.8, gray=0.3, blur=0.0, solarize=0.0
    )  # no colour of a scene says what is in it
    view = ViewSpec(crop=Crop(size=64, scale=(0.2, 1.0), interpolation="bilinear"), photo=photo)
    return replace(
        scrl_fpn(),
        name="demo_scrl_fpn",
        encoder=EncoderConfig(backbone="resnet18", fpn=True, fpn_channels=CHANNELS),
        method=scrl.Config(
            levels=("p2", "p3", "p4", "p5"),
            limits=LIMITS,
            pool_size=7,
            box_head=True,
            aligned=True,
            boxes=8,
            min_box=16,
            max_iou=None,
            generator="uniform",
            hidden=1024,
            width=WIDTH,
            whitened=True,
            momentum=0.98,
        ),
        views=(view, view),
        optim=AdamW(lr=1e-3, lr_batch=16),
        schedule=Schedule(steps=steps, warmup_steps=50),
        run=Run(batch_size=16, seed=seed, save_every=10_000, log_every=25),
        data=PretrainData(workers=0),
    )


def finetuning(*, seed: int, steps: int) -> TransferRecipe:
    """Faster R-CNN FPN; rate and length were chosen for the random arm, and hold for both."""
    return TransferRecipe(
        name="demo_faster_rcnn_fpn",
        detector=FasterRCNNFPN(
            backbone="resnet18",
            fpn_channels=CHANNELS,
            min_size=SIZE,
            max_size=SIZE,
            anchor_sizes=(30, 44, 64, 96, 128),
            roi_canonical_size=round(LIMITS[1]),
            rpn_pre_nms_train=200,
            rpn_pre_nms_test=200,
            rpn_post_nms_train=100,
            rpn_post_nms_test=100,
            rpn_batch_size_per_image=128,
            box_batch_size_per_image=32,
        ),
        optim=AdamW(lr=1e-3, lr_batch=8),
        schedule=Schedule(steps=steps, kind="cosine", warmup_steps=50),
        run=Run(batch_size=8, seed=seed, save_every=10_000, log_every=25, clip_norm=10.0),
        data=TransferData(workers=0),
    )
