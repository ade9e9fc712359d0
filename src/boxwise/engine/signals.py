"""SIGTERM and Ctrl-C: a wish that the loop grants after its step, an orderly end elsewhere."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor


class _Handlers:
    """Python handlers for as long as a block runs. Off the main thread, which may not, none."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self._numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class EndOnTerm(_Handlers):
    """While open, SIGTERM ends the process by SystemExit 143, so that what it holds is put down."""

    def __init__(self) -> None:
        super().__init__(signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)


class Stop(_Handlers):
    """While open, a first SIGTERM or Ctrl-C is only noted in `code`; a second Ctrl-C ends all at once.

    `code` is what a shell reports for a process ended by that signal: 143 or 130.
    """

    def __init__(self) -> None:
        super().__init__(signal.SIGTERM, signal.SIGINT)
        self.code: int | None = None

    def tensors(self, device: torch.device) -> dict[str, Tensor]:
        """The wish of this process, for ranks to agree on."""
        return {"stop": torch.tensor(float(self.code is not None), device=device)}

    def agreed(self, seen: Mapping[str, Sequence[float]]) -> int | None:
        """The exit code once any rank wishes to stop, from `tensors` averaged over the ranks; else None."""
        return (self.code or 128 + signal.SIGTERM) if seen["stop"][0] > 0 else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.code is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.code = self.code or 128 + number
