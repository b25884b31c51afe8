"""What one worker does at a time: a range of a stack or a whole file, and the part of the output that it becomes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import SeisBindError
from seisbind.service.bulk.backends import (
    BATCH,
    LIMITS,
    Failure,
    GalleryBackend,
    RetrieveOptions,
    failure,
    read_queries,
)
from seisbind.service.bulk.jsonl import AnswerLine
from seisbind.service.bulk.parquet import answer_row, answer_schema, need_pyarrow
from seisbind.service.bulk.places import count_at, open_at
from seisbind.service.client.parts import Stack
from seisbind.service.formats.reader import Geometry, read_gathers
from seisbind.service.schemas import StreamAnswer, WeightsBody

CHUNK = 2 * BATCH  # gathers of a part; a multiple of a batch, so that batches are those of `seisbind retrieve`
KINDS = ("retrieve", "embed", "check")
TALLY = b"seisbind"  # key of the tally in a part's metadata
Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Job:
    """What is done with every gather. It crosses to other processes, and holds no arrays.

    Attributes:
        kind: of `KINDS`.
        gallery: its place; None for ``embed``.
    """

    kind: str
    gallery: str | None
    weights: Path | None
    device: str
    exact: bool = False
    options: RetrieveOptions = field(default_factory=RetrieveOptions)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Gathers ``first`` to ``last``, the end not included, of a stack; ``last`` None for a whole file.

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


def plan_chunks(files: Sequence[str], *, chunk: int = CHUNK) -> list[Chunk]:
    """The chunks of ``files``, in order: only headers are read."""
    found: list[Chunk] = []
    for number, name in enumerate(files):
        count = count_at(name)
        if count <= 1:
            found.append(Chunk(number, name))
        else:
            found += [
                Chunk(number, name, first, min(first + chunk, count)) for first in range(0, count, chunk)
            ]  # fmt: skip
    return found


class Until:
    """A stack up to gather ``last``. A `parts.Stack`."""

    def __init__(self, stack: Stack, last: int) -> None:
        self.shape = (min(last, stack.shape[0]), *stack.shape[1:])
        self.dtype = stack.dtype
        self._stack = stack

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        first, end, _ = rows.indices(self.shape[0])
        found: NDArray[Any] = self._stack[first:end]
        return found


class Worker:
    """Holds the encoder and the gallery, and answers chunks. The same in a process of a pool and in a Ray actor.

    Raises:
        SeisBindError: weights or gallery cannot be opened.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._backend: GalleryBackend | None = None
        if job.kind == "embed":
            from seisbind.model.encoders.embedder import Embedder
            from seisbind.service.engine.bodies import weights_body

            self._embedder = Embedder.load(job.weights, device=job.device)
            self.weights: WeightsBody = weights_body(self._embedder.weights)
            return
        self._backend = GalleryBackend(job.gallery or "", job.weights, job.device, job.options, exact=job.exact)
        self._embedder, self.weights = self._backend.engine.embedder, self._backend.weights

    def close(self) -> None:
        """Close the gallery."""
        if self._backend is not None:
            self._backend.__exit__()

    @property
    def gallery(self) -> dict[str, object] | None:
        """What answers, as it is at the beginning; None without a gallery."""
        return None if self._backend is None else self._backend.gallery.model_dump(mode="json")

    def __call__(self, chunk: Chunk) -> Outcome:
        """The part of a chunk. Errors of its gathers and of its file are rows; all others stop the run."""
        try:
            rows = [{"file": chunk.file, **row} for row in self._rows(chunk)]
        except SeisBindError as error:
            return Outcome(chunk, stopped=error.sentence)
        failed = sum(row.get("error_code") is not None for row in rows)
        return Outcome(chunk, self._part(rows, failed), len(rows) - failed, failed)

    def _rows(self, chunk: Chunk) -> Iterator[Row]:
        try:
            opened = open_at(chunk.file, self._job.options.geometry)
        except SeisBindError as error:
            found = failure(error, None)
            if chunk.first == 0:  # one row for a file that cannot be opened, however many chunks its header promised
                yield self._failed(found)
            return
        try:
            stack = opened.stack
            if stack is None:
                yield from self._file(opened.content)
                return
            last = stack.shape[0] if chunk.last is None else chunk.last
            yield from self._stack(Until(stack, last), opened.geometry, chunk.first)
        except SeisBindError as error:
            yield self._failed(failure(error, None))

    def _file(self, content: bytes) -> Iterator[Row]:
        """The rows of a file that is no stack."""
        if self._job.kind == "retrieve" and self._backend is not None:
            for index, result in enumerate((answer := self._backend.file(content)).results):
                yield self._answer(
                    StreamAnswer(index=index, weights=answer.weights, gallery=answer.gallery, result=result)
                )  # fmt: skip
            return
        options, frame = self._job.options, self._embedder.frame
        upload = read_gathers(content, geometry=options.geometry, limits=LIMITS, frame=frame, scale=options.scale)
        if self._job.kind == "check":
            for index in range(len(upload.gathers)):
                yield self._check(index, upload.gathers[index], upload)
            return
        from seisbind.service.engine.query import Query

        query = Query.prepare(upload.gathers, upload.survey, frame=frame, scale=upload.chosen, notes=upload.notes)
        yield from self._embedded(dict.fromkeys([0], query))

    def _stack(self, stack: Stack, geometry: Geometry, first: int) -> Iterator[Row]:
        """The rows of a stack from ``first`` on."""
        if self._job.kind == "retrieve" and self._backend is not None:
            for found in self._backend.stack(stack, geometry, first):
                yield self._failed(found) if isinstance(found, Failure) else self._answer(found)
            return
        options, frame = self._job.options, self._embedder.frame
        for start in range(first, stack.shape[0], BATCH):
            numbers = range(start, min(start + BATCH, stack.shape[0]))
            if self._job.kind == "check":
                for index in numbers:
                    yield self._checked(stack, geometry, index)
                continue
            queries, failures = read_queries(stack, numbers, geometry, frame=frame, options=options)
            rows = {int(str(row["gather"])): row for row in self._embedded(queries)}
            rows |= {number: self._failed(each) for number, each in failures.items() if isinstance(each, Failure)}
            yield from (rows[number] for number in sorted(rows))

    def _checked(self, stack: Stack, geometry: Geometry, index: int) -> Row:
        options = self._job.options
        try:
            gather = np.ascontiguousarray(stack[index : index + 1])
            upload = read_gathers(
                gather, geometry=geometry, limits=LIMITS, frame=self._embedder.frame, scale=options.scale
            )
            return self._check(index, upload.gathers, upload)
        except SeisBindError as error:
            return self._failed(failure(error, index))

    def _check(self, index: int, gather: NDArray[Any], upload: Any) -> Row:
        from seisbind.service.engine.check_bodies import check_body

        if self._backend is None:
            raise ValueError("A check needs a gallery.")
        checked = self._backend.engine.check(
            gather,
            upload.survey,
            top_k=self._job.options.top_k,
            filter=self._backend.filter,
            notes=upload.notes,
            scale=upload.chosen,
            distinct=self._job.options.distinct,
            device=str(self._embedder.device),
        )
        body = check_body(checked)
        each = body.candidates
        return {
            "gather": index,
            "best": body.best,
            "reordered": body.reordered,
            "lowest_hz": body.lowest_hz,
            "candidate": [one.name for one in each],
            "model_id": [one.model_id for one in each],
            "usable": [one.verdict.usable for one in each],
            "reason": [one.verdict.reason for one in each],
            "residual": [one.measures.residual for one in each],
            "unexplained": [one.measures.unexplained for one in each],
            "weights": self.weights.fingerprint,
        }

    def _embedded(self, queries: dict[int, Any]) -> Iterator[Row]:
        """Rows of queries: by number, each of one gather; or one of several, numbered from its number on."""
        from seisbind.service.engine.query import encode

        if not queries:
            return
        embedding = encode(self._embedder, list(queries.values())).embedding
        numbers = [number + own for number, query in queries.items() for own in range(len(query))]
        for number, vector in zip(numbers, embedding, strict=True):
            if np.isfinite(vector).all():
                yield {"gather": number, "embedding": vector.tolist(), "weights": self.weights.fingerprint}
            else:
                detail = "The samples are too large or too small for float32 arithmetic; scale the gathers."
                yield self._failed(Failure(index=number, code="invalid_gather", detail=detail))

    def _answer(self, found: StreamAnswer) -> Row:
        line = AnswerLine(
            file="", gather=found.index, gathers=None, asked={}, weights=found.weights, gallery=found.gallery,
            result=found.result,
        )  # fmt: skip
        row = answer_row(line)
        del row["file"]
        return row

    def _failed(self, found: Failure) -> Row:
        row: Row = {"gather": found.index, "error_code": found.code, "error_detail": found.detail}
        row["weights"] = self.weights.fingerprint
        if self._job.kind == "retrieve" and self._backend is not None:
            row |= {"gallery": self._backend.gallery.name, "generation": self._backend.gallery.generation}
        return row

    def _part(self, rows: list[Row], failed: int) -> bytes:
        pyarrow = need_pyarrow()
        tally = json.dumps({"answered": len(rows) - failed, "failed": failed}).encode()
        schema = part_schema(self._job.kind).with_metadata({TALLY: tally})
        held = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), held)
        return held.getvalue()


def part_schema(kind: str) -> Any:
    """The columns of a kind of job. Raises MissingExtra."""
    pyarrow = need_pyarrow()
    if kind == "retrieve":
        return answer_schema(pyarrow)
    text, number, listed = pyarrow.string(), pyarrow.float64(), pyarrow.list_
    columns = {"file": text, "gather": pyarrow.int64(), "error_code": text, "error_detail": text}
    if kind == "embed":
        columns |= {"embedding": listed(pyarrow.float32())}
    else:
        columns |= {"best": text, "reordered": pyarrow.bool_(), "lowest_hz": number}
        columns |= {"candidate": listed(text), "model_id": listed(text), "usable": listed(pyarrow.bool_())}
        columns |= {"reason": listed(text), "residual": listed(number), "unexplained": listed(number)}
    return pyarrow.schema([*columns.items(), ("weights", text)])
