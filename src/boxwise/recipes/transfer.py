"""Fine-tuning protocols: which detector, how long, at what rate."""

from __future__ import annotations

from collections.abc import Callable

from boxwise.config import SGD, Run, Schedule
from boxwise.recipes.recipe import TransferRecipe
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN


def faster_rcnn_fpn() -> TransferRecipe:
    """Ours: Faster R-CNN with FPN and the 4conv1fc head that SoCo and InsLoc pretrain, for a user's own data.

    lr .02 at batch 16 with a warm-up, falling at 2/3 and 8/9, as the papers' 1x; the length follows the data.
    """
    return TransferRecipe(
        name="faster_rcnn_fpn",
        detector=FasterRCNNFPN(backbone="resnet50"),
        optim=SGD(lr=0.02, lr_batch=16, weight_decay=1e-4),
        schedule=Schedule(
            epochs=24, kind="multistep", milestones=(2 / 3, 8 / 9), warmup_steps=100, warmup_from=0.001
        ),
        run=Run(batch_size=8, save_every=1000),
    )


FAMILIES: dict[str, Callable[[], TransferRecipe]] = {"faster_rcnn_fpn": faster_rcnn_fpn}
"""Short names: trained for a length that is fitted to the data."""
PROTOCOLS: tuple[Callable[[], TransferRecipe], ...] = ()
"""Published protocols, changed by nothing unless told."""
