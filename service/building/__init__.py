"""Velocity models on their way into a gallery: drawn or read, described, embedded and written.

`build` does it in worker processes and goes on after a kill; `sources` says where models come from.
"""

__all__ = ["build", "encoding", "sources"]
