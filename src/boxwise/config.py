"""Settings nobody else owns, and strict YAML in and out.

Every class of settings in boxwise is made by `@settings`: frozen, keyword-only, and read strictly. A
string under a field is its help. A class that may stand where another could carries a literal `name`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

T = TypeVar("T")
FREE = ("data.workers", "run.log_every", "run.save_every", "run.keep")
"""Settings that a resumed run may change: they move no weight."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """A frozen dataclass whose values are checked strictly and whose unknown keys are errors."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True, slots=True)(cls)


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise PydanticCustomError("rising", "Expected the least, above 0, and then the largest")
    return pair


def _some(amount: float | int | None) -> float | int | None:
    if amount is not None and not (amount >= 1 if isinstance(amount, int) else 0 < amount <= 1):
        raise PydanticCustomError("some", "Expected a share above 0 and up to 1.0, or a count from 1")
    return amount


Share = Annotated[float, Field(ge=0, le=1)]
"""Part of a whole."""
Amount = Annotated[float, Field(ge=0)]
Above = Annotated[float, Field(gt=0)]
"""More than nothing: what is divided by."""
Count = Annotated[int, Field(ge=1)]
Some = Annotated[float | int | None, AfterValidator(_some)]
"""A share (0.1) or a count (100) of what there is; none: all."""
Span = Annotated[tuple[float, float], AfterValidator(_rising)]
"""Least and largest of something that is never 0."""


@settings
class SGD:
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    lr: Amount = 0.03
    """Learning rate at `lr_batch` images a step; the run uses lr * batch size / lr_batch."""
    lr_batch: Count = 256
    """The batch that `lr` was stated for."""
    momentum: Share = 0.9
    weight_decay: Amount = 1e-4
    decay_1d: bool = True
    """Weight decay on biases and norm parameters too, as MoCo and SimSiam do."""
    decay_norms: bool = True
    """Weight decay on norm parameters, where `decay_1d` is; detectron2 decays biases and not norms."""
    nesterov: bool = False


@settings
class LARS:
    """SGD with momentum whose gradients are scaled layer by layer; 1-D parameters are left to plain SGD."""

    name: Literal["lars"] = "lars"
    lr: Amount = 0.45
    """Learning rate at `lr_batch` images a step; the run uses lr * batch size / lr_batch."""
    lr_batch: Count = 256
    """The batch that `lr` was stated for."""
    momentum: Share = 0.9
    weight_decay: Amount = 1e-6
    trust: Amount = 0.001
    """Size of a step relative to the size of its layer."""
    eps: Amount = 1e-8
    norm: Literal["joint", "sum"] = "joint"
    """Divide by |g + wd p| (BYOL, SoCo) or by |g| + wd |p| (SCRL)."""
    nesterov: bool = False


@settings
class AdamW:
    """Adam with decoupled weight decay: quick on short runs, and what most timm backbones other than ResNets want."""

    name: Literal["adamw"] = "adamw"
    lr: Amount = 1e-3
    """Learning rate at `lr_batch` images a step; the run uses lr * batch size / lr_batch."""
    lr_batch: Count = 256
    """The batch that `lr` was stated for."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """How long gradients, and their squares, are remembered."""
    weight_decay: Amount = 0.05
    decay_1d: bool = False
    """Weight decay on biases and norm parameters too."""


Optimiser = SGD | LARS | AdamW


@settings
class Schedule:
    """How long, and the learning rate along the way. Exactly one of `epochs` and `steps` is set."""

    epochs: float | None = None
    """Passes over the images."""
    steps: int | None = None
    """Optimiser steps, instead of epochs."""
    kind: Literal["cosine", "multistep"] = "cosine"
    warmup_epochs: Amount = 0.0
    """Linear warm-up, in epochs."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Linear warm-up, in optimiser steps; added to `warmup_epochs`."""
    warmup_from: Share = 0.0
    """Share of the base rate at the first step of the warm-up."""
    per: Literal["step", "epoch"] = "step"
    """A cosine that moves every step (BYOL, SoCo, SCRL) or once an epoch (the MoCo family)."""
    early: bool = False
    """Step k uses the value of k + 1, as SCRL does."""
    final_lr: Amount = 0.0
    """What the cosine ends at."""
    milestones: tuple[Share, ...] = ()
    """multistep: shares of the whole length at which the rate falls."""
    gamma: float = 0.1
    """multistep: what the rate is multiplied by at each milestone."""


@settings
class Run:
    """One training run: its batch, device, precision, and how often it reports and saves."""

    batch_size: Count = 256
    """Images per optimiser step, over all devices and all accumulated parts."""
    accumulate: Count = 1
    """Parts a step is split into. Saves memory; does not enlarge what BatchNorm sees."""
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Count = 1
    """Processes on this machine; torchrun and SLURM set their own."""
    nodes: Count = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the processor has it, else fp32."""
    channels_last: bool = True
    compile: bool = False
    """Compile the encoder of a pretraining or a probe with torch.compile. On several GPUs it compiles fragments,
    between norms."""
    clip_norm: Above | None = None
    """Largest norm of the whole gradient."""
    log_every: Count = 10
    """Steps between two lines of figures; the device is waited for only then, but on several GPUs with joint norms:
    torch's SyncBatchNorm waits at each."""
    save_every: Count = 500
    """Steps between two checkpoints; one is written at the end in any case."""
    keep: Count = 2
    """Checkpoints kept."""
    threads: Count | None = None
    """CPU threads of torch; recorded, since another number changes the last bits."""


@settings
class Data:
    """How images are read."""

    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode and cut; none: as many as help; 0: the training process itself."""
    bad_images: Literal["error", "skip"] | None = None
    """Unreadable files: skip (default without labels; a run stops above 5 %) or error (default with labels)."""
    max_value: Count | None = None
    """The white of 16-bit images, where it is not 65535."""


@settings
class Pass:
    """One pass over images, without training."""

    batch_size: Count = 32
    """Images that go through the network together."""
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the processor has it, else fp32."""


@settings
class PretrainData(Data):
    """How images are read that a pretraining needs no labels of."""

    classes: bool = False
    """Images lie in a folder for each class: a linear classifier trains beside, on features that it leaves alone, and
    is measured at the end. It shows how a long run goes."""


@settings
class LabelledData(Data):
    """How labelled images are read, and how many of them are trained on."""

    labels: Some = None
    """A share (0.1) or a count (100) of the training images, drawn by `run.seed`; none: all. --labels sets it."""


@settings
class HeldOutData(LabelledData):
    """How images are read that need not be parted into those to train on and those to measure on."""

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images that is measured on and not trained on, drawn by `run.seed`, where none are named for it."""


@settings
class TransferData(LabelledData):
    """How labelled images are read, and which of them are trained on."""

    drop_empty: bool = False
    """Leave out training images without boxes, or with none but crowds."""
    difficult: bool = True
    """Train on what VOC marks as difficult; it is measured by VOC's rules either way."""
    min_keypoints: Annotated[int, Field(ge=0)] = 0
    """Leave out training images with fewer labelled keypoints."""
    repeat_threshold: Share | None = None
    """Read images of categories that fewer than this share of the images show more often: LVIS has 0.001."""


@settings
class Brought:
    """What of pretrained weights goes into a detector."""

    parts: tuple[Literal["backbone", "fpn", "head"], ...] | None = None
    """Those of these that the weights hold and the detector has, the others stay random; none: all."""
