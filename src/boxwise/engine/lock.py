"""One process at a time in a run folder; a lock whose owner has died is taken over."""

from __future__ import annotations

import errno
import json
import os
import platform
from pathlib import Path

NAME = ".lock"
LINKLESS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system that has no hard links answers."""


class Lock:
    """Holds `folder` for this process. Raises ValueError that names a living owner."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._me = {"pid": os.getpid(), "host": platform.node(), "born": _born(os.getpid())}
        while not self._take():
            owner = self._owner()
            if owner is not None and _alive(owner):
                raise ValueError(
                    f"{folder}: in use by process {owner['pid']} on {owner['host']}; "
                    f"wait for it, or delete {self.path} if that process is gone"
                )
            self._clear()

    def release(self) -> None:
        self.path.unlink(missing_ok=True)

    def _take(self) -> bool:
        """Linking a file that is already written means that nobody ever reads half a lock."""
        mine = self.path.with_name(f"{NAME}.{os.getpid()}")
        mine.write_text(json.dumps(self._me))
        try:
            os.link(mine, self.path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in LINKLESS:
                raise
            return self._take_without_links()
        finally:
            mine.unlink()
        return True

    def _take_without_links(self) -> bool:
        """Where a disk knows no links (exFAT, some network drives), whoever makes the file first has it."""
        try:
            with self.path.open("x") as file:
                file.write(json.dumps(self._me))
        except FileExistsError:
            return False
        return True

    def _owner(self) -> dict[str, str | int] | None:
        """None for a lock that has just gone or says nothing."""
        try:
            owner: dict[str, str | int] = json.loads(self.path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return owner if owner.keys() >= {"pid", "host", "born"} else None

    def _clear(self) -> None:
        """Moves a dead owner's lock away; of two processes that try, one finds it gone and looks again."""
        stale = self.path.with_name(f"{NAME}.stale.{os.getpid()}")
        try:
            os.rename(self.path, stale)
        except FileNotFoundError:
            return
        stale.unlink()


def _alive(owner: dict[str, str | int]) -> bool:
    """An owner on another machine counts as alive: it cannot be asked."""
    if owner["host"] != platform.node() or os.name == "nt":
        return True
    return _born(int(owner["pid"])) == owner["born"] if owner["born"] else _exists(int(owner["pid"]))


def _born(pid: int) -> str:
    """When a process started, in the kernel's ticks: a number used again must not pass for its old owner.

    Empty where the system does not tell, or the process is gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
