"""DetCo: Unsupervised Contrastive Learning for Object Detection (ICCV 2021, https://arxiv.org/abs/2102.04803).

MoCo-v2 at every stage of the backbone, on whole images, on sets of nine patches, and across the two. In unit
vectors, g from a whole image and l from an image's nine patches, for each stage i:

    gg = cross_entropy([q.g @ k.g, *(q.g @ n for n in global_queue[i])] / temperature, 0)
    ll = cross_entropy([q.l @ k.l, *(q.l @ n for n in local_queue[i])] / temperature, 0)
    gl = cross_entropy([q.l @ k.g, *(q.l @ n for n in global_queue[i])] / temperature, 0)
    loss += weight[i] * (gg + ll + gl)

and the mean over images. Whole images and patches are two forwards, each with BatchNorm statistics of its own. The
paper's training code was never released; what it leaves open is a setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from boxwise.config import Above, Amount, Count, Share, settings
from boxwise.data.cut import ViewSpec
from boxwise.geometry.tiles import tiles
from boxwise.geometry.views import Batch, View
from boxwise.methods.base import Method, MethodConfig, require_levels
from boxwise.nn.backbones import LEVELS, maps_of
from boxwise.nn.branch import Branch, Tap
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.nn.heads import moco_projector
from boxwise.nn.objectives import info_nce
from boxwise.nn.pools import Together, Whole
from boxwise.nn.queue import Queue
from boxwise.nn.shuffle import Shuffle
from boxwise.nn.teacher import Teacher
from boxwise.shapes import Embeddings, Scalar

GRID = 3
"""Cells a side of the view that patches are cut from."""
TILES = GRID * GRID
Stage = Literal["c2", "c3", "c4", "c5"]


@settings
class Config(MethodConfig):
    """The paper's run. The views are a query and a key, whole, then a query and a key that are cut in patches."""

    has_boxes: ClassVar[bool] = False
    name: Literal["detco"] = "detco"
    stages: tuple[Stage, ...] = ("c2", "c3", "c4", "c5")
    """Maps that have heads and losses; only c5: without intermediate losses."""
    weights: tuple[Amount, ...] = (0.1, 0.4, 0.7, 1.0)
    """What each stage's losses are multiplied by. A stage that weighs nothing is not computed."""
    normalise_weights: bool = False
    """Divide the weights by their sum."""
    patches: bool = True
    """Local patches, and the contrast of global and local; without, two views are enough."""
    global_local: bool = True
    """Compare local queries with global keys."""
    symmetric_gl: bool = False
    """Compare global queries with local keys and the local queue as well."""
    patch: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] = (64, 85)
    """A patch's side, and the side of the cell it is cut from, in a view of 255 pixels; others are in proportion."""
    shuffle_patches: bool = True
    """Concatenate the patches in an order drawn anew for each image and view, not row by row."""
    queues: Literal["stage", "shared"] = "stage"
    """Each stage has a global and a local queue of its own, or all stages share one of each."""
    width: Count = 128
    """Numbers in an embedding."""
    hidden: Count | Literal["in", "stage"] = 2048
    """Hidden width of the heads; in: as wide as a head's input (18432 for the last stage's patches); stage: as
    many as the stage has channels."""
    queue: Count = 65_536
    """Keys of earlier images in each queue."""
    temperature: Above = 0.2
    """What similarities are divided by."""
    momentum: Share = 0.999
    """Teacher momentum, constant."""

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.stages) or len({*self.stages}) != len(self.stages):
            raise ValueError(
                f"{len(self.stages)} stages, each once, need as many weights, got {len(self.weights)}"
            )
        if not sum(self.weights):
            raise ValueError("weights: at least one stage must weigh something")
        if not 0 < self.patch[0] <= self.patch[1]:
            raise ValueError("patch: a patch is no larger than its cell")

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        if not self.patches:
            return {"shuffle": (1,)}
        return {"shuffle": (2,), "patches": (2, TILES, 3)}

    def conflicts(self, views: tuple[ViewSpec, ...], encoder: EncoderConfig) -> Iterator[str]:
        wanted = 4 if self.patches else 2
        if len(views) != wanted:
            yield f"views: detco takes {wanted} views, got {len(views)}"
        elif self.patches and min(views[2].crop.size, views[3].crop.size) < GRID * 8:
            yield f"views.2.crop.size, views.3.crop.size: a view cut in patches needs {GRID * 8} px"
        elif self.patches:
            yield from self._too_small(views, encoder.backbone)
        if encoder.fpn:
            yield "encoder.fpn: detco trains the backbone alone; set encoder.fpn: false"

    def build(self, encoder: Encoder) -> DetCo:
        return DetCo(self, encoder)

    def side_in(self, view: int) -> int:
        """Pixels a side of a patch of a view of `view` pixels."""
        side, cell = self.patch
        return max(1, round(view // GRID * side / cell))

    def _too_small(self, views: tuple[ViewSpec, ...], backbone: str) -> Iterator[str]:
        """What keeps a backbone that does not pad from giving maps of patches."""
        size, least = min(views[2].crop.size, views[3].crop.size), LEVELS["c5"]
        if maps_of(backbone, self.side_in(size)):
            return
        needed = next(n for n in count(size) if self.side_in(n) >= least)
        image_size = math.ceil(needed * views[0].crop.size / size)
        yield (
            f"views.2.crop.size, views.3.crop.size: {backbone} does not pad and needs patches of {least} px; views of "
            f"{size} px have patches of {self.side_in(size)}; set {needed} or more, as --image-size {image_size} does"
        )

    def stage_weights(self) -> dict[str, float]:
        """What each stage's losses are multiplied by; only stages that weigh something."""
        total = sum(self.weights) if self.normalise_weights else 1.0
        return {s: w / total for s, w in zip(self.stages, self.weights, strict=True) if w}


class DetCo(Method):
    sync_norm = False  # as in MoCo-v2

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config, self.weights = config, config.stage_weights()
        require_levels(encoder, self.weights)
        taps, queues = {}, {}
        for kind in self.kinds:
            for stage in self.weights:
                taps[f"{kind}_{stage}"] = tap(config, stage, encoder.channels[stage], kind)
                queues[self._queue_of(kind, stage)] = Queue(config.queue, config.width)
        self.student = Branch(encoder, taps)
        self.teacher = Teacher(self.student)
        self.queues = nn.ModuleDict(queues)

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("global", "local") if self.config.patches else ("global",)

    def seen(self, batch: Batch) -> tuple[View, ...]:
        """The two whole views, then the two sets of patches in the order in which they are concatenated."""
        whole = batch.views[:2]
        if not self.config.patches:
            return whole
        noise = batch.draws["patches"]
        return (*whole, *(self._cut(view, noise[:, i]) for i, view in enumerate(batch.views[2:])))

    def losses(self, batch: Batch) -> dict[str, Scalar]:
        views, deepest = self.seen(batch), [*self.weights][-1]
        query: dict[str, Embeddings] = {}
        key: dict[str, Embeddings] = {}
        for i, kind in enumerate(self.kinds):
            names = [f"{kind}_{stage}" for stage in self.weights]
            query |= self.student(views[2 * i], taps=names)
            shuffle = Shuffle(batch.draws["shuffle"][:, i])  # of whole sets of patches
            key |= shuffle(partial(self.teacher, taps=names), views[2 * i + 1])
        self.watch(query[f"global_{deepest}"], key[f"global_{deepest}"])
        losses = {
            f"{name}_{stage}": weight * term
            for stage, weight in self.weights.items()
            for name, term in self.terms(stage, query, key).items()
        }
        for name, keys in key.items():
            self._queue(*name.split("_")).push(keys)
        return losses

    def terms(
        self, stage: str, query: Mapping[str, Embeddings], key: Mapping[str, Embeddings]
    ) -> dict[str, Scalar]:
        """One stage's losses, not weighted; their names say whose query meets whose key."""
        pairs = {"gg": ("global", "global")}
        if self.config.patches:
            pairs["ll"] = ("local", "local")
        if self.config.patches and self.config.global_local:
            pairs["gl"] = ("local", "global")
        if self.config.patches and self.config.symmetric_gl:
            pairs["lg"] = ("global", "local")
        return {
            name: info_nce(
                query[f"{ours}_{stage}"],
                key[f"{theirs}_{stage}"],
                self._queue(theirs, stage).keys,
                temperature=self.config.temperature,
            )
            for name, (ours, theirs) in pairs.items()
        }

    def after_step(self, step: int, total: int, *, ok: Scalar | None = None) -> None:
        self.ema_momentum = self.config.momentum
        self.teacher.follow(self.student, self.ema_momentum, ok=ok)

    def begin(self) -> None:
        self.teacher.copy(self.student)

    def _cut(self, view: View, noise: Float[Tensor, "B P 3"]) -> View:
        side = self.config.side_in(view.width)
        return tiles(view, noise, grid=GRID, side=side, shuffle=self.config.shuffle_patches)

    def _queue_of(self, kind: str, stage: str) -> str:
        return kind if self.config.queues == "shared" else f"{kind}_{stage}"

    def _queue(self, kind: str, stage: str) -> Queue:
        queue = self.queues[self._queue_of(kind, stage)]
        assert isinstance(queue, Queue)
        return queue


def tap(config: Config, stage: str, channels: int, kind: str) -> Tap:
    """The mean of a stage's map, of all patches of an image side by side where `kind` is local, through a head."""
    inputs = channels * TILES if kind == "local" else channels
    hidden = {"in": inputs, "stage": channels}.get(str(config.hidden), config.hidden)
    pool = Together(stage, TILES) if kind == "local" else Whole(stage)
    return Tap(pool, moco_projector(inputs, int(hidden), config.width))
