"""A toy task that uses all that a run must keep: weights, BatchNorm, a teacher, a queue, draws of its own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
