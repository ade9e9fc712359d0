"""What a comparison claims, against values worked out by hand."""

from __future__ import annotations

import pytest

from boxwise.run.verdict import Verdict, interval, sentence, signed, verdict


def judged(*differences: float, base: float = 20.0) -> Verdict:
    theirs = {seed: base + seed for seed in range(len(differences))}
    ours = {seed: theirs[seed] + d for seed, d in enumerate(differences)}
    return verdict("scrl", "random", "10 %", ours, theirs)


@pytest.mark.parametrize(
    ("differences", "margin"),
    [
        ([3.0, 3.1, 3.2], 4.302653 * 0.1 / 3**0.5),  # t(.975, 2) times the standard error
        ([1.0, 3.0], 12.706205 * 2**0.5 / 2**0.5),  # t(.975, 1), deviation sqrt 2
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2.776445 * 2.5**0.5 / 5**0.5),  # t(.975, 4)
    ],
)
def test_the_interval_is_students_at_95_percent(differences: list[float], margin: float) -> None:
    """Breaks when the normal's 1.96 stands in for t, the deviation divides by n, or the mean's error is not taken."""
    assert interval(differences) == pytest.approx(margin, rel=1e-6)


def test_differences_are_paired_by_seed() -> None:
    """Breaks when arms are compared as unpaired groups: seeds differ by 10 points, their differences by none."""
    found = verdict("a", "b", "10 %", {0: 11.0, 1: 21.0, 2: 31.2}, {2: 30.0, 0: 10.0, 1: 20.0})
    assert found.gain == pytest.approx(3.2 / 3)
    assert found.margin == pytest.approx(4.302653 * (0.04 / 3) ** 0.5 / 3**0.5, rel=1e-5)
    assert found.kind == "better"


def test_only_seeds_that_both_arms_have_count() -> None:
    """Breaks when a run that is still missing is paired with another seed's."""
    found = verdict("a", "b", "10 %", {0: 11.0, 1: 12.0, 3: 90.0}, {0: 10.0, 1: 10.0, 2: 0.0})
    assert (found.pairs, found.gain) == (2, pytest.approx(1.5))
    assert verdict("a", "b", "10 %", {0: 11.0}, {1: 10.0}).kind == "not measured"


@pytest.mark.parametrize(
    ("differences", "kind", "words"),
    [
        ((3.0, 3.1, 3.2), "better", "+3.1 +- 0.2 AP at 10 %"),
        ((-3.0, -3.1, -3.2), "worse", "-3.1 +- 0.2 AP at 10 %"),
        ((0.2, -0.1, 0.1), "same", "no difference at 10 % (+0.1 +- 0.4 AP)"),
        ((0.0, 0.0, 0.0), "same", "no difference at 10 % (0.0 +- 0.0 AP)"),
        ((4.0, 0.0, 2.0), "unclear", "cannot be told at 10 % (+2.0 +- 5.0 AP; more seeds narrow it)"),
        ((0.5, -0.5, 0.3), "unclear", "cannot be told at 10 % (+0.1 +- 1.3 AP; more seeds narrow it)"),
        ((5.0,), "one seed", "+5.0 AP at 10 % with one seed, from which nothing can be concluded"),
        ((), "not measured", "not measured at 10 %"),
    ],
)
def test_what_is_said(differences: tuple[float, ...], kind: str, words: str) -> None:
    """Breaks when a wide interval passes for no difference, or one seed for a result."""
    found = judged(*differences)
    assert (found.kind, found.words) == (kind, words)


def test_detectors_that_learnt_nothing_are_not_called_alike() -> None:
    """Breaks when two arms at AP 0 count as no difference."""
    found = verdict("a", "b", "1 %", {0: 0.1, 1: 0.0, 2: 0.2}, {0: 0.0, 1: 0.3, 2: 0.9})
    assert found.kind == "nothing learnt" and "no run of either arm reaches 1 AP" in found.words
    alone = verdict("a", "b", "1 %", {0: 0.1}, {0: 0.0})
    assert alone.kind == "nothing learnt" and alone.words == found.words
    assert verdict("a", "b", "1 %", {0: 0.1, 1: 0.0}, {0: 0.0, 1: 1.1}).kind != "nothing learnt"


def test_a_sentence_holds_every_share_and_the_metric() -> None:
    """Breaks when a share or the name of the figure is lost."""
    second = verdict("scrl", "random", "100 %", {0: 40.0, 1: 40.2}, {0: 40.0, 1: 40.2}, metric="mIoU")
    assert sentence([judged(3.0, 3.1, 3.2), second]) == (
        "scrl: +3.1 +- 0.2 AP at 10 %, no difference at 100 % (0.0 +- 0.0 mIoU)"
    )


def test_a_gain_of_nothing_has_no_sign() -> None:
    """Breaks when a demo without a gain says -0.00."""
    assert [signed(v, 2) for v in (-0.004, 0.0, -0.006, 1.0)] == ["0.00", "0.00", "-0.01", "+1.00"]
