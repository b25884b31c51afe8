"""Answers about files of gathers, from a server or from a gallery on this machine, in one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from seisbind.model.errors import DatasetError
from seisbind.service.client import Client
from seisbind.service.schemas import PARTS, GalleryBody, IngestBody, RetrievalBody, RetrieveAnswer, WeightsBody


def ask_server(
    url: str, paths: Sequence[Path], *, top_k: int, filter: str | None, dt_s: float | None, key: str | None = None
) -> Iterator[tuple[Path, RetrieveAnswer]]:
    """The answer of the server at ``url`` for each file.

    Raises:
        DatasetError: a file that cannot be read.
        ServiceError: see `client.Client`.
    """
    with Client(url, key=key) as client:
        for path in paths:
            yield path, client.retrieve(_bytes(path), top_k=top_k, filter=filter, dt_s=dt_s)


def ask_gallery(
    gallery: Path,
    weights: Path | None,
    device: str,
    paths: Sequence[Path],
    *,
    top_k: int,
    filter: str | None,
    dt_s: float | None,
) -> Iterator[tuple[Path, RetrieveAnswer]]:
    """The same from a gallery on this machine; there ``request_id`` is empty."""
    from seisbind.index import Gallery
    from seisbind.model.inference import Embedder
    from seisbind.service.arrays import Limits
    from seisbind.service.bodies import parse_filter
    from seisbind.service.engine import Engine
    from seisbind.service.uploads import Geometry, read_gathers

    limits = Limits(unpacked_bytes=2 << 30, items=10_000)  # the user's own files
    wanted = parse_filter(filter)
    embedder = Embedder.load(weights, device=device)
    with Gallery.open(gallery, fingerprint=embedder.fingerprint) as opened:
        engine = Engine(embedder, opened)
        for path in paths:
            upload = read_gathers(_bytes(path), geometry=Geometry(dt_s=dt_s), limits=limits)
            found = engine.retrieve(upload.gathers, upload.survey, top_k=top_k, filter=wanted, notes=upload.notes)
            yield (
                path,
                RetrieveAnswer(
                    request_id="",
                    weights=WeightsBody.of(embedder.weights),
                    gallery=GalleryBody.of(engine.info()),
                    ingest=IngestBody.of(upload.ingest),
                    results=[RetrievalBody.of(each, PARTS) for each in found],
                    timings_ms=found[0].timings_ms,
                ),
            )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
