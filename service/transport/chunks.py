"""How far the chunks of a request body reach: many of them are parsed at once, and nothing that follows them."""

from __future__ import annotations

import re

CHUNKS_AT_ONCE = 256  # and as many small ones; the parser calls Python for each
SMALL_CHUNKS = re.compile(
    rb"(?:%b){1,%d}" % (b"|".join(rb"%x\r\n.{%d}\r\n" % (size, size) for size in range(1, 16)), CHUNKS_AT_ONCE),
    re.DOTALL,
)  # ten times as fast as the loop
SIZE_LINE = re.compile(rb"([0-9A-Fa-f]+)(?:;[^\n]*)?\r\n")


class Chunks:
    """The place in a chunked body (RFC 9112, section 7.1) from one read to the next.

    Only sizes are read here. The parser, which gets the same bytes, refuses those that are no chunks.
    """

    def __init__(self) -> None:
        self.ended = False  # with the line of the last chunk, after which trailers come
        self._line = b""  # as much as has come of one with a size
        self._left = 0  # bytes of the chunk, with the line break behind it

    def reach(self, held: bytes, at: int) -> int:
        """The end of the chunks that begin, or go on, at ``at``: at most so many, or all that is held."""
        left, count = self._left, len(held)
        for _ in range(CHUNKS_AT_ONCE):
            if left >= count - at:
                left, at = left - (count - at), count
                break
            at, left = at + left, 0
            if not self._line and held.startswith(b"\r", at + 1) and (small := SMALL_CHUNKS.match(held, at)):
                at = small.end()
                break
            if not self._line and (line := SIZE_LINE.match(held, at)):
                at = line.end()
            else:
                end = held.find(b"\n", at) + 1
                self._line += held[at : end or count]
                at = end or count
                if not end:
                    break
                line, self._line = SIZE_LINE.match(self._line), b""
                if line is None:
                    break
            left = int(line[1], 16) + 2
            if left == 2:
                self.ended = True
                break
        self._left = left
        return at
