"""Whom ``seisbind retrieve`` asks: a server, or a gallery on this machine; the answers have one shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from seisbind.model.errors import SeisBindError
from seisbind.service.client.client import Client
from seisbind.service.client.parts import Stack
from seisbind.service.engine.bodies import gallery_body, ingest_body, retrieval_body, weights_body
from seisbind.service.formats.npy import Limits, npy
from seisbind.service.formats.reader import Geometry, read_gathers
from seisbind.service.schemas import (
    PARTS,
    GalleryBody,
    RetrievalBody,
    RetrieveAnswer,
    StreamAnswer,
    WeightsBody,
)

if TYPE_CHECKING:  # torch and FAISS wait for a gallery to be asked
    from seisbind.service.engine.query import Query

# What is wrong with one file or gather, after which the others can be asked about all the same.
OF_THE_INPUT = frozenset(
    {
        "dataset_error",
        "invalid_gather",
        "invalid_survey",
        "malformed_upload",
        "unsupported_dtype",
        "unsupported_format",
        "upload_refused",
        "upload_too_large",
    }
)
TOGETHER = 32  # gathers of a stack that are prepared, encoded and searched at once
OWN_LIMITS = Limits(unpacked_bytes=2 << 30, items=10_000)  # the user's own files


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of every gather. ``filter``: JSON as in `seisbind.index.Filter.parse`."""

    top_k: int = 5
    filter: Mapping[str, object] | None = None
    include: Sequence[str] = PARTS
    geometry: Geometry = field(default_factory=Geometry)

    def stated(self) -> dict[str, object]:
        """What answers depend on, as JSON; of the geometry what is given."""
        given = {name: value for name, value in asdict(self.geometry).items() if value is not None}
        conditions = {} if self.filter is None else {"filter": dict(self.filter)}
        return {"top_k": self.top_k, "include": list(self.include)} | conditions | given


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer for one gather of a file, ``gather`` counted from 0, and what gave it."""

    gather: int
    weights: WeightsBody
    gallery: GalleryBody
    result: RetrievalBody


@dataclass(frozen=True, slots=True)
class Failure:
    """What is wrong with one gather; with the file, where ``gather`` is None."""

    gather: int | None
    code: str
    detail: str


class Asker(Protocol):
    """``weights``, ``gallery``: what answers, as it is at the beginning."""

    weights: WeightsBody
    gallery: GalleryBody

    def file(self, content: bytes) -> RetrieveAnswer:
        """The answer for the bytes of a file, whole. Raises SeisBindError if there is none."""
        ...

    def stack(self, stack: Stack, geometry: Geometry, first: int) -> Iterator[Answer | Failure]:
        """An answer or a failure for each gather of a stack from ``first`` on, in order.

        Raises:
            SeisBindError: what is wrong is not wrong with one gather alone.
        """
        ...


class AskServer:
    """Asks the server at ``url``. Use ``with``.

    Raises:
        ServiceError: see `client.Client`.
    """

    def __init__(self, url: str, wanted: Wanted, *, key: str | None = None) -> None:
        self._client = Client(url, key=key)
        self._wanted = wanted
        try:
            serving = self._client.info()
        except SeisBindError:
            self._client.close()
            raise
        self.weights, self.gallery = serving.weights, serving.gallery

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def file(self, content: bytes) -> RetrieveAnswer:
        """See `Asker.file`."""
        w = self._wanted
        return self._client.retrieve_file(content, w.geometry, top_k=w.top_k, filter=w.filter, include=w.include)

    def stack(self, stack: Stack, geometry: Geometry, first: int) -> Iterator[Answer | Failure]:
        """See `Asker.stack`."""
        w = self._wanted
        found = self._client.retrieve_stream(
            stack, geometry, top_k=w.top_k, filter=w.filter, include=w.include, first=first
        )
        for line in found:
            if isinstance(line, StreamAnswer):
                yield Answer(line.index, line.weights, line.gallery, line.result)
            else:
                yield Failure(line.index, line.error.code, line.error.detail)


class AskGallery:
    """Asks a gallery on this machine. Use ``with``.

    Raises:
        SeisBindError: weights or gallery cannot be opened, or a filter that is none.
    """

    def __init__(self, gallery: Path, weights: Path | None, device: str, wanted: Wanted) -> None:
        from seisbind.index import Filter, Gallery
        from seisbind.model.encoders.embedder import Embedder
        from seisbind.service.engine.engine import Engine

        self._wanted = wanted
        self._filter = None if wanted.filter is None else Filter.parse(wanted.filter)
        embedder = Embedder.load(weights, device=device)
        self._gallery = Gallery.open(gallery, fingerprint=embedder.fingerprint, frame=embedder.frame)
        self._engine = Engine(embedder, self._gallery)
        self.weights = weights_body(embedder.weights)
        self.gallery = gallery_body(self._engine.info())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gallery.close()

    def file(self, content: bytes) -> RetrieveAnswer:
        """See `Asker.file`; ``request_id`` is empty."""
        upload = read_gathers(content, geometry=self._wanted.geometry, limits=OWN_LIMITS, frame=self._engine.frame)
        found = self._engine.retrieve(
            upload.gathers, upload.survey, top_k=self._wanted.top_k, filter=self._filter, notes=upload.notes
        )
        return RetrieveAnswer(
            request_id="",
            weights=self.weights,
            gallery=self.gallery,
            ingest=ingest_body(upload.ingest),
            results=[retrieval_body(each, self._wanted.include) for each in found],
            timings_ms=found[0].timings_ms,
        )

    def stack(self, stack: Stack, geometry: Geometry, first: int) -> Iterator[Answer | Failure]:
        """See `Asker.stack`. Each gather is read as one of a server's stream is."""
        from seisbind.model.survey.preparation import prepare
        from seisbind.service.engine.query import Query

        for start in range(first, stack.shape[0], TOGETHER):
            queries: dict[int, Query] = {}
            found: dict[int, Answer | Failure] = {}
            for number in range(start, min(start + TOGETHER, stack.shape[0])):
                try:
                    one, frame = npy(stack[number : number + 1]), self._engine.frame
                    upload = read_gathers(one, geometry=geometry, limits=OWN_LIMITS, frame=frame)
                    prepared = prepare(upload.gathers, upload.survey, frame=frame)
                    queries[number] = Query(prepared, self._wanted.top_k, self._filter, upload.notes)
                except SeisBindError as error:
                    found[number] = failure(error, number)
            found |= self._answered(queries)
            yield from (found[number] for number in sorted(found))

    def _answered(self, queries: Mapping[int, Query]) -> dict[int, Answer | Failure]:
        if not queries:
            return {}
        try:
            retrieved = self._engine.retrieve_batch(list(queries.values()))
        except SeisBindError as error:
            if len(queries) == 1:
                return {number: failure(error, number) for number in queries}
            return {k: v for number, query in queries.items() for k, v in self._answered({number: query}).items()}
        return {
            number: Answer(number, self.weights, self.gallery, retrieval_body(found, self._wanted.include))
            for number, (found,) in zip(queries, retrieved, strict=True)
        }


def failure(error: SeisBindError, gather: int | None) -> Failure:
    """``error`` as that of one gather or file. Raises it if it is not."""
    if error.code not in OF_THE_INPUT:
        raise error
    return Failure(gather, error.code, getattr(error, "detail", error.sentence))
