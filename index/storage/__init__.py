"""What a gallery stores on the disk: its SQLite file, its folder and its locks.

`records` reads and `record_writer` changes what everything else is derived from.
"""

__all__ = ["codec", "database", "folder", "lock", "record", "record_writer", "records"]
