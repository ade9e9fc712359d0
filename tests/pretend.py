"""A CUDA device that is not there: tensors that know their device and shape, and hold no numbers.

What a real one would refuse, or make the host wait for, shows without one: operations on tensors of two devices,
numbers read back, results whose size only numbers tell, and copies between host and device that are waited for.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

UNKNOWN = (torch.ops.aten._fused_sgd_.default,)
"""What torch cannot pretend; works in place."""


class Waits(TorchDispatchMode):
    """Notes every call that brings numbers from host to device, or back, and that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = "cuda" in str(kwargs.get("device"))
        if not there and not any(isinstance(x, FakeTensor) for x in given):
            with unset_fake_temporarily():  # numbers of the host stay numbers
                return func(*args, **kwargs)
        made = None if func in UNKNOWN else func(*args, **kwargs)
        if self._crosses(func, given, _devices(tree_leaves(made))) and not _not_waited_for(args, kwargs):
            self.seen.append(f"{func.name()} in {_place()}")
        return made

    def _crosses(self, func: Any, given: list[Tensor], made: set[str]) -> bool:
        if func in COPIES:
            return len(_devices(given) | made) > 1
        return len(_devices([x for x in given if x.ndim]) | made) > 1  # one number goes along with a call


def _devices(tensors: list[Any]) -> set[str]:
    return {x.device.type for x in tensors if isinstance(x, Tensor)}


def _not_waited_for(args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("non_blocking") or args[2:3] == (True,))


def _place() -> str:
    """The innermost lines of the library."""
    frames = [f for f in traceback.extract_stack() if "/boxwise/" in f.filename]
    return " < ".join(f"{f.filename.rpartition('/boxwise/')[2]}:{f.lineno}" for f in frames[:-4:-1])


@contextmanager
def cuda() -> Iterator[Waits]:
    """Within, `.to("cuda")` works on tensors and modules, which are the pretended device's from then on.

    Gradients cannot be computed there: that asks for a stream of the device.
    """
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # else a parameter stays on the host
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
            yield waits
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
