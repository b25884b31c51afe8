"""What a search sees, in memory: columns, vectors, and their snapshots on the disk.

`view` puts them together as the models of one moment; `loading` makes one from snapshots and records. Those of
large galleries are `mapped` and not read.
"""

__all__ = [
    "columns",
    "device",
    "filter",
    "labels",
    "loading",
    "mapped",
    "mapped_writer",
    "policy",
    "snapshots",
    "vectors",
    "view",
]
