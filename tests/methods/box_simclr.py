"""A user's own method, in a file of theirs: each box against all other boxes of the batch."""

from __future__ import annotations

from typing import Literal

from boxwise.config import settings
from boxwise.geometry.regions import random_in_overlap
from boxwise.methods.base import Method, MethodConfig
from boxwise.nn.branch import Branch, Tap
from boxwise.nn.heads import projector
from boxwise.nn.objectives import info_nce, unit
from boxwise.nn.pools import RegionPool
from boxwise.nn.ranks import gather, row_weight
from boxwise.nn.teacher import Teacher


@settings
class Config(MethodConfig):
    name: Literal["box_simclr"] = "box_simclr"
    boxes: int = 4
    width: int = 128
    temperature: float = 0.2
    momentum: float = 0.996

    def draws(self):
        return {"boxes": (self.boxes, 10, 8)}

    def build(self, encoder):
        return BoxSimCLR(self, encoder)


class BoxSimCLR(Method):
    def __init__(self, config, encoder):
        super().__init__()
        self.config = config
        project = projector(encoder.channels["c5"], 256, config.width, last_bias=True)
        self.student = Branch(encoder, {"box": Tap(RegionPool("c5", 1, aligned=True), project)})
        self.teacher = Teacher(self.student)

    def losses(self, batch):
        one, two = batch.views
        found = random_in_overlap(one, two, batch.draws["boxes"], min_size=16)
        query, key = self.student(one, found.a)["box"], self.teacher(two, found.b)["box"]
        self.watch(query, key, found.keep)
        weight = row_weight(found.keep)
        return {"box": info_nce(query, key, gather(unit(key)), weight, temperature=self.config.temperature)}

    def after_step(self, step, total, *, ok=None):
        self.teacher.follow(self.student, self.config.momentum, ok=ok)

    def begin(self):
        self.teacher.copy(self.student)
