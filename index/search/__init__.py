"""What a search sees, in memory: columns, vectors, and the snapshots that they are opened from.

`view` puts them together as the contents of one moment.
"""

__all__ = ["columns", "filter", "snapshots", "vectors", "view"]
