"""Clients of the HTTP server: one that waits, one that is awaited, with the calls of `engine.Engine`.

Both send what `calls` describes. They need neither torch nor FAISS.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import httpx

from seisbind.model.errors import InvalidConfig, ServerRefused, ServerUnreachable
from seisbind.service.client import calls, check_calls, job_calls
from seisbind.service.client.answers import check
from seisbind.service.client.calls import Call
from seisbind.service.client.job_calls import JobLines
from seisbind.service.client.parts import Parts
from seisbind.service.client.retries import Attempts
from seisbind.service.client.section_lines import SectionLines
from seisbind.service.job_schemas import JobEvent
from seisbind.service.schemas import StreamAnswer, StreamError
from seisbind.service.section_schemas import SectionAnswer

P = ParamSpec("P")
T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
Streamed = StreamAnswer | StreamError

KEY = re.compile(r"[\x21-\x7e]+")  # what a header can hold
TIMEOUT_S = 60.0  # a stack of 64 gathers takes a CPU core 10 s
MAX_DEADLINE_MS = 99_999_999  # that the header takes
RETRIES = 4  # with the pauses of `retries`: at least 4 s in all
FAILED = (httpx.RequestError, ServerRefused)


class _Connection(Generic[Http]):
    """What both clients have: an address, a key, and how often a call is repeated."""

    _kind: type[Http]

    def __init__(
        self, url: str, *, key: str | None = None, timeout_s: float = TIMEOUT_S, retries: int = RETRIES
    ) -> None:
        if key and not KEY.fullmatch(key):  # not repeated: it may be a key with something behind it
            raise InvalidConfig("The API key has characters that no key has. Look for spaces or a line end around it.")
        self.url = url.rstrip("/")
        self._retries = retries
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        headers["SeisBind-Deadline-Ms"] = str(round(min(max(1, 1000 * timeout_s), MAX_DEADLINE_MS)))
        try:
            self._http: Http = self._kind(base_url=self.url, timeout=timeout_s, headers=headers)
        except (httpx.InvalidURL, ValueError) as error:
            raise ServerUnreachable(f"{url!r} is no address of a server; expected http://host:port.") from error

    def _attempts(self, *, repeatable: bool) -> Attempts:
        return Attempts(self.url, self._retries, repeatable=repeatable)


def _method(call: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    """The method of `Client` for a function of `calls`."""

    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> T:
        return self._do(call(*args, **options))

    return _documented(method, call)


def _stream_method(call: Callable[P, Parts]) -> Callable[Concatenate[Client, P], Iterator[Streamed]]:
    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> Iterator[Streamed]:
        yield from self._do_stream(call(*args, **options))

    return _documented(method, call)


def _async_method(call: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """The method of `AsyncClient` for a function of `calls`."""

    async def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> T:
        return await self._do(call(*args, **options))

    return _documented(method, call)


def _async_stream_method(call: Callable[P, Parts]) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[Streamed]]:
    async def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> AsyncIterator[Streamed]:
        async for each in self._do_stream(call(*args, **options)):
            yield each

    return _documented(method, call)


def _events_method(call: Callable[P, JobLines]) -> Callable[Concatenate[Client, P], Iterator[JobEvent]]:
    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> Iterator[JobEvent]:
        yield from self._do_lines(call(*args, **options))

    return _documented(method, call)


def _async_events_method(call: Callable[P, JobLines]) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[JobEvent]]:
    async def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> AsyncIterator[JobEvent]:
        async for each in self._do_lines(call(*args, **options)):
            yield each

    return _documented(method, call)


def _section_method(call: Callable[P, SectionLines]) -> Callable[Concatenate[Client, P], SectionAnswer]:
    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> SectionAnswer:
        return self._do_section(call(*args, **options))

    return _documented(method, call)


def _async_section_method(
    call: Callable[P, SectionLines],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, SectionAnswer]]:
    async def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> SectionAnswer:
        return await self._do_section(call(*args, **options))

    return _documented(method, call)


def _documented(method: Method, call: Callable[..., Any]) -> Method:
    """``method`` with the name, the docstring and the parameters of ``call``, as `help` and editors show them."""
    signature, returns = inspect.signature(call), inspect.signature(method).return_annotation
    if returns == "T":
        returns = signature.return_annotation.removeprefix("Call[").removesuffix("]")
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    update_wrapper(method, call, assigned=("__name__", "__qualname__", "__doc__"))
    vars(method)["__signature__"] = signature.replace(
        parameters=[own, *signature.parameters.values()], return_annotation=returns
    )
    return method


class Client(_Connection[httpx.Client]):
    """Calls to one server. Use ``with``, or close it.

    Every call raises `ServerUnreachable` without an answer and `ServerRefused`, with the server's reason, if it
    refuses. Before that it is repeated where that is safe: see `retries`.

    Args:
        key: the API key that the server asks for, if it does.
        timeout_s: for a connection, and between two pieces of an answer or a request.
        retries: repetitions of one call, at most.

    Raises:
        InvalidConfig: a key with characters that no key has.
    """

    _kind = httpx.Client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    retrieve = _method(calls.retrieve)
    retrieve_arrays = _method(calls.retrieve_arrays)
    retrieve_file = _method(calls.retrieve_file)
    retrieve_stream = _stream_method(calls.retrieve_stream)
    read = _method(calls.read)
    section = _section_method(calls.section)
    check = _method(check_calls.check)
    check_file = _method(check_calls.check_file)
    check_arrays = _method(check_calls.check_arrays)
    check_image = _method(check_calls.check_image)
    search_velocity = _method(calls.search_velocity)
    search_descriptors = _method(calls.search_descriptors)
    info = _method(calls.info)
    distribution = _method(calls.distribution)
    reload = _method(calls.reload)
    record = _method(calls.record)
    velocity = _method(calls.velocity)
    image = _method(calls.image)
    add_models = _method(calls.add_models)
    remove_model = _method(calls.remove_model)
    metrics = _method(calls.metrics)
    submit_refinement = _method(job_calls.submit_refinement)
    job = _method(job_calls.job)
    jobs = _method(job_calls.jobs)
    events = _events_method(job_calls.events)
    cancel = _method(job_calls.cancel)
    result = _method(job_calls.result)
    result_file = _method(job_calls.result_file)
    job_image = _method(job_calls.job_image)
    keep_job_model = _method(job_calls.keep_job_model)

    def live(self) -> bool:
        """GET /healthz: whether the server's event loop answers; False also without a server."""
        return self._ok("/healthz")

    def ready(self) -> bool:
        """GET /readyz: whether the server is ready; False also without one."""
        return self._ok("/readyz")

    def _ok(self, path: str) -> bool:
        try:
            return self._http.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def _do(self, call: Call[T]) -> T:
        attempts = self._attempts(repeatable=call.repeatable)
        while True:
            try:
                return call.answer(self._http.request(call.method, call.path, **call.sent))
            except FAILED as error:
                wait_s = attempts.failed(error)
            time.sleep(wait_s)

    def _do_lines(self, lines: JobLines) -> Iterator[JobEvent]:
        attempts = self._attempts(repeatable=True)
        while lines:
            try:
                with self._http.stream(**lines.request()) as response:
                    if not response.is_success:
                        response.read()
                    check(response)
                    for chunk in response.iter_bytes():
                        lines.read(chunk, response)
                        for each in lines.take():
                            attempts.succeeded()
                            yield each
            except FAILED as error:
                wait_s = attempts.failed(error)
            else:
                wait_s = 0.0
            time.sleep(wait_s)

    def _do_section(self, lines: SectionLines) -> SectionAnswer:
        attempts = self._attempts(repeatable=True)
        while True:
            try:
                with self._http.stream(**lines.request()) as response:
                    if not response.is_success:
                        response.read()
                    check(response)
                    for chunk in response.iter_bytes():
                        lines.read(chunk, response)
                    return lines.end(response)
            except FAILED as error:
                wait_s = attempts.failed(error)
            time.sleep(wait_s)

    def _do_stream(self, parts: Parts) -> Iterator[Streamed]:
        attempts = self._attempts(repeatable=True)
        while parts:
            fault: Exception | None = None
            try:
                with self._http.stream(**parts.request()) as response:
                    if not response.is_success:
                        response.read()
                    check(response)
                    for chunk in response.iter_bytes():
                        parts.read(chunk, response)
                    parts.end(response)
            except FAILED as error:
                fault = error
            for each in parts.take():
                attempts.succeeded()
                yield each
            if fault is not None:
                time.sleep(attempts.failed(fault))


class AsyncClient(_Connection[httpx.AsyncClient]):
    """`Client`, awaited: the same arguments, errors and repetitions. Use ``async with``, or close it."""

    _kind = httpx.AsyncClient

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    retrieve = _async_method(calls.retrieve)
    retrieve_arrays = _async_method(calls.retrieve_arrays)
    retrieve_file = _async_method(calls.retrieve_file)
    retrieve_stream = _async_stream_method(calls.retrieve_stream)
    read = _async_method(calls.read)
    section = _async_section_method(calls.section)
    check = _async_method(check_calls.check)
    check_file = _async_method(check_calls.check_file)
    check_arrays = _async_method(check_calls.check_arrays)
    check_image = _async_method(check_calls.check_image)
    search_velocity = _async_method(calls.search_velocity)
    search_descriptors = _async_method(calls.search_descriptors)
    info = _async_method(calls.info)
    distribution = _async_method(calls.distribution)
    reload = _async_method(calls.reload)
    record = _async_method(calls.record)
    velocity = _async_method(calls.velocity)
    image = _async_method(calls.image)
    add_models = _async_method(calls.add_models)
    remove_model = _async_method(calls.remove_model)
    metrics = _async_method(calls.metrics)
    submit_refinement = _async_method(job_calls.submit_refinement)
    job = _async_method(job_calls.job)
    jobs = _async_method(job_calls.jobs)
    events = _async_events_method(job_calls.events)
    cancel = _async_method(job_calls.cancel)
    result = _async_method(job_calls.result)
    result_file = _async_method(job_calls.result_file)
    job_image = _async_method(job_calls.job_image)
    keep_job_model = _async_method(job_calls.keep_job_model)

    async def live(self) -> bool:
        """GET /healthz: whether the server's event loop answers; False also without a server."""
        return await self._ok("/healthz")

    async def ready(self) -> bool:
        """GET /readyz: whether the server is ready; False also without one."""
        return await self._ok("/readyz")

    async def _ok(self, path: str) -> bool:
        try:
            return (await self._http.get(path)).status_code == 200
        except httpx.TransportError:
            return False

    async def _do(self, call: Call[T]) -> T:
        attempts = self._attempts(repeatable=call.repeatable)
        while True:
            try:
                return call.answer(await self._http.request(call.method, call.path, **call.sent))
            except FAILED as error:
                wait_s = attempts.failed(error)
            await asyncio.sleep(wait_s)

    async def _do_lines(self, lines: JobLines) -> AsyncIterator[JobEvent]:
        attempts = self._attempts(repeatable=True)
        while lines:
            try:
                async with self._http.stream(**lines.request()) as response:
                    if not response.is_success:
                        await response.aread()
                    check(response)
                    async for chunk in response.aiter_bytes():
                        lines.read(chunk, response)
                        for each in lines.take():
                            attempts.succeeded()
                            yield each
            except FAILED as error:
                wait_s = attempts.failed(error)
            else:
                wait_s = 0.0
            await asyncio.sleep(wait_s)

    async def _do_section(self, lines: SectionLines) -> SectionAnswer:
        attempts = self._attempts(repeatable=True)
        while True:
            try:
                async with self._http.stream(**lines.request()) as response:
                    if not response.is_success:
                        await response.aread()
                    check(response)
                    async for chunk in response.aiter_bytes():
                        lines.read(chunk, response)
                    return lines.end(response)
            except FAILED as error:
                wait_s = attempts.failed(error)
            await asyncio.sleep(wait_s)

    async def _do_stream(self, parts: Parts) -> AsyncIterator[Streamed]:
        attempts = self._attempts(repeatable=True)
        while parts:
            fault: Exception | None = None
            try:
                async with self._http.stream(**parts.request()) as response:
                    if not response.is_success:
                        await response.aread()
                    check(response)
                    async for chunk in response.aiter_bytes():
                        parts.read(chunk, response)
                    parts.end(response)
            except FAILED as error:
                fault = error
            for each in parts.take():
                attempts.succeeded()
                yield each
            if fault is not None:
                await asyncio.sleep(attempts.failed(fault))
