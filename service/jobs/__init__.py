"""Work that takes minutes: a durable queue of jobs in one SQLite file, the process that works on them, and its keeper.

`keeper.Jobs` is what a server owns; `worker` runs as a process of its own, so that a crash in it ends no server.
"""

__all__ = ["job", "keeper", "store"]
