"""SIGTERM and Ctrl-C as a wish that the loop grants after its step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

WATCHED = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """While open, a first SIGTERM or Ctrl-C is only noted in `code`; a second Ctrl-C ends all at once.

    `code` is what a shell reports for a process ended by that signal: 143 or 130. Outside the main thread,
    where Python allows no handlers, signals keep their meaning.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
