"""Everything a run says while it trains: rows, TensorBoard events, train.log and the display."""

from __future__ import annotations

import math
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from boxwise.engine.folder import RunFolder
from boxwise.engine.metrics import Row, cut_back, write_row
from boxwise.engine.progress import Display


class Journal:
    """Writes for the process that leads, and is silent in the others.

    Rows after step `start` are dropped first: a resumed run takes those steps again.
    """

    def __init__(self, folder: RunFolder, *, start: int, total: int) -> None:
        self.folder = folder
        self.display = Display(str(folder.facts.get("recipe")), start=start, total=total, shown=folder.writes)
        self._events: SummaryWriter | None = None
        if folder.writes:
            cut_back(folder.metrics, start)
            self._events = SummaryWriter(str(folder.path), purge_step=start + 1 if start else None)

    def __enter__(self) -> Journal:
        self.display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.__exit__(kind, error, trace)
        if self._events is not None:
            self._events.close()

    def write(self, step: int, row: Row) -> None:
        """A row of figures, everywhere."""
        self.display.show(step, row)
        if self._events is None:
            return
        write_row(self.folder.metrics, row)
        for key, value in row.items():
            if key != "step" and math.isfinite(value):
                self._events.add_scalar(key, value, step)
        self.folder.log(f"step {step}  {self.display.line(step, row)}")

    def say(self, text: str) -> None:
        """A message for whoever watches, and for train.log."""
        self.display.say(text)
        self.folder.log(text)
