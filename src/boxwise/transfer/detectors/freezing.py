"""Which parts of a backbone train, and which norms keep the statistics they came with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def stages(body: nn.Module, ends: Sequence[str]) -> dict[str, int]:
    """Every module of `body` with parameters, by name, and its stage: 1 the stem, 2 to 5 what makes c2 to c5.

    `ends` names the modules that give c2 to c5. Modules belong to the map that they come before, in the order
    of definition; those behind c5 count as its stage.
    """
    names = [n for n, m in body.named_modules() if next(m.parameters(recurse=False), None) is not None]
    # timm names the twins of one module `stages.0` and `stages_0`
    flat = [f"{n.replace('.', '_')}_" for n in names]
    inside = [[i for i, n in enumerate(flat) if n.startswith(f"{e.replace('.', '_')}_")] for e in ends]
    assert all(inside), f"{ends} are not all modules of {type(body).__name__}"
    stem = inside[0][0]
    return {
        name: 1 if i < stem else min(5, 2 + sum(i > within[-1] for within in inside))
        for i, name in enumerate(names)
    }


def freeze(body: nn.Module, ends: Sequence[str], *, up_to: int, norms: bool) -> None:
    """Stops the stages 1 to `up_to` from training; their BatchNorms, with `norms` all, become constants.

    A constant norm uses the running statistics in training too and keeps the names of its weights. Raises
    ValueError when `norms` asks for what the backbone does not have.
    """
    from timm.layers import freeze_batch_norm_2d  # type: ignore[attr-defined]  # half a second, rarely needed

    batch_norms = [n for n, m in body.named_modules() if isinstance(m, nn.BatchNorm2d)]
    if norms and not batch_norms:
        raise ValueError(
            "norm: frozen needs a backbone with BatchNorm, and this one has none; choose norm: bn"
        )
    stage = stages(body, ends)
    for name, number in stage.items():
        if number <= up_to:
            body.get_submodule(name).requires_grad_(False)
    for name in batch_norms:
        if norms or stage[name] <= up_to:
            parent, _, leaf = name.rpartition(".")
            setattr(body.get_submodule(parent), leaf, freeze_batch_norm_2d(body.get_submodule(name)))
