"""Clients of the HTTP server: one that waits, one that is awaited, with the calls of `engine.Engine`.

They need neither torch nor FAISS.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import InvalidConfig, ServerRefused, ServerUnreachable
from seisbind.model.survey.preparation import OPENFWI
from seisbind.service.client import calls
from seisbind.service.client.calls import Call, Parts, Recorded, Stack
from seisbind.service.client.retries import Retries
from seisbind.service.formats.reader import Geometry
from seisbind.service.schemas import (
    PARTS,
    SEARCH_PARTS,
    AddAnswer,
    DistributionAnswer,
    GalleryAnswer,
    ModelBody,
    ReloadAnswer,
    RetrieveAnswer,
    SearchAnswer,
    StreamAnswer,
    StreamError,
)

if TYPE_CHECKING:  # which would import FAISS
    from seisbind.index import Filter

T = TypeVar("T")

KEY = re.compile(r"[\x21-\x7e]+")  # what a header can hold
TIMEOUT_S = 60.0  # a stack of 64 gathers takes a CPU core 10 s
RETRIES = 4  # with the pauses of `retries`: at least 4 s in all
FROM_FILE = Geometry()
FAILED = (httpx.RequestError, ServerRefused)


def _settings(url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    """Arguments of an httpx client. Raises InvalidConfig for characters that no key has."""
    if key and not KEY.fullmatch(key):  # not repeated: it may be a key with something behind it
        raise InvalidConfig("The API key has characters that no key has. Look for spaces or a line end around it.")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return {"base_url": url, "timeout": timeout_s, "headers": headers}


def _no_address(url: str) -> ServerUnreachable:
    return ServerUnreachable(f"{url!r} is no address of a server; expected http://host:port.")


def _pause(url: str, retries: Retries, error: Exception, tried: int, *, repeatable: bool) -> float:
    """Seconds until the call is sent again. Raises what the caller is told if it is not."""
    wait_s = retries.wait_s(error, tried, repeatable=repeatable)
    if wait_s is not None:
        return wait_s
    if isinstance(error, httpx.RequestError):
        what = str(error) or type(error).__name__  # timeouts have no words
        raise ServerUnreachable(
            f"No answer from {url} ({what}). Is the server running? 'seisbind serve' starts one."
        ) from error
    raise error


class Lines:
    """Lines of JSON out of chunks of bytes: only a line feed ends one, unlike `str.splitlines`."""

    def __init__(self) -> None:
        self._begun = b""

    def whole(self, chunk: bytes) -> list[str]:
        *whole, self._begun = (self._begun + chunk).split(b"\n")
        return [line.decode() for line in whole]

    def rest(self) -> list[str]:
        return [self._begun.decode()] if self._begun else []


class Client:
    """Calls to one server. Use ``with``, or close it.

    Every call raises `ServerUnreachable` if nobody answers and `ServerRefused`, with what the server said, if it
    refuses. Before that it is repeated where that is safe: see `retries`.

    Args:
        key: the API key that the server asks for, if it does.
        timeout_s: for a connection, and between two pieces of an answer or a question.
        retries: most repetitions of one call.

    Raises:
        InvalidConfig: characters that no key has.
    """

    def __init__(
        self, url: str, *, key: str | None = None, timeout_s: float = TIMEOUT_S, retries: int = RETRIES
    ) -> None:
        self.url = url.rstrip("/")
        self._retries = Retries(retries)
        settings = _settings(self.url, key, timeout_s)
        try:
            self._http = httpx.Client(**settings)
        except (httpx.InvalidURL, ValueError) as error:
            raise _no_address(url) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def retrieve(
        self,
        gathers: ArrayLike,
        survey: Recorded = OPENFWI,
        *,
        top_k: int = 5,
        filter: Filter | Mapping[str, object] | None = None,
        include: Sequence[str] = PARTS,
    ) -> RetrieveAnswer:
        """POST /v1/retrieve for arrays: see `engine.Engine.retrieve`.

        Args:
            gathers: ``(batch, shot, time, receiver)`` or one ``(shot, time, receiver)``, pressure, any linear unit.
            survey: how they were recorded; what an `reader.Geometry` leaves open, the server assumes or refuses.
            include: parts of the answer.
        """
        fields = calls.retrieve_fields(survey, top_k, filter, include)
        return self._do(calls.retrieve(gathers, fields))

    def retrieve_arrays(
        self,
        gathers: ArrayLike,
        survey: Recorded = OPENFWI,
        *,
        top_k: int = 5,
        filter: Filter | Mapping[str, object] | None = None,
        include: Sequence[str] = PARTS,
    ) -> dict[str, NDArray[Any]]:
        """`retrieve`, answered in arrays, with the matched velocity models in ``velocity``: docs/http.md lists them.

        ``RetrieveAnswer.model_validate_json(arrays["answer"].tobytes())`` is what `retrieve` returns, of which
        ``include`` chooses the parts.
        """
        fields = calls.retrieve_fields(survey, top_k, filter, include)
        return self._do(calls.retrieve_arrays(gathers, fields))

    def retrieve_file(
        self,
        file: bytes | Path,
        geometry: Geometry = FROM_FILE,
        *,
        top_k: int = 5,
        filter: Filter | Mapping[str, object] | None = None,
        include: Sequence[str] = PARTS,
    ) -> RetrieveAnswer:
        """POST /v1/retrieve for an npy, npz, SEG-Y or SU file, or its bytes; ``geometry`` goes before what it says."""
        fields = calls.retrieve_fields(geometry, top_k, filter, include)
        return self._do(calls.retrieve_file(file, fields))

    def retrieve_stream(
        self,
        gathers: Stack,
        survey: Recorded = OPENFWI,
        *,
        top_k: int = 5,
        filter: Filter | Mapping[str, object] | None = None,
        include: Sequence[str] = PARTS,
        first: int = 0,
    ) -> Iterator[StreamAnswer | StreamError]:
        """POST /v1/retrieve/stream: an answer or an error for each gather, in order, however many there are.

        The stack is sent in parts of 64 MB, one after another: most clients of HTTP, this one too, read nothing before
        they have sent everything. When a connection breaks, it goes on with the first gather that has no answer.

        Args:
            gathers: ``(gather, shot, time, receiver)``; of a ``numpy.load(…, mmap_mode="r")`` no more is read at once.
            survey: as in `retrieve`, of all of them.
            first: gathers before this one are not asked about.
        """
        parts, tried = Parts(gathers, first), 0
        fields = calls.retrieve_fields(survey, top_k, filter, include)
        while parts:
            answered: list[StreamAnswer | StreamError] = []
            fault: Exception | None = None
            try:
                with self._http.stream(**calls.stream(parts.content(), fields)) as response:
                    if not response.is_success:
                        response.read()
                    calls.raised(response)
                    lines = Lines()
                    for chunk in response.iter_bytes():
                        for line in lines.whole(chunk):
                            answered.append(parts.taken(line, response))
                    for line in lines.rest():
                        answered.append(parts.taken(line, response))
                    parts.ended()
            except FAILED as error:
                fault = error
            yield from answered
            tried = 0 if answered else tried
            if fault is not None:
                time.sleep(_pause(self.url, self._retries, fault, tried, repeatable=True))
                tried += 1

    def search_velocity(
        self,
        velocity: ArrayLike,
        *,
        top_k: int = 5,
        filter: Filter | Mapping[str, object] | None = None,
        include: Sequence[str] = SEARCH_PARTS,
    ) -> SearchAnswer:
        """POST /v1/search: the gallery's models most like each velocity model ``(batch, depth, x)``, m/s."""
        return self._do(calls.search_velocity(velocity, top_k, filter, include))

    def search_descriptors(
        self,
        descriptors: Mapping[str, float],
        *,
        top_k: int = 5,
        filter: Filter | Mapping[str, object] | None = None,
        include: Sequence[str] = SEARCH_PARTS,
    ) -> SearchAnswer:
        """POST /v1/search: the gallery's models whose physics is most like ``descriptors`` (name → value)."""
        return self._do(calls.search_descriptors(descriptors, top_k, filter, include))

    def info(self) -> GalleryAnswer:
        """GET /v1/gallery: what is being served."""
        return self._do(calls.info())

    def distribution(self) -> DistributionAnswer:
        """GET /v1/gallery/distribution: how the gallery's descriptors are distributed."""
        return self._do(calls.distribution())

    def reload(self) -> ReloadAnswer:
        """POST /v1/gallery/reload: serve what is in the gallery's folder now."""
        return self._do(calls.reload())

    def record(self, model_id: str) -> ModelBody:
        """GET /v1/models/{id}: where one velocity model comes from, and its physics."""
        return self._do(calls.record(model_id))

    def velocity(self, model_id: str) -> NDArray[np.float32]:
        """GET /v1/models/{id}/velocity.npy: ``(depth, x)`` m/s."""
        return self._do(calls.velocity(model_id))

    def image(self, model_id: str) -> bytes:
        """GET /v1/models/{id}/image.png."""
        return self._do(calls.image(model_id))

    def add_models(
        self,
        velocity: ArrayLike,
        *,
        family: str | None = None,
        tags: Sequence[str] = (),
        model_ids: Sequence[str] | None = None,
        source: str | None = None,
    ) -> AddAnswer:
        """POST /v1/models: add velocity models ``(batch, depth, x)``, m/s, all with one family and the same tags."""
        return self._do(calls.add_models(velocity, family, tags, model_ids, source))

    def remove_model(self, model_id: str) -> None:
        """DELETE /v1/models/{id}."""
        self._do(calls.remove_model(model_id))

    def metrics(self) -> str:
        """GET /metrics: the text that Prometheus reads."""
        return self._do(calls.metrics())

    def live(self) -> bool:
        """GET /healthz: whether the server's loop answers; False also while nobody does."""
        return self._ok("/healthz")

    def ready(self) -> bool:
        """GET /readyz: whether it is; False also while nobody answers."""
        return self._ok("/readyz")

    def _ok(self, path: str) -> bool:
        try:
            return self._http.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def _do(self, call: Call[T]) -> T:
        tried = 0
        while True:
            try:
                response = self._http.request(call.method, call.path, **call.sent)
                calls.raised(response)
                return call.read(response)
            except FAILED as error:
                wait_s = _pause(self.url, self._retries, error, tried, repeatable=call.repeatable)
            time.sleep(wait_s)
            tried += 1


class AsyncClient:
    """`Client`, awaited. Use ``async with``, or close it.

    Every call raises `ServerUnreachable` if nobody answers and `ServerRefused`, with what the server said, if it
    refuses. Before that it is repeated where that is safe: see `retries`.

    Args:
        key: the API key that the server asks for, if it does.
        timeout_s: for a connection, and between two pieces of an answer or a question.
        retries: most repetitions of one call.

    Raises:
        InvalidConfig: characters that no key has.
    """

    def __init__(
        self, url: str, *, key: str | None = None, timeout_s: float = TIMEOUT_S, retries: int = RETRIES
    ) -> None:
        self.url = url.rstrip("/")
        self._retries = Retries(retries)
        settings = _settings(self.url, key, timeout_s)
        try:
            self._http = httpx.AsyncClient(**settings)
        except (httpx.InvalidURL, ValueError) as error:
            raise _no_address(url) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def retrieve(
        self,
        gathers: ArrayLike,
        survey: Recorded = OPENFWI,
        *,
        top_k: int = 5,
        filter: Filter | Mapping[str, object] | None = None,
        include: Sequence[str] = PARTS,
    ) -> RetrieveAnswer:
        """POST /v1/retrieve for arrays: see `engine.Engine.retrieve`.

        Args:
            gathers: ``(batch, shot, time, receiver)`` or one ``(shot, time, receiver)``, pressure, any linear unit.
            survey: how they were recorded; what an `reader.Geometry` leaves open, the server assumes or refuses.
            include: parts of the answer.
        """
        fields = calls.retrieve_fields(survey, top_k, filter, include)
        return await self._do(calls.retrieve(gathers, fields))

    async def retrieve_arrays(
        self,
        gathers: ArrayLike,
        survey: Recorded = OPENFWI,
        *,
        top_k: int = 5,
        filter: Filter | Mapping[str, object] | None = None,
        include: Sequence[str] = PARTS,
    ) -> dict[str, NDArray[Any]]:
        """`retrieve`, answered in arrays, with the matched velocity models in ``velocity``: docs/http.md lists them.

        ``RetrieveAnswer.model_validate_json(arrays["answer"].tobytes())`` is what `retrieve` returns, of which
        ``include`` chooses the parts.
        """
        fields = calls.retrieve_fields(survey, top_k, filter, include)
        return await self._do(calls.retrieve_arrays(gathers, fields))

    async def retrieve_file(
        self,
        file: bytes | Path,
        geometry: Geometry = FROM_FILE,
        *,
        top_k: int = 5,
        filter: Filter | Mapping[str, object] | None = None,
        include: Sequence[str] = PARTS,
    ) -> RetrieveAnswer:
        """POST /v1/retrieve for an npy, npz, SEG-Y or SU file, or its bytes; ``geometry`` goes before what it says."""
        fields = calls.retrieve_fields(geometry, top_k, filter, include)
        return await self._do(calls.retrieve_file(file, fields))

    async def retrieve_stream(
        self,
        gathers: Stack,
        survey: Recorded = OPENFWI,
        *,
        top_k: int = 5,
        filter: Filter | Mapping[str, object] | None = None,
        include: Sequence[str] = PARTS,
        first: int = 0,
    ) -> AsyncIterator[StreamAnswer | StreamError]:
        """POST /v1/retrieve/stream: an answer or an error for each gather, in order, however many there are.

        The stack is sent in parts of 64 MB, one after another: most clients of HTTP, this one too, read nothing before
        they have sent everything. When a connection breaks, it goes on with the first gather that has no answer.

        Args:
            gathers: ``(gather, shot, time, receiver)``; of a ``numpy.load(…, mmap_mode="r")`` no more is read at once.
            survey: as in `retrieve`, of all of them.
            first: gathers before this one are not asked about.
        """
        parts, tried = Parts(gathers, first), 0
        fields = calls.retrieve_fields(survey, top_k, filter, include)
        while parts:
            answered: list[StreamAnswer | StreamError] = []
            fault: Exception | None = None
            try:
                async with self._http.stream(**calls.stream(parts.content(), fields)) as response:
                    if not response.is_success:
                        await response.aread()
                    calls.raised(response)
                    lines = Lines()
                    async for chunk in response.aiter_bytes():
                        for line in lines.whole(chunk):
                            answered.append(parts.taken(line, response))
                    for line in lines.rest():
                        answered.append(parts.taken(line, response))
                    parts.ended()
            except FAILED as error:
                fault = error
            for each in answered:
                yield each
            tried = 0 if answered else tried
            if fault is not None:
                await asyncio.sleep(_pause(self.url, self._retries, fault, tried, repeatable=True))
                tried += 1

    async def search_velocity(
        self,
        velocity: ArrayLike,
        *,
        top_k: int = 5,
        filter: Filter | Mapping[str, object] | None = None,
        include: Sequence[str] = SEARCH_PARTS,
    ) -> SearchAnswer:
        """POST /v1/search: the gallery's models most like each velocity model ``(batch, depth, x)``, m/s."""
        return await self._do(calls.search_velocity(velocity, top_k, filter, include))

    async def search_descriptors(
        self,
        descriptors: Mapping[str, float],
        *,
        top_k: int = 5,
        filter: Filter | Mapping[str, object] | None = None,
        include: Sequence[str] = SEARCH_PARTS,
    ) -> SearchAnswer:
        """POST /v1/search: the gallery's models whose physics is most like ``descriptors`` (name → value)."""
        return await self._do(calls.search_descriptors(descriptors, top_k, filter, include))

    async def info(self) -> GalleryAnswer:
        """GET /v1/gallery: what is being served."""
        return await self._do(calls.info())

    async def distribution(self) -> DistributionAnswer:
        """GET /v1/gallery/distribution: how the gallery's descriptors are distributed."""
        return await self._do(calls.distribution())

    async def reload(self) -> ReloadAnswer:
        """POST /v1/gallery/reload: serve what is in the gallery's folder now."""
        return await self._do(calls.reload())

    async def record(self, model_id: str) -> ModelBody:
        """GET /v1/models/{id}: where one velocity model comes from, and its physics."""
        return await self._do(calls.record(model_id))

    async def velocity(self, model_id: str) -> NDArray[np.float32]:
        """GET /v1/models/{id}/velocity.npy: ``(depth, x)`` m/s."""
        return await self._do(calls.velocity(model_id))

    async def image(self, model_id: str) -> bytes:
        """GET /v1/models/{id}/image.png."""
        return await self._do(calls.image(model_id))

    async def add_models(
        self,
        velocity: ArrayLike,
        *,
        family: str | None = None,
        tags: Sequence[str] = (),
        model_ids: Sequence[str] | None = None,
        source: str | None = None,
    ) -> AddAnswer:
        """POST /v1/models: add velocity models ``(batch, depth, x)``, m/s, all with one family and the same tags."""
        return await self._do(calls.add_models(velocity, family, tags, model_ids, source))

    async def remove_model(self, model_id: str) -> None:
        """DELETE /v1/models/{id}."""
        await self._do(calls.remove_model(model_id))

    async def metrics(self) -> str:
        """GET /metrics: the text that Prometheus reads."""
        return await self._do(calls.metrics())

    async def live(self) -> bool:
        """GET /healthz: whether the server's loop answers; False also while nobody does."""
        return await self._ok("/healthz")

    async def ready(self) -> bool:
        """GET /readyz: whether it is; False also while nobody answers."""
        return await self._ok("/readyz")

    async def _ok(self, path: str) -> bool:
        try:
            return (await self._http.get(path)).status_code == 200
        except httpx.TransportError:
            return False

    async def _do(self, call: Call[T]) -> T:
        tried = 0
        while True:
            try:
                response = await self._http.request(call.method, call.path, **call.sent)
                calls.raised(response)
                return call.read(response)
            except FAILED as error:
                wait_s = _pause(self.url, self._retries, error, tried, repeatable=call.repeatable)
            await asyncio.sleep(wait_s)
            tried += 1
