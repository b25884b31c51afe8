"""Recorded gathers: traces with positions are sorted into a line, and a line's gathers mapped to the grid of a frame.

`preparation.prepare` does the whole, after `line.lay_out` for files with trace headers; `windows` reads long lines, and
`scaling` chooses for lines of other sizes.
"""

__all__ = ["line", "notes", "preparation", "recorded", "resampling", "scaling", "spectrum", "spreads", "windows"]
