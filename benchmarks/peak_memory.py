"""Memory of a process and all below it, watched while a block runs; for the other scripts here.

It is the sum of their proportional set sizes (PSS, `/proc/PID/smaps_rollup`): what they share counts once, and pages
of files that the system keeps for itself do not count.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

EVERY_S = 0.25  # between two looks


def below(pid: int) -> Iterator[int]:
    """A process, and all that it and its own have started."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            started = task.read_text().split()
        except OSError:
            continue
        for child in started:
            yield from below(int(child))


def pss_bytes() -> int:
    """Of this process and all below it, now."""
    total = 0
    for pid in below(os.getpid()):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


class Peak:
    """The highest `pss_bytes` while the block runs, of all of it and since `lap` was called last."""

    def __enter__(self) -> Peak:
        self.bytes = self._lap = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def lap(self) -> int:
        """The highest since the last call."""
        found, self._lap = max(self._lap, pss_bytes()), 0
        self.bytes = max(self.bytes, found)
        return found

    def _watch(self) -> None:
        while not self._done.wait(EVERY_S):
            now = pss_bytes()
            self.bytes, self._lap = max(self.bytes, now), max(self._lap, now)
