"""What `boxwise demo` runs: small enough for two CPU cores and ten minutes. Ours; no paper has such a run."""

from __future__ import annotations

from dataclasses import replace

from boxwise.config import SGD, Data, Run, Schedule
from boxwise.data.cut import Crop
from boxwise.methods import scrl
from boxwise.nn.encoder import EncoderConfig
from boxwise.recipes.pretrain import scrl_fpn
from boxwise.recipes.recipe import Recipe, TransferRecipe
from boxwise.transfer.detectors import DetectorConfig

SIZE = 96
"""Pixels a side of the scenes."""
CHANNELS = 64
"""Width of FPN and box head."""


def pretraining(*, seed: int, steps: int) -> Recipe:
    """`scrl_fpn` with a ResNet-18 and a narrow FPN on small views."""
    base = scrl_fpn()
    views = tuple(
        replace(v, crop=Crop(size=64, scale=(0.2, 1.0), interpolation="bilinear")) for v in base.views
    )
    return replace(
        base,
        name="demo_scrl_fpn",
        encoder=EncoderConfig(backbone="resnet18", fpn=True, fpn_channels=CHANNELS),
        method=scrl.Config(
            levels=("p2", "p3", "p4", "p5"),
            limits=(12.0, 24.0, 48.0),
            pool_size=7,
            box_head=True,
            aligned=True,
            boxes=6,
            min_box=12,
            hidden=1024,
            width=128,
        ),
        views=views,
        optim=SGD(lr=0.1, lr_batch=32, weight_decay=1e-4),
        schedule=Schedule(steps=steps, warmup_steps=100),
        run=Run(batch_size=32, seed=seed, save_every=10_000, log_every=25),
        data=Data(workers=1),
    )


def finetuning(*, seed: int, steps: int) -> TransferRecipe:
    """Faster R-CNN FPN; rate and length were chosen for the random arm, and hold for both."""
    return TransferRecipe(
        name="demo_faster_rcnn_fpn",
        detector=DetectorConfig(
            backbone="resnet18",
            fpn_channels=CHANNELS,
            min_size=SIZE,
            max_size=SIZE,
            anchor_sizes=(10, 16, 28, 46, 72),
            roi_canonical_size=42,
            rpn_pre_nms_train=200,
            rpn_pre_nms_test=200,
            rpn_post_nms_train=100,
            rpn_post_nms_test=100,
            rpn_batch_size_per_image=128,
            box_batch_size_per_image=32,
        ),
        optim=SGD(lr=0.06, lr_batch=8, weight_decay=1e-4),
        schedule=Schedule(steps=steps, kind="cosine", warmup_steps=50),
        run=Run(batch_size=8, seed=seed, save_every=10_000, log_every=25, clip_norm=10.0),
        data=Data(workers=1),
    )
