"""How far the chunks of a request body reach: many of them are parsed at once, and nothing that follows them."""

from __future__ import annotations

import re

CHUNKS_AT_ONCE = 64  # the parser calls Python for each
SIZE = re.compile(rb"[0-9A-Fa-f]+(?=[;\r])")


class Chunks:
    """The place in a chunked body (RFC 9112, section 7.1) from one read to the next.

    Only sizes are read here. The parser, which gets the same bytes, refuses those that are no chunks.
    """

    def __init__(self) -> None:
        self.ended = False  # with the line of the last chunk, after which trailers come
        self._line = b""  # as much as has come of one with a size
        self._left = 0  # bytes of the chunk, with the line break behind it

    def reach(self, held: bytes, at: int) -> int:
        """The end of the chunks that begin, or go on, at ``at``: at most `CHUNKS_AT_ONCE`, or all that is held."""
        for _ in range(CHUNKS_AT_ONCE):
            step = min(self._left, len(held) - at)
            self._left -= step
            at += step
            if at == len(held):
                break
            end = held.find(b"\n", at) + 1 or len(held)
            self._line += held[at:end]
            at = end
            if not self._line.endswith(b"\n"):
                break
            size, self._line = SIZE.match(self._line), b""
            if size is None:
                break
            self._left = int(size[0], 16) + 2
            if self._left == 2:
                self.ended = True
                break
        return at
