"""Names of weights: from other libraries' files to torchvision's detectors, and what arrived where."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from boxwise.nn.pyramid import UpperLevels

State = Mapping[str, Tensor]

PARTS = {"backbone": "backbone.body.", "fpn": "backbone.fpn.", "head": "roi_heads.box_head."}
"""What pretraining hands over, and the prefix that each part has in torchvision's detectors and our files."""

WRAPPERS = ("module.", "_orig_mod.")
"""Put before every name by DataParallel and torch.compile."""

CLASSIFIER_END = ("fc.", "classifier.", "head.", "head_dist.", "norm.", "conv_head.", "bn2.")
"""What torchvision's and timm's classifiers have behind the last feature map: no detector takes it."""

ABOVE = "backbone.fpn.extra_blocks."
"""Levels above c5 that a pyramid of RetinaNet or FCOS adds. Such a pyramid starts at c3."""

HEAD_STAGE = "roi_heads.box_head.last."
"""Where C4 detectors keep the backbone's last stage; what else is in their box head, one more norm, stays there."""

COUNTER = "num_batches_tracked"
"""A BatchNorm's count of batches: unused at its default momentum, absent in old files and frozen norms."""


class WeightsError(RuntimeError):
    """Weights that were promised did not arrive."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class PartReport:
    """How the weights of one part met the module that was to take them. Names are the module's own."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    """In the module, not in the weights."""
    unexpected: tuple[str, ...]
    """In the weights, not in the module."""
    mismatched: tuple[str, ...]
    """In both with different shapes: "NAME (weights' shape, module's shape)"."""
    arrived: int
    """Numbers that were taken over."""
    wanted: int
    """Numbers that the module has: parameters and running statistics."""
    partial: bool = False
    """Only some of the part was ever trained, as ReSim's two levels of an FPN: what the module has beyond it, and a
    bias where the module has a norm, is no loss."""
    unused: tuple[str, ...] = ()
    """In the weights, of levels that the module does not have: p2 of a detector whose pyramid starts at p3."""

    @property
    def share(self) -> float:
        return self.arrived / self.wanted if self.wanted else 0.0

    @property
    def complete(self) -> bool:
        """Everything the module has came from the weights, and nothing of the weights was left over.

        Of a partial part, everything that has a place in the module arrived there.
        """
        lost = self.mismatched
        if not self.partial:
            lost += self.missing + self.unexpected
        return bool(self.matched) and not lost


@dataclass(frozen=True, slots=True)
class MatchReport:
    """Which weights arrived. `str()` is a table with the names of all that did not."""

    source: str
    parts: Mapping[str, PartReport]
    """Every part that the weights or the modules have."""
    promised: tuple[str, ...]
    """Parts that the weights hold."""

    @property
    def share(self) -> float:
        """Share of all parameters of the modules, over all parts, that came from the weights."""
        wanted = sum(part.wanted for part in self.parts.values())
        return sum(part.arrived for part in self.parts.values()) / wanted if wanted else 0.0

    def require(self, parts: Iterable[str] | None = None) -> None:
        """Raises WeightsError unless each of `parts` (default: all that the weights hold) arrived whole.

        A part with names left over did not: the weights of a ResNet-101 fill a ResNet-50 and are still wrong.
        """
        asked = self.promised if parts is None else tuple(parts)
        lost = [p for p in asked if p not in self.parts or not self.parts[p].complete]
        if lost or not asked:
            named = ", ".join(lost) or "backbone, fpn and head"
            raise WeightsError(f"{self.source}: {named} did not arrive as promised\n{self}")

    def __str__(self) -> str:
        width = max([len(p) for p in self.parts], default=0)
        head = f"{'part':<{width}}  matched  missing  unexpected  mismatched  parameters"
        return "\n".join([f"weights: {self.source}", head, *self._rows(width), *self._names()])

    def _rows(self, width: int) -> Iterator[str]:
        for name, p in self.parts.items():
            if name not in self.promised:
                yield f"{name:<{width}}  not in the weights: {p.wanted:,} parameters stay as they were"
                continue
            if not p.wanted:
                yield f"{name:<{width}}  not used, there is no such part: {len(p.unexpected)} tensors"
                continue
            counts = (
                f"{len(p.matched):>7}  {len(p.missing):>7}  {len(p.unexpected):>10}  {len(p.mismatched):>10}"
            )
            yield f"{name:<{width}}  {counts}  {_percent(p.share)} of {p.wanted:,}"

    def _names(self, most: int = 6) -> Iterator[str]:
        for name, part in self.parts.items():
            if name not in self.promised or not part.wanted:
                continue
            for kind in ("missing", "unexpected", "mismatched", "unused"):
                found = getattr(part, kind)
                more = f", and {len(found) - most} more" if len(found) > most else ""
                says = "not used, there is no such level" if kind == "unused" else kind
                if found:
                    yield f"{name}, {says}: {', '.join(found[:most])}{more}"


def detector_names(state: State) -> dict[str, Tensor]:
    """`state` under the names of torchvision's detectors, with only the parts that pretraining hands over.

    Takes our own files, torchvision's and timm's classifiers, torchvision's Faster R-CNN, RetinaNet and FCOS, and
    any of them wrapped by DataParallel or torch.compile. Blocks of a pyramid are counted from the one above c2, and
    the head of a C4 detector is the backbone's last stage.
    """
    bare = {_unwrapped(name): tensor for name, tensor in state.items()}
    if starts_at_c3(bare):
        bare = {_counted_from_c2(n): t for n, t in bare.items() if not n.startswith(ABOVE)}
    if any(name.startswith(HEAD_STAGE) for name in bare):
        last = {n.replace(HEAD_STAGE, PARTS["backbone"]): t for n, t in bare.items() if HEAD_STAGE in n}
        bare = {n: t for n, t in bare.items() if not n.startswith(PARTS["head"])} | last
    if any(name.startswith(tuple(PARTS.values())) for name in bare):
        return {n: t for n, t in bare.items() if n.startswith(tuple(PARTS.values()))}
    return {PARTS["backbone"] + n: t for n, t in bare.items() if not n.startswith(CLASSIFIER_END)}


def starts_at_c3(state: State) -> bool:
    """Whether the weights are of a detector whose pyramid has no p2."""
    return any(_unwrapped(name).startswith(ABOVE) for name in state)


def match(
    state: State,
    modules: Mapping[str, nn.Module],
    *,
    source: str = "weights",
    partial: Collection[str] = (),
) -> MatchReport:
    """Compares names and shapes of `state`, in detector names, with `modules` by part. Copies nothing.

    `partial` names the parts of which the weights hold only what was trained.
    """
    reports = {}
    for part in PARTS:
        given = arrange(state, part, modules)
        module = modules[part].state_dict() if part in modules else {}
        if given or module:
            taker = modules.get(part)
            below = taker.below if isinstance(taker, UpperLevels) else ()
            reports[part] = replace(_compare(given, module, below), partial=part in partial)
    held = tuple(p for p in PARTS if any(n.startswith(PARTS[p]) for n in state))
    return MatchReport(source, reports, held)


def arrange(state: State, part: str, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of one part under the names that its module uses.

    timm writes a classifier's first level with dots and that of its `features_only` twin with underscores
    (`stages.0.` and `stages_0.`).
    """
    prefix = PARTS[part]
    given = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    own = modules[part].state_dict().keys() if part in modules else ()
    dotted = {_dotted(name): name for name in own}
    return {name if name in own else dotted.get(name, name): tensor for name, tensor in given.items()}


def _compare(given: State, module: State, below: tuple[str, ...]) -> PartReport:
    """`below` is how names begin that the module is known not to have."""
    wanted = {n: t for n, t in module.items() if not n.endswith(COUNTER)}
    both = [n for n in wanted if n in given]
    matched = [n for n in both if given[n].shape == wanted[n].shape]
    left = [n for n in given if n not in wanted and not n.endswith(COUNTER)]
    return PartReport(
        matched=tuple(matched),
        missing=tuple(n for n in wanted if n not in given),
        unexpected=tuple(n for n in left if not n.startswith(below)),
        unused=tuple(n for n in left if n.startswith(below)),
        mismatched=tuple(
            f"{n} ({tuple(given[n].shape)}, {tuple(wanted[n].shape)})" for n in both if n not in set(matched)
        ),
        arrived=_numbers(wanted, matched),
        wanted=_numbers(wanted, wanted),
    )


def _numbers(state: State, names: Collection[str]) -> int:
    return sum(state[name].numel() for name in names)


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _counted_from_c2(name: str) -> str:
    """A block of a pyramid that starts at c3 under its name in a whole one; other names as they are."""
    for kind in ("inner_blocks", "layer_blocks"):
        before, found, after = name.partition(f"{PARTS['fpn']}{kind}.")
        if found and not before:
            number, dot, rest = after.partition(".")
            return f"{found}{int(number) + 1}{dot}{rest}"
    return name


def _dotted(name: str) -> str:
    first, dot, rest = name.partition(".")
    return first.replace("_", ".") + dot + rest


def _percent(share: float) -> str:
    """Never rounds up to 100: one lost tensor shows."""
    return f"{min(share * 100, 100.0 if share == 1 else 99.9):5.1f} %"
