"""Notes on what was done with a record, and on what was assumed of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was done or assumed: a stable ``code``, and a sentence for people."""

    code: str
    sentence: str
