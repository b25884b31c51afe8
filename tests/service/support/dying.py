"""Work that ends its process, for pools whose processes import what they do."""

from __future__ import annotations

import os
from typing import Any


def die(*asked: Any) -> None:
    """As a process that is killed."""
    os._exit(9)


class DyingJob:
    """A job of `seisbind bulk`, and its worker, of which each part takes its process with it."""

    kind, device = "embed", "cpu"

    def open(self) -> DyingJob:
        """The worker."""
        return self

    def part(self, chunk: Any) -> None:
        """As one that needs more memory than there is."""
        die()
