"""Recall of the searches that are really made: a few of them are made exactly, too, and compared.

The comparison runs on a thread of its own, one at a time, and is left out while one is running: live searches never
wait for it, and it costs one exact search in every `EVERY` queries at most.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock, Thread

from seisbind.index.approximate.info import DEPTH, FLOOR

log = logging.getLogger(__name__)

EVERY = 500  # queries answered approximately between two that are compared
WINDOW = 400  # comparisons that the estimate is of
ENOUGH = 50  # comparisons before anything is concluded

Found = list[int]  # rows of the models of an answer, best first


@dataclass(frozen=True, slots=True)
class LiveRecall:
    """Recall of live queries: the mean over ``compared`` of the last ones; None before the first."""

    recall: float | None
    compared: int


class RecallProbe:
    """Compares some of the answers of one index with exact ones.

    Args:
        degraded: called once, with the estimate, when recall is below `FLOOR` beyond what chance explains.
    """

    def __init__(self, degraded: Callable[[LiveRecall], None]) -> None:
        self._degraded = degraded
        self._lock = Lock()
        self._busy = Lock()
        self._since = 0
        self._shares: deque[float] = deque(maxlen=WINDOW)
        self._done = False

    @property
    def live(self) -> LiveRecall:
        with self._lock:
            shares = list(self._shares)
        return LiveRecall(sum(shares) / len(shares) if shares else None, len(shares))

    def offer(self, queries: int, sample: Callable[[int], tuple[Found, Callable[[], Found]]]) -> None:
        """An answer to so many ``queries`` at once: perhaps compare one of them.

        Args:
            sample: called with the number of the query that is compared, if one is; returns the rows that were found
                for it, and what finds the exact ones.
        """
        with self._lock:
            self._since += queries
            due = self._since >= EVERY and not self._done
            if not due or not self._busy.acquire(blocking=False):
                return
            number = (self._since - EVERY) % queries
            self._since = 0
        try:
            found, exact = sample(number)
            Thread(target=self._compare, args=(found, exact), name="recall probe", daemon=True).start()
        except BaseException:
            self._busy.release()
            raise

    def _compare(self, found: Found, exact: Callable[[], Found]) -> None:
        try:
            self.record(found, exact())
        except Exception:  # the gallery was closed meanwhile, or its file damaged, which the next search says
            log.debug("A comparison with an exact search was not made.", exc_info=True)
        finally:
            self._busy.release()

    def record(self, found: Found, truth: Found) -> None:
        """One comparison; what is found beyond `DEPTH` does not count."""
        wanted = set(truth[:DEPTH])
        if not wanted:
            return
        share = len(wanted & set(found[:DEPTH])) / len(wanted)
        with self._lock:
            self._shares.append(share)
            below = not self._done and self._is_below()
            self._done = self._done or below
        if below:
            self._degraded(self.live)

    def _is_below(self) -> bool:
        """Whether the mean is below `FLOOR` by more than two standard errors."""
        count = len(self._shares)
        if count < ENOUGH:
            return False
        mean = sum(self._shares) / count
        variance = sum((share - mean) ** 2 for share in self._shares) / (count - 1)
        return mean + 2 * math.sqrt(variance / count) < FLOOR
