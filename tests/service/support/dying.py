"""Work that ends its process, for pools whose processes import what they do."""

from __future__ import annotations

import os
from typing import Any


def die(*asked: Any) -> None:
    """As a process that is killed."""
    os._exit(9)


class DyingJob:
    """A job of `seisbind bulk` whose worker takes its process with it."""

    kind, device = "embed", "cpu"

    def open(self) -> Any:
        """As a worker that runs out of memory."""
        die()
