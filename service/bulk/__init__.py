"""Many files at once, by an engine or by a server, into JSON lines, a Parquet table or a folder of parts.

`run` sends each input to a backend and writes its answers; `executors` share chunks of them among processes or Ray.
"""

__all__ = ["backends", "chunks", "executors", "folder", "inputs", "parquet", "places", "run"]
