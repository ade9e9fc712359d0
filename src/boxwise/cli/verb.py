"""What every verb is: a class whose fields are its arguments, and whose `call` does it."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

USAGE, FAILED = 2, 1
"""Exit codes, beside 0, 130 for Ctrl-C, 143 for SIGTERM, and what an error of ours carries as `exit_code`:
3 for a run that diverged, 4 for weights that did not arrive."""

Named = Annotated[str, arg(metavar="RECIPE")]
Place = Annotated[Path | None, arg(metavar="PATH")]


@dataclasses.dataclass(kw_only=True)
class Verb(ABC):
    """The docstring of a verb is its help, and so is the string under each field."""

    @abstractmethod
    def call(self, settings: dict[str, Any]) -> int | None:
        """Runs it and returns the exit code, 0 where that is None.

        `settings` are those of a recipe. Imports torch in here, so that help does not wait for it.
        """
