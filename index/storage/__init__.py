"""What is kept on the disk: the SQLite file of a gallery, its folder, and its locks.

`records` is the truth that everything else is derived from.
"""

__all__ = ["database", "folder", "lock", "record", "records"]
