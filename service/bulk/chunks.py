"""What one worker does at a time, a range of a stack or a whole file, and the part of the output that it becomes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from seisbind.service.bulk.backends import BATCH
from seisbind.service.bulk.parquet import need_pyarrow
from seisbind.service.bulk.places import count_at

CHUNK = 2 * BATCH  # gathers of a part; a multiple of a batch, so that batches are those of `seisbind retrieve`
TALLY = b"seisbind"  # key of the tally in a part's metadata
Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Gathers or models ``first`` to ``last``, the end not included, of a file; ``last`` None for all to its end.

    Attributes:
        number: of the file among the inputs.
    """

    number: int
    file: str
    first: int = 0
    last: int | None = None

    @property
    def name(self) -> str:
        """Of its part. It depends on nothing but the chunk."""
        return f"{self.number:06}-" + ("whole" if self.last is None else f"{self.first:09}-{self.last:09}") + ".parquet"

    def __len__(self) -> int:
        return 1 if self.last is None else self.last - self.first


@dataclass(frozen=True, slots=True)
class Outcome:
    """A chunk's part, or ``stopped``: what is wrong with more than its gathers."""

    chunk: Chunk
    part: bytes = b""
    answered: int = 0
    failed: int = 0
    stopped: str | None = None


class Worker(Protocol):
    """Holds what a job needs, and does its chunks. The same in a process of a pool and in a Ray actor."""

    def source(self) -> dict[str, object]:
        """What answers, as JSON: weights and gallery as they are at the beginning, where there are any."""
        ...

    def part(self, chunk: Chunk) -> Outcome:
        """The part of a chunk; what is wrong with its gathers or its file are rows of it.

        Raises:
            SeisBindError: what is wrong is not wrong with them alone.
        """
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


class Job(Protocol):
    """What is done with every chunk. It crosses to other processes, and holds no arrays."""

    @property
    def kind(self) -> str:
        """Its command."""
        ...

    @property
    def device(self) -> str:
        """Of the workers."""
        ...

    def asked(self) -> dict[str, object]:
        """The options that parts depend on, as JSON."""
        ...

    def chunks(self, files: Sequence[str]) -> list[Chunk]:
        """What is to be done, in order: of files only headers are read. Raises SeisBindError."""
        ...

    def holding(self) -> AbstractContextManager[None]:
        """What is held, besides the folder of the parts, while they are made."""
        ...

    def open(self) -> Worker:
        """A worker. Raises SeisBindError: weights, gallery or options cannot be used."""
        ...


def plan_chunks(files: Sequence[str], *, chunk: int = CHUNK) -> list[Chunk]:
    """The chunks of files of gathers, in order: only headers are read."""
    found: list[Chunk] = []
    for number, name in enumerate(files):
        count = count_at(name)
        found += ranges(number, name, count, chunk) if count > 1 else [Chunk(number, name)]
    return found


def ranges(number: int, name: str, count: int, chunk: int) -> list[Chunk]:
    """Chunks of ``count`` items of one file."""
    return [Chunk(number, name, first, min(first + chunk, count)) for first in range(0, count, chunk)]


def make_part(chunk: Chunk, rows: Sequence[Row], schema: Any) -> Outcome:
    """Rows as Parquet; those with an ``error_code`` count as failed. Raises MissingExtra."""
    pyarrow = need_pyarrow()
    failed = sum(row.get("error_code") is not None for row in rows)
    tally = json.dumps({"answered": len(rows) - failed, "failed": failed}).encode()
    table = pyarrow.Table.from_pylist(list(rows), schema.with_metadata({TALLY: tally}))
    held = io.BytesIO()
    pyarrow.parquet.write_table(table, held)
    return Outcome(chunk, held.getvalue(), len(rows) - failed, failed)
