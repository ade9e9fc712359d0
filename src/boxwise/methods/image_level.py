"""The image-level baselines, side by side: MoCo-v2, BYOL and SimSiam.

In unit vectors, for the two views of each image:

    MoCo-v2   loss += cross_entropy([q @ k, *(q @ n for n in queue)] / temperature, 0)
              with q = student(view 1), k = teacher(view 2)
    BYOL      loss += (2 - 2 * p1 @ z2) + (2 - 2 * p2 @ z1)
              with p = predictor(student(view)), z = teacher(view)
    SimSiam   loss += (-p1 @ z2 - p2 @ z1) / 2
              with p = predictor(student(view)), z = student(view) without gradient

and the mean over images. In all three each view is a forward of its own, with BatchNorm statistics of its
own, as in the official code. BYOL as in SCRL's code (`joint`) is the exception.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from torch import nn

from boxwise.config import Above, Count, Share, settings
from boxwise.data.cut import ViewSpec
from boxwise.geometry.views import Batch, join
from boxwise.methods.base import Method, MethodConfig, of_two_sizes, require_levels
from boxwise.nn.branch import Branch, Tap
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.nn.heads import moco_projector, projector, simsiam_predictor, simsiam_projector
from boxwise.nn.objectives import cosine_distance, info_nce, negative_cosine
from boxwise.nn.pools import Whole
from boxwise.nn.queue import Queue
from boxwise.nn.row_norm import whitened
from boxwise.nn.shuffle import Shuffle
from boxwise.nn.teacher import Teacher, cosine_momentum
from boxwise.shapes import Scalar


@settings
class MoCoConfig(MethodConfig):
    """MoCo-v2 (https://arxiv.org/abs/2003.04297)."""

    has_boxes: ClassVar[bool] = False
    name: Literal["mocov2"] = "mocov2"
    width: Count = 128
    """Numbers in an embedding."""
    hidden: Count = 2048
    """Hidden width of the projector."""
    queue: Count = 65_536
    """Keys of earlier images that serve as negatives."""
    temperature: Above = 0.2
    """What similarities are divided by."""
    momentum: Share = 0.999
    """Teacher momentum, constant."""

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        return {"shuffle": ()}

    def build(self, encoder: Encoder) -> MoCoV2:
        return MoCoV2(self, encoder)


class MoCoV2(Method):
    sync_norm = False  # queries keep to their own rank, keys are shuffled

    def __init__(self, config: MoCoConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        project = moco_projector(encoder.channels["c5"], config.hidden, config.width)
        self.student = whole_images(encoder, project)
        self.teacher = Teacher(self.student)
        self.queue = Queue(config.queue, config.width)

    def losses(self, batch: Batch) -> dict[str, Scalar]:
        one, two = batch.views
        query = self.student(one)["image"]  # (B, D)
        key = Shuffle(batch.draws["shuffle"])(self.teacher, two)["image"]
        self.watch(query, key)
        loss = info_nce(query, key, self.queue.keys, temperature=self.config.temperature)
        self.queue.push(key)
        return {"image": loss}

    def after_step(self, step: int, total: int, *, ok: Scalar | None = None) -> None:
        # The official code moves the teacher as the next forward opens, which is the same.
        self.ema_momentum = self.config.momentum
        self.teacher.follow(self.student, self.ema_momentum, ok=ok)

    def begin(self) -> None:
        self.teacher.copy(self.student)


@settings
class BYOLConfig(MethodConfig):
    """BYOL (https://arxiv.org/abs/2006.07733)."""

    has_boxes: ClassVar[bool] = False
    name: Literal["byol"] = "byol"
    width: Count = 256
    """Numbers in an embedding."""
    hidden: Count = 4096
    """Hidden width of projector and predictor."""
    last_bias: bool = False
    """A bias in the last layer of projector and predictor."""
    joint: bool = False
    """Both views are one batch to every BatchNorm, as in SCRL's code, which made the BYOL of its tables."""
    whitened: bool = False
    """Ours, for runs of minutes, as SCRL's: a norm without scale and shift ends the projector, and the targets of both
    views together are whitened."""
    momentum: Share = 0.99
    """Teacher momentum at the first step; rises to 1 along a cosine."""

    def conflicts(self, views: tuple[ViewSpec, ...], encoder: EncoderConfig) -> Iterator[str]:
        yield from MethodConfig.conflicts(self, views, encoder)  # super() is blind to slots
        if self.joint:
            yield from of_two_sizes(views)

    def build(self, encoder: Encoder) -> BYOL:
        return BYOL(self, encoder)


class BYOL(Method):
    def __init__(self, config: BYOLConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config, last_bias = config, config.last_bias
        project = projector(
            encoder.channels["c5"],
            config.hidden,
            config.width,
            last_bias=last_bias,
            centred=config.whitened,
        )
        self.student = whole_images(encoder, project)
        self.predictor = projector(config.width, config.hidden, config.width, last_bias=last_bias)
        self.teacher = Teacher(self.student)

    def losses(self, batch: Batch) -> dict[str, Scalar]:
        views = (join(*batch.views),) if self.config.joint else batch.views
        prediction = torch.cat([self.predictor(self.student(view)["image"]) for view in views])  # (2B, D)
        target = torch.cat([self.teacher(view)["image"] for view in views])
        if self.config.whitened:
            target = whitened(target, torch.ones(len(target), dtype=torch.bool, device=target.device))
        (p1, p2), (z1, z2) = prediction.chunk(2), target.chunk(2)
        self.watch(p1, z2)
        return {"image": cosine_distance(p1, z2) + cosine_distance(p2, z1)}

    def after_step(self, step: int, total: int, *, ok: Scalar | None = None) -> None:
        self.ema_momentum = cosine_momentum(self.config.momentum, step, total)
        self.teacher.follow(self.student, self.ema_momentum, ok=ok)

    def begin(self) -> None:
        self.teacher.copy(self.student)


@settings
class SimSiamConfig(MethodConfig):
    """SimSiam (https://arxiv.org/abs/2011.10566)."""

    has_boxes: ClassVar[bool] = False
    name: Literal["simsiam"] = "simsiam"
    width: Count = 2048
    """Numbers in an embedding, and hidden width of the projector."""
    hidden: Count = 512
    """Hidden width of the predictor."""

    def build(self, encoder: Encoder) -> SimSiam:
        return SimSiam(self, encoder)


class SimSiam(Method):
    constant_lr = ("predictor",)

    def __init__(self, config: SimSiamConfig, encoder: Encoder) -> None:
        super().__init__()
        project = simsiam_projector(encoder.channels["c5"], config.width, config.width)
        self.student = whole_images(encoder, project)
        self.predictor = simsiam_predictor(config.width, config.hidden)

    def losses(self, batch: Batch) -> dict[str, Scalar]:
        z1, z2 = (self.student(view)["image"] for view in batch.views)  # (B, D)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        self.watch(p1, z2)
        return {"image": (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2}


def whole_images(encoder: Encoder, project: nn.Module) -> Branch:
    """The mean of c5, projected: one row "image" for each."""
    require_levels(encoder, ["c5"])
    return Branch(encoder, {"image": Tap(Whole("c5"), project)})
