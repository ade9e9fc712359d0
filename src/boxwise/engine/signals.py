"""SIGTERM and Ctrl-C: a wish that the loop grants after its step, an orderly end elsewhere."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def handling(handler: Handler, *numbers: signal.Signals) -> Iterator[None]:
    """`handler` for as long as the block runs; nothing outside the main thread, which alone may have one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier or signal.SIG_DFL)


@contextmanager
def ending_on_term() -> Iterator[None]:
    """SIGTERM raises SystemExit 143, so that what the block holds is put down."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with handling(end, signal.SIGTERM):
        yield


class Stop:
    """A first SIGTERM or Ctrl-C is only noted in `code`; a second Ctrl-C ends the process at once.

    `code` is what a shell reports for a process ended by that signal: 143 or 130.
    """

    code: int | None = None

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Notes signals for as long as the block runs."""
        with handling(self._note, signal.SIGTERM, signal.SIGINT):
            yield self

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
