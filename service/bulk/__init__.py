"""Many files at once, by an engine or by a server, into JSON lines, a Parquet table or a folder of parts.

Jobs (`gather_jobs`, `section_jobs`, `simulation_jobs`) say what is done with a chunk; `executors` share chunks among
processes or Ray, `folder` keeps their parts, and `run` writes lines, one file after another.
"""

__all__ = [
    "backends",
    "chunks",
    "executors",
    "folder",
    "gather_jobs",
    "parquet",
    "places",
    "run",
    "section_jobs",
    "simulation_jobs",
]
