"""Jobs over gathers: retrieval, embeddings and checks, by an engine in this process; retrieval by a server, too.

`answers` is what `seisbind retrieve --out` and `seisbind bulk retrieve` have in common: a chunk in, its answers out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import SeisBindError
from seisbind.service.bulk.backends import (
    BATCH,
    LIMITS,
    Backend,
    Failure,
    GalleryBackend,
    RetrieveOptions,
    failure,
    read_queries,
)
from seisbind.service.bulk.chunks import CHUNK, Chunk, Outcome, Row, make_part, plan_chunks
from seisbind.service.bulk.jsonl import AnswerLine
from seisbind.service.bulk.parquet import answer_row, answer_schema, need_pyarrow
from seisbind.service.bulk.places import open_at
from seisbind.service.client.parts import Stack
from seisbind.service.formats.reader import Geometry, read_gathers
from seisbind.service.schemas import StreamAnswer, WeightsBody

T = TypeVar("T")
Answer = tuple[int | None, StreamAnswer | Failure]  # gathers in the file, and what came of one of them


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


def work_through(
    chunk: Chunk,
    geometry: Geometry,
    *,
    of_file: Callable[[bytes], Iterator[T]],
    of_stack: Callable[[Stack, Geometry, range], Iterator[T]],
    of_failure: Callable[[Failure], T],
) -> Iterator[T]:
    """What is made of a chunk's file, or of the gathers of its stack that are the chunk's, or of what is wrong with it.

    Raises:
        SeisBindError: what is wrong is not wrong with one file or gather alone.
    """
    try:
        opened = open_at(chunk.file, geometry)
    except SeisBindError as error:
        found = failure(error, None)
        if chunk.first == 0 or chunk.last is None:  # one of them, however many chunks its header promised
            yield of_failure(found)
        return
    try:
        if opened.stack is None:
            yield from of_file(opened.content)
        else:
            count = opened.stack.shape[0]
            last = count if chunk.last is None else min(chunk.last, count)
            yield from of_stack(opened.stack, opened.geometry, range(chunk.first, last))
    except SeisBindError as error:
        yield of_failure(failure(error, None))


def answers(backend: Backend, chunk: Chunk, geometry: Geometry) -> Iterator[Answer]:
    """An answer or a failure for each gather of a chunk, in order, as soon as there is one.

    Raises:
        SeisBindError: what is wrong is not wrong with one file or gather alone.
    """

    def of_file(content: bytes) -> Iterator[Answer]:
        found = backend.file(content)
        for index, result in enumerate(found.results):
            one = StreamAnswer(index=index, weights=found.weights, gallery=found.gallery, result=result)
            yield len(found.results), one

    def of_stack(stack: Stack, geometry: Geometry, numbers: range) -> Iterator[Answer]:
        for found in backend.stack(Until(stack, numbers.stop), geometry, numbers.start):
            yield stack.shape[0], found

    return work_through(
        chunk, geometry, of_file=of_file, of_stack=of_stack, of_failure=lambda found: (None, found)
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class GatherJob:
    """What is done with every gather. A `chunks.Job`.

    Attributes:
        kind: retrieve, embed or check.
        gallery: its place; None for ``embed``.
        chunk: gathers of a part, at most.
    """

    kind: str
    gallery: str | None
    weights: Path | None
    device: str
    exact: bool = False
    options: RetrieveOptions = field(default_factory=RetrieveOptions)
    chunk: int = CHUNK

    def asked(self) -> dict[str, object]:
        """See `chunks.Job.asked`."""
        return self.options.to_json() | {"exact": self.exact, "chunk": self.chunk}

    def chunks(self, files: Sequence[str]) -> list[Chunk]:
        """See `chunks.Job.chunks`."""
        return plan_chunks(files, chunk=self.chunk)

    def holding(self) -> AbstractContextManager[None]:
        """See `chunks.Job.holding`: nothing."""
        return nullcontext()

    def open(self) -> GatherWorker:
        """See `chunks.Job.open`."""
        return GatherWorker(self)


class GatherWorker:
    """Holds the encoder and the gallery. A `chunks.Worker`.

    Raises:
        SeisBindError: weights or gallery cannot be opened.
    """

    def __init__(self, job: GatherJob) -> None:
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

    def source(self) -> dict[str, object]:
        """See `chunks.Worker.source`."""
        gallery = None if self._backend is None else self._backend.gallery.model_dump(mode="json")
        return {"weights": self.weights.model_dump(mode="json"), "gallery": gallery}

    def part(self, chunk: Chunk) -> Outcome:
        """See `chunks.Worker.part`."""
        rows = [{"file": chunk.file, **row} for row in self._rows(chunk)]
        return make_part(chunk, rows, part_schema(self._job.kind))

    def _rows(self, chunk: Chunk) -> Iterator[Row]:
        geometry = self._job.options.geometry
        if self._job.kind == "retrieve" and self._backend is not None:
            for _, found in answers(self._backend, chunk, geometry):
                yield self._failed(found) if isinstance(found, Failure) else self._answer(found)
            return
        yield from work_through(
            chunk, geometry, of_file=self._file, of_stack=self._stack, of_failure=self._failed
        )  # fmt: skip

    def _file(self, content: bytes) -> Iterator[Row]:
        """The rows of a file that is no stack, checked or embedded."""
        options, frame = self._job.options, self._embedder.frame
        upload = read_gathers(content, geometry=options.geometry, limits=LIMITS, frame=frame, scale=options.scale)
        if self._job.kind == "check":
            for index in range(len(upload.gathers)):
                yield self._check(index, upload.gathers[index], upload)
            return
        from seisbind.service.engine.query import Query

        query = Query.prepare(upload.gathers, upload.survey, frame=frame, scale=upload.chosen, notes=upload.notes)
        yield from self._embedded(dict.fromkeys([0], query))

    def _stack(self, stack: Stack, geometry: Geometry, numbers: range) -> Iterator[Row]:
        """The rows of some gathers of a stack, checked or embedded."""
        options, frame = self._job.options, self._embedder.frame
        if self._job.kind == "check":
            for index in numbers:
                yield self._checked(stack, geometry, index)
            return
        for start in numbers[::BATCH]:
            some = range(start, min(start + BATCH, numbers.stop))
            queries, failures = read_queries(stack, some, geometry, frame=frame, options=options)
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


def part_schema(kind: str) -> Any:
    """The columns of a kind of job over gathers. Raises MissingExtra."""
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
