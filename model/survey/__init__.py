"""Recorded gathers: traces with positions are sorted into a line, and a line's gathers mapped to the grid of a frame.

`preparation.prepare` does the whole; `line` comes before it for traces with headers, `scaling` for other sizes of line.
"""

__all__ = ["line", "notes", "preparation", "recorded", "resampling", "scaling"]
