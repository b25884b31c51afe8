"""What answers ``seisbind retrieve``: a server, or a gallery on this machine; the answers have one shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from pydantic import BaseModel, Field

from seisbind.model.errors import SeisBindError
from seisbind.model.scale import AutoScale, Scale
from seisbind.service.client.calls import scale_fields
from seisbind.service.client.client import Client
from seisbind.service.client.parts import Stack
from seisbind.service.engine.bodies import gallery_body, ingest_body, retrieval_body, weights_body
from seisbind.service.formats.npy import Limits
from seisbind.service.formats.reader import Geometry, read_gathers
from seisbind.service.schemas import PARTS, GalleryBody, RetrieveAnswer, StreamAnswer, WeightsBody

if TYPE_CHECKING:  # torch and FAISS are loaded only where a gallery is opened
    from seisbind.index import Filter
    from seisbind.model.frame import Frame
    from seisbind.service.engine.query import Query

# What is wrong with one file or gather alone: the others can be answered all the same.
INPUT_ERRORS = frozenset(
    {
        "dataset_error",
        "invalid_gather",
        "invalid_survey",
        "invalid_velocity_model",
        "malformed_upload",
        "unsupported_dtype",
        "unsupported_format",
        "upload_refused",
        "upload_too_large",
    }
)
BATCH = 32  # gathers of a stack that are prepared, encoded and searched at once
LIMITS = Limits(unpacked_bytes=2 << 30, items=10_000)  # the user's own files


@dataclass(frozen=True, slots=True)
class RetrieveOptions:
    """What is asked for every gather. ``filter``: JSON as in `seisbind.index.Filter.parse`."""

    top_k: int = 5
    filter: Mapping[str, object] | None = None
    include: Sequence[str] = PARTS
    geometry: Geometry = field(default_factory=Geometry)
    scale: Scale | AutoScale | None = None
    distinct: float | None = None

    def to_json(self) -> dict[str, object]:
        """What answers depend on; of the geometry what is given."""
        given = {name: value for name, value in asdict(self.geometry).items() if value is not None}
        conditions = {} if self.filter is None else {"filter": dict(self.filter)}
        scale = {} if self.scale is None else scale_fields(self.scale)
        distinct = {} if self.distinct is None else {"distinct": self.distinct}
        return {"top_k": self.top_k, "include": list(self.include)} | conditions | given | scale | distinct

    def keywords(self) -> dict[str, Any]:
        """Those of the calls of a client."""
        asked = {"top_k": self.top_k, "filter": self.filter, "include": self.include, "scale": self.scale}
        return asked | {"distinct": self.distinct}


class Failure(BaseModel):
    """What is wrong with gather ``index`` of a file; with the whole file, where that is None."""

    index: int | None = Field(None, exclude=True)
    code: str
    detail: str


class Backend(Protocol):
    """``weights``, ``gallery``: what answers, as it is at the beginning."""

    weights: WeightsBody
    gallery: GalleryBody

    def file(self, content: bytes) -> RetrieveAnswer:
        """The answer for the bytes of a whole file. Raises SeisBindError if there is none."""
        ...

    def stack(self, stack: Stack, geometry: Geometry, first: int) -> Iterator[StreamAnswer | Failure]:
        """An answer or a failure for each gather of a stack from ``first`` on, in order.

        Raises:
            SeisBindError: what is wrong is not wrong with one gather alone.
        """
        ...


class ServerBackend:
    """Asks the server at ``url``. Use ``with``.

    Raises:
        ServiceError: see `client.Client`.
    """

    def __init__(self, url: str, options: RetrieveOptions, *, key: str | None = None) -> None:
        self._client = Client(url, key=key)
        self._options = options
        try:
            serving = self._client.info()
        except SeisBindError:
            self._client.close()
            raise
        self.weights, self.gallery = serving.weights, serving.gallery

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def file(self, content: bytes) -> RetrieveAnswer:
        """See `Backend.file`."""
        return self._client.retrieve_file(content, self._options.geometry, **self._options.keywords())

    def stack(self, stack: Stack, geometry: Geometry, first: int) -> Iterator[StreamAnswer | Failure]:
        """See `Backend.stack`."""
        for line in self._client.retrieve_stream(stack, geometry, first=first, **self._options.keywords()):
            if isinstance(line, StreamAnswer):
                yield line
            else:
                yield Failure(index=line.index, code=line.error.code, detail=line.error.detail)


class GalleryBackend:
    """Asks a gallery on this machine. Use ``with``.

    Raises:
        SeisBindError: weights or gallery cannot be opened, or an invalid filter.
    """

    def __init__(
        self, gallery: Path | str, weights: Path | None, device: str, options: RetrieveOptions, *, exact: bool = False
    ) -> None:
        from seisbind.index import Filter, open_store
        from seisbind.model.encoders.embedder import Embedder
        from seisbind.service.engine.engine import Engine

        self._options = options
        self.filter = None if options.filter is None else Filter.parse(options.filter)
        embedder = Embedder.load(weights, device=device)
        self._gallery = open_store(gallery, fingerprint=embedder.fingerprint, frame=embedder.frame, exact=exact)
        self.engine = Engine(embedder, self._gallery)
        self.weights = weights_body(embedder.weights)
        self.gallery = gallery_body(self.engine.info())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._gallery.close()

    def file(self, content: bytes) -> RetrieveAnswer:
        """See `Backend.file`; ``request_id`` is empty."""
        options, frame = self._options, self.engine.frame
        upload = read_gathers(content, geometry=options.geometry, limits=LIMITS, frame=frame, scale=options.scale)
        found = self.engine.retrieve(
            upload.gathers,
            upload.survey,
            top_k=options.top_k,
            filter=self.filter,
            notes=upload.notes,
            scale=upload.chosen,
            distinct=options.distinct,
        )
        return RetrieveAnswer(
            request_id="",
            weights=self.weights,
            gallery=self.gallery,
            ingest=ingest_body(upload.ingest),
            results=[retrieval_body(each, options.include, frame) for each in found],
            timings_ms=found[0].timings_ms,
        )

    def stack(self, stack: Stack, geometry: Geometry, first: int) -> Iterator[StreamAnswer | Failure]:
        """See `Backend.stack`. Each gather is read as one of a server's stream is."""
        for start in range(first, stack.shape[0], BATCH):
            numbers = range(start, min(start + BATCH, stack.shape[0]))
            queries, failures = read_queries(
                stack, numbers, geometry, frame=self.engine.frame, options=self._options, filter=self.filter
            )
            found = self._answers(queries) | failures
            yield from (found[index] for index in sorted(found))

    def _answers(self, queries: Mapping[int, Query]) -> dict[int, StreamAnswer | Failure]:
        if not queries:
            return {}
        try:
            retrieved = self.engine.retrieve_batch(list(queries.values()))
        except SeisBindError as error:
            if len(queries) == 1:
                return {index: failure(error, index) for index in queries}
            return {k: v for index, query in queries.items() for k, v in self._answers({index: query}).items()}
        return {
            index: StreamAnswer(
                index=index,
                weights=self.weights,
                gallery=self.gallery,
                result=retrieval_body(found, self._options.include, self.engine.frame),
            )
            for index, (found,) in zip(queries, retrieved, strict=True)
        }


def read_queries(
    stack: Stack,
    numbers: Iterable[int],
    geometry: Geometry,
    *,
    frame: Frame,
    options: RetrieveOptions,
    filter: Filter | None = None,
) -> tuple[dict[int, Query], dict[int, StreamAnswer | Failure]]:
    """The gathers of ``numbers`` of a stack, each read alone: those that can be encoded, and what is wrong with others.

    Raises:
        SeisBindError: what is wrong is not wrong with one gather alone.
    """
    from seisbind.service.engine.query import Query

    queries: dict[int, Query] = {}
    failures: dict[int, StreamAnswer | Failure] = {}
    for index in numbers:
        try:
            gather = np.ascontiguousarray(stack[index : index + 1])
            upload = read_gathers(gather, geometry=geometry, limits=LIMITS, frame=frame, scale=options.scale)
            queries[index] = Query.prepare(
                upload.gathers,
                upload.survey,
                frame=frame,
                top_k=options.top_k,
                filter=filter,
                notes=upload.notes,
                scale=upload.chosen,
                distinct=options.distinct,
            )
        except SeisBindError as error:
            failures[index] = failure(error, index)
    return queries, failures


def failure(error: SeisBindError, index: int | None) -> Failure:
    """``error`` as that of one gather or file. Raises it if it is not."""
    if error.code not in INPUT_ERRORS:
        raise error
    return Failure(index=index, code=error.code, detail=getattr(error, "detail", error.sentence))
