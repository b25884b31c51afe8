"""Many files at once, by an engine or by a server, into JSON lines or a Parquet table.

`run` asks a backend about each input and writes what it answers.
"""

__all__ = ["backends", "inputs", "parquet", "run"]
