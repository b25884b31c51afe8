"""Whether a gallery's approximate index is searched: it was measured, and goes on being measured by live queries."""

from __future__ import annotations

import logging
from collections.abc import Callable

from seisbind.index.approximate.info import DEPTH, FLOOR
from seisbind.index.approximate.probe import LiveRecall, RecallProbe
from seisbind.index.search.view import Hits, View
from seisbind.index.storage.record import Float32

log = logging.getLogger(__name__)


class ApproximatePolicy:
    """Of one open gallery.

    Args:
        exact: never search approximately.
        say: called with a sentence where the gallery stops to, or never began to.
    """

    def __init__(self, exact: bool, say: Callable[[str], None]) -> None:
        self.allowed = not exact
        self._say = say
        self._probe = RecallProbe(self._degraded)

    @property
    def live(self) -> LiveRecall:
        return self._probe.live

    def opened(self, view: View) -> None:
        """Say so if the index of ``view`` was found not to be good enough."""
        if view.lists is not None and not view.lists.info.served:
            log.warning("%s", view.lists.info.refusal)
            self._say(view.lists.info.refusal)

    def searched(self, view: View, queries: Float32, hits: Hits) -> None:
        """An approximate answer to ``queries`` from ``view``: perhaps search one of them exactly, too."""

        def sample(number: int) -> tuple[list[int], Callable[[], list[int]]]:
            query = queries[number : number + 1].copy()
            depth = min(DEPTH, len(hits[number])) or 1
            found = [hit.row for hit in hits[number]]
            return found, lambda: [hit.row for hit in view.search("velocity", query, depth, None)[0]]

        self._probe.offer(len(queries), sample)

    def _degraded(self, live: LiveRecall) -> None:
        self.allowed = False
        note = (
            f"Search is exact again: of the ten true matches of {live.compared} live queries, which were searched "
            f"exactly, too, the approximate index found {live.recall:.4f}, and at least {FLOOR} is served. Write a new "
            "snapshot to measure it again."
        )
        log.warning("%s", note)
        self._say(note)
