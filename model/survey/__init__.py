"""Recorded gathers: traces with positions are sorted into a line, and a line's gathers mapped to the grid of a frame.

`preparation.prepare` does the whole; `line.lay_out` comes before it for files with trace headers.
"""

__all__ = ["line", "notes", "preparation", "recorded", "resampling"]
