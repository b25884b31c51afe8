"""Many files at once, by an engine or by a server, into JSON lines or a Parquet table.

`run` sends each input to a backend and writes its answers.
"""

__all__ = ["backends", "inputs", "parquet", "run"]
