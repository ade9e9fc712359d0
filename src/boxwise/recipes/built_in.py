"""What the `name` of a section chooses among: our own optimisers, methods, detectors and probes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from boxwise.config import Optimiser
from boxwise.methods import detco, image_level, insloc, resim, resim_simsiam, scrl, soco
from boxwise.transfer.detectors import c4, densepose, fcn16s, fcos, keypoint_rcnn, mask_rcnn, rcnn, retinanet
from boxwise.transfer.probes import linear, patch_location, roi_linear, svm

BuiltInOptimiser = Annotated[Optimiser, Field(discriminator="name")]
BuiltInMethod = Annotated[
    scrl.Config
    | insloc.Config
    | soco.Config
    | detco.Config
    | resim.Config
    | resim_simsiam.Config
    | image_level.MoCoConfig
    | image_level.BYOLConfig
    | image_level.SimSiamConfig,
    Field(discriminator="name"),
]
BuiltInDetector = Annotated[
    rcnn.FasterRCNNFPN
    | mask_rcnn.MaskRCNNFPN
    | keypoint_rcnn.KeypointRCNNFPN
    | c4.FasterRCNNC4
    | c4.MaskRCNNC4
    | retinanet.RetinaNet
    | fcos.FCOS
    | fcn16s.FCN16s
    | densepose.DensePoseRCNN,
    Field(discriminator="name"),
]
BuiltInProbe = Annotated[
    linear.Linear | roi_linear.RoILinear | patch_location.PatchLocation | svm.SVM, Field(discriminator="name")
]
