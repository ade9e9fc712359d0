"""What torchrun tells the processes that it starts."""

from __future__ import annotations

import os


def as_torchrun(number: int, world: int, port: int) -> None:
    """Makes this process number `number` of `world`."""
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
