"""How a run shows itself: a bar on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from boxwise.engine.metrics import Row

QUIET_SECONDS = 10.0
"""Off a terminal, at most one line in this time; the first and the last step always have theirs."""


class Display:
    """Steps `start` to `total` of a run, for whoever watches. `shown=False` is for ranks that stay silent."""

    unit = "step"

    def __init__(self, title: str, *, start: int, total: int, shown: bool = True) -> None:
        self.start, self.total, self.shown = start, total, shown
        self.begun = time.perf_counter()
        self._last_line = -QUIET_SECONDS
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        if shown and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task(title, total=total, completed=start, figures="")

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """`step` steps are done. Costs the host a few microseconds."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, step: int, row: Row) -> None:
        """The figures of a new row."""
        line = self.line(step, row)
        now = time.perf_counter()
        if self._bar is not None:
            self._bar.update(self._task, figures=line)
        elif self.shown and (now - self._last_line >= QUIET_SECONDS or step in (1, self.total)):
            self._last_line = now
            print(f"{self.unit} {step}/{self.total}  {line}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A message between the figures."""
        if self.shown:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def line(self, step: int, row: Row) -> str:
        """Loss, rate of images, time lost to data, learning rate, time left."""
        spent = time.perf_counter() - self.begun
        left = spent / max(step - self.start, 1) * (self.total - step)
        return (
            f"loss {row['train/loss']:.4g}  {row['time/images_per_s']:.4g} images/s  "
            f"data wait {row['time/data_wait']:.0%}  lr {row['train/lr']:.3g}  {clock(left)} left"
        )


class ImageDisplay(Display):
    """The same for work on one image after another: rate of images, time left."""

    unit = "image"

    def __init__(
        self, title: str, *, start: int, total: int, shown: bool = True, unit: str = "image"
    ) -> None:
        super().__init__(title, start=start, total=total, shown=shown)
        self.unit = unit

    def line(self, step: int, row: Row) -> str:
        spent = max(time.perf_counter() - self.begun, 1e-9)
        rate = (step - self.start) / spent
        left = clock((self.total - step) / rate) if rate else "?"
        return f"{rate:.4g} images/s  {left} left"


def say(text: str) -> None:
    """A line on stderr, at once."""
    print(text, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
