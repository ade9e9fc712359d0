"""What goes wrong, in one sentence: the system's errors with a mend, and warnings without the line of code."""

from __future__ import annotations

import errno
import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = str(Path(__file__).parents[1])
MENDS = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "files may not grow so large here (ulimit -f)",
    errno.EACCES: "choose another place, or ask who owns it for the right to use it",
    errno.EPERM: "choose another place, or ask who owns it for the right to use it",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOTDIR: "a part of this path is a file; choose another path",
    errno.EISDIR: "is a folder; name a file",
}
MEMORY = "out of memory: pass a smaller --batch-size or --image-size, or fewer --workers"
KILLED = (
    "a process that reads images was ended from outside, most likely for want of memory: pass fewer --workers "
    "(0 needs none)"
)


def told(error: BaseException) -> str | None:
    """What to tell of `error`; none for one that only its traceback explains."""
    # Both of torch's errors are known without importing it, and the second is raised in the midst of anything.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return MEMORY
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return KILLED
    if isinstance(error, OSError) and error.strerror is not None:
        where = f"{error.filename}: " if error.filename else ""
        mend = f"; {MENDS[error.errno]}" if error.errno in MENDS else ""
        return f"{where}{error.strerror[0].lower()}{error.strerror[1:]}{mend}"
    expected = isinstance(error, ValueError | OSError) or hasattr(error, "exit_code")
    return str(error) if expected else None


def empty_words(argv: Sequence[str]) -> Iterator[str]:
    """One sentence for each word that is empty: a shell's unset variable, which a path would take for this folder."""
    for before, word in itertools.pairwise(["boxwise", *argv]):
        if not word or (word.startswith("--") and word.endswith("=")):
            yield f"{word or before}: nothing follows; is a variable of the shell unset?"


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Our own warnings in one line each, like everything else that is told."""
    usual = warnings.formatwarning

    def line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        ours = filename.startswith(ROOT)
        return f"{message}\n" if ours else usual(message, category, filename, lineno, line)

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = usual
