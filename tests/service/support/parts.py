"""Runs of ``seisbind bulk`` in this process, and the rows of their parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from seisbind.service.bulk.chunks import Chunk, Outcome, Worker
from seisbind.service.commands.main import app


def bulk(*arguments: object) -> Result:
    """The command without a process of its own, which costs seconds."""
    return CliRunner().invoke(app, ["bulk", *map(str, arguments)])


def rows(folder: Path) -> list[dict[str, Any]]:
    """Those of all parts, in the order of their names."""
    import pyarrow.parquet as pq

    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def here(worker: Worker) -> Callable[[Sequence[Chunk]], Iterator[Outcome]]:
    """An executor that works in this process."""
    return lambda chunks: map(worker.part, chunks)


def job_here(job: Any, chunks: Sequence[Chunk], workers: int) -> Iterator[Outcome]:
    """`executors.in_processes` without processes."""
    return map(job.open().part, chunks)
