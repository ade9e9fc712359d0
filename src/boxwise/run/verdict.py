"""What a comparison may claim: differences paired over seeds, with the interval that they leave open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

Kind = Literal["better", "worse", "same", "unclear", "one seed", "nothing learnt", "not measured"]

JUDGED = ("AP", "mask_AP", "kp_AP", "gps_AP", "gpsm_AP", "mIoU")
"""The main figures, one of each kind of things found, the first before all."""
CONFIDENCE = 0.95
SAME = 1.0
"""Points: an interval that holds 0 and lies within this much of it is called no difference."""
LEARNT = 1.0
"""Points: a figure below this says that nothing was learned; where no run of either arm reaches it, there is nothing to
compare."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One arm against the reference at one share of the labels."""

    arm: str
    reference: str
    share: str
    """As people say it: 10 %, or 100 images."""
    metric: str
    kind: Kind
    pairs: int
    """Seeds for which both arms were measured."""
    gain: float | None
    """Mean difference to the reference, in points."""
    margin: float | None
    """Half of the interval around it; none for fewer than two pairs."""

    @property
    def words(self) -> str:
        """A clause that stands after the arm's name."""
        at = f"at {self.share}"
        if self.gain is None:
            return f"not measured {at}"
        gain = f"{signed(self.gain)} {self.metric}"
        if self.margin is None:
            seed = f"{gain} {at} with one seed, from which nothing can be concluded"
            return seed if self.kind == "one seed" else self._nothing(at)
        gain = f"{signed(self.gain)} +- {self.margin:.1f} {self.metric}"
        return {
            "better": f"{gain} {at}",
            "worse": f"{gain} {at}",
            "same": f"no difference {at} ({gain})",
            "unclear": f"cannot be told {at} ({gain}; more seeds narrow it)",
            "nothing learnt": self._nothing(at),
        }[self.kind]

    def _nothing(self, at: str) -> str:
        return (
            f"nothing to compare {at} (no run of either arm reaches {LEARNT:.0f} {self.metric}: train longer)"
        )


def verdict(
    arm: str,
    reference: str,
    share: str,
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    *,
    metric: str = "AP",
) -> Verdict:
    """Judges figures by seed, of the arm and of the reference, on the seeds that both have.

    Seeds are paired because one seed gives both arms the same images, order and untrained parts.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    gain = fmean(differences) if differences else None
    margin = interval(differences) if len(differences) > 1 else None
    best = max([value for seed in seeds for value in (ours[seed], theirs[seed])], default=0.0)
    return Verdict(arm, reference, share, metric, _kind(gain, margin, best), len(seeds), gain, margin)


def interval(differences: Sequence[float]) -> float:
    """Half of Student's t interval around the mean of at least two paired differences, at 95 %."""
    from scipy.stats import t  # slow to import

    n = len(differences)
    return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(differences) / math.sqrt(n)


def sentence(verdicts: Sequence[Verdict]) -> str:
    """All shares of one arm in a line."""
    return f"{verdicts[0].arm}: " + ", ".join(v.words for v in verdicts)


def signed(value: float, digits: int = 1) -> str:
    """+3.1; a difference that rounds to nothing has no sign."""
    return f"{value:+.{digits}f}" if round(abs(value), digits) > 0 else f"{0:.{digits}f}"


def _kind(gain: float | None, margin: float | None, best: float) -> Kind:
    if gain is None:
        return "not measured"
    if best < LEARNT:
        return "nothing learnt"
    if margin is None:
        return "one seed"
    if abs(gain) > margin:
        return "better" if gain > 0 else "worse"
    return "same" if abs(gain) + margin <= SAME else "unclear"
