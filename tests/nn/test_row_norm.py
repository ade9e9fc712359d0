"""RowNorm against torch's BatchNorm1d of the kept rows alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from boxwise.nn.row_norm import RowNorm, inverse_root, only_kept, whitened

KEEP = torch.tensor([True, False, True, True, False, True, True])


def pair(width: int = 5) -> tuple[RowNorm, nn.BatchNorm1d]:
    """Ours, and torch's with the same weights in float64."""
    mine, theirs = RowNorm(width).double(), nn.BatchNorm1d(width).double()
    with torch.no_grad():
        theirs.weight.copy_(torch.linspace(0.5, 2, width))
        theirs.bias.copy_(torch.linspace(-1, 1, width))
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 + 2 * torch.randn(len(KEEP), 5, generator=generator, dtype=torch.float64)


def same_state(mine: RowNorm, theirs: nn.BatchNorm1d) -> None:
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_is_batchnorm_where_every_row_counts(training: bool) -> None:
    """Breaks when names, statistics or the evaluation mode differ from what checkpoints expect."""
    mine, theirs = (norm.train(training) for norm in pair())
    torch.testing.assert_close(mine(rows()), theirs(rows()))
    with only_kept(torch.ones_like(KEEP), mine):
        torch.testing.assert_close(mine(rows()), theirs(rows()))
    same_state(mine, theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())


def test_padding_weighs_nothing() -> None:
    """Breaks when padding enters mean, variance or running statistics, or the gradient of the kept rows."""
    mine, theirs = pair()
    x, y = rows().requires_grad_(), rows()[KEEP].requires_grad_()
    with only_kept(KEEP, nn.Sequential(nn.Identity(), mine)):
        got = mine(x)
    want = theirs(y)
    torch.testing.assert_close(got[KEEP], want)
    same_state(mine, theirs)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (got[KEEP] * upstream).sum().backward()
    (want * upstream).sum().backward()
    torch.testing.assert_close(x.grad[KEEP], y.grad)
    assert (x.grad[~KEEP] == 0).all()
    torch.testing.assert_close(mine.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(mine.bias.grad, theirs.bias.grad)


def test_padding_does_not_change_kept_rows() -> None:
    """Breaks when what stands in padding matters."""
    mine, _ = pair()
    other = torch.where(KEEP[:, None], rows(), 1000)
    with only_kept(KEEP, mine):
        assert torch.equal(mine(rows())[KEEP], mine(other)[KEEP])


def test_nothing_kept_is_finite_and_leaves_the_statistics() -> None:
    """Breaks when a batch of padding divides by nothing, or drags running statistics to zero."""
    mine, _ = pair()
    mine.running_mean += 7
    x = rows().requires_grad_()
    with only_kept(torch.zeros_like(KEEP), mine):
        y = mine(x)
    (0 * y).sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    assert (mine.running_mean == 7).all() and (mine.running_var == 1).all()


def test_gradient_is_that_of_finite_differences() -> None:
    """Breaks when the way through the statistics is cut."""
    mine, _ = pair()
    with only_kept(KEEP, mine):
        assert torch.autograd.gradcheck(mine, rows().requires_grad_())


def test_rows_are_forgotten_after_use_and_after_errors() -> None:
    """Breaks when the flags of one batch are applied to the next."""
    mine, theirs = pair()
    with pytest.raises(KeyError), only_kept(KEEP, mine):
        raise KeyError
    torch.testing.assert_close(mine(rows()), theirs(rows()))


def test_whitened_rows_are_uncorrelated_and_padding_has_no_say() -> None:
    """Breaks when columns stay correlated, or when padding moves mean or covariance."""
    generator = torch.Generator().manual_seed(0)
    mixed = 3 + torch.randn(60, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    keep = torch.arange(60) % 3 > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which would round the covariance
        out = whitened(mixed, keep, ridge=0.0)[keep]
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.T @ out / len(out), torch.eye(4), atol=1e-3, rtol=0)
    mixed[~keep] = 1e3
    torch.testing.assert_close(whitened(mixed, keep, ridge=0.0)[keep], out, atol=1e-4, rtol=0)


def test_whitened_rows_are_the_nearest_there_are() -> None:
    """Breaks when rows are turned too, as a Cholesky factor does: then a target means another thing in each batch."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(200, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    values, vectors = torch.linalg.eigh(torch.cov(mixed.T, correction=0))
    expected = (mixed - mixed.mean(0)) @ vectors @ torch.diag(values.rsqrt()) @ vectors.T
    out = whitened(mixed, torch.ones(200, dtype=torch.bool), ridge=0.0)
    torch.testing.assert_close(out, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("least", [1.0, 1e-2, 1e-6])
def test_the_inverse_root_holds_where_eigenvalues_are_far_apart(least: float) -> None:
    """Breaks with too few steps, which leave small eigenvalues too small, or an unstable form, which blows up."""
    turn, _ = torch.linalg.qr(
        torch.randn(8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    )
    values = torch.logspace(0, math.log10(least), 8, dtype=torch.float64)
    found = inverse_root(7 * (turn * values) @ turn.T)
    torch.testing.assert_close(found, (turn * (7 * values).rsqrt()) @ turn.T, atol=1e-9, rtol=1e-6)


def test_whitening_keeps_what_a_batch_hardly_holds_small() -> None:
    """Breaks when equal rows, or none that count, give numbers that are not finite, or noise becomes a target."""
    rows = torch.zeros(12, 2)
    rows[:, 0], rows[:, 1] = torch.linspace(-1, 1, 12), 1e-3 * torch.linspace(-1, 1, 12).sin()
    assert whitened(rows, torch.ones(12, dtype=torch.bool))[:, 1].std() < 0.2
    assert whitened(torch.ones(6, 3), torch.ones(6, dtype=torch.bool)).isfinite().all()
    assert whitened(torch.randn(6, 3), torch.zeros(6, dtype=torch.bool)).isfinite().all()
