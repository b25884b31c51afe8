"""Batches of gathers from many requests: the same answers, places that are given back, a queue that ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Filter, Gallery
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import InvalidGather, InvalidQuery, Overloaded
from seisbind.model.frame import Survey
from seisbind.service.engine.answers import Retrieval
from seisbind.service.engine.bodies import retrieval_body
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.engine.query import Query, encode
from seisbind.service.runtime.batcher import Batcher
from seisbind.service.schemas import PARTS, RetrieveAnswer
from wire import RAW, npy, until

Float32 = NDArray[np.float32]


def assert_alike(found: Retrieval, expected: Retrieval) -> None:
    """The same hits and warnings, and numbers that differ by rounding."""
    assert [match.model_id for match in found.matches] == [match.model_id for match in expected.matches]
    np.testing.assert_allclose(
        [match.similarity for match in found.matches], [match.similarity for match in expected.matches], atol=1e-5
    )
    assert found.warnings == expected.warnings
    assert found.in_distribution.likely == expected.in_distribution.likely
    for name, quantity in expected.physics.items():
        np.testing.assert_allclose(found.physics[name].value, quantity.value, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def stack(gathers: Float32) -> Float32:
    """``(64, 5, 1000, 70)``: real gathers, mixed and noisy."""
    rng = np.random.default_rng(5)
    mixed = np.tensordot(rng.dirichlet(np.ones(3), 61).astype(np.float32), gathers, 1)
    noise = rng.standard_normal(mixed.shape).astype(np.float32) * 0.02 * np.abs(mixed).max()
    return np.concatenate([gathers, mixed + noise])


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, models: tuple[Float32, list[str]]) -> Iterator[Engine]:
    """The weights that are shipped, over the small gallery."""
    embedder = Embedder.load(device="cpu")
    path = tmp_path_factory.mktemp("galleries") / "real"
    build_gallery(path, embedder, [models], source="tests")
    with Gallery.open(path, fingerprint=embedder.fingerprint) as gallery:
        yield Engine(embedder, gallery)


def test_alone_or_with_63_others_in_any_order(real: Engine, stack: Float32) -> None:
    """Promise 10, on the encoders that are shipped."""
    queries = [Query.prepare(gather, top_k=3 + i % 4) for i, gather in enumerate(stack)]
    shuffled = np.random.default_rng(0).permutation(64)
    together = encode(real.embedder, queries).embedding
    mixed_up = encode(real.embedder, [queries[i] for i in shuffled]).embedding
    np.testing.assert_allclose(mixed_up, together[shuffled], atol=1e-5)
    answers = real.retrieve_batch([queries[i] for i in shuffled])
    for place in (0, 13, 40, 63):
        query = queries[shuffled[place]]
        alone = encode(real.embedder, [query]).embedding
        np.testing.assert_allclose(alone[0], together[shuffled[place]], atol=1e-5)
        assert_alike(answers[place][0], real.retrieve_batch([query])[0][0])


def test_each_query_keeps_its_own_wishes(engine: Engine, gathers: Float32) -> None:
    """Stacks, top_k, filters and numbers of shots, all in one batch."""
    three = Survey(shot_x_m=(170.0, 340.0, 520.0), receiver_x_m=tuple(10.0 * i for i in range(70)), dt_s=0.001)
    queries = [
        Query.prepare(gathers, top_k=2),
        Query.prepare(gathers[0][1:4], three, top_k=70),
        Query.prepare(gathers[1], filter=Filter.parse({"family": "Style-A"})),
        Query.prepare(gathers[2][1:4], three, top_k=7, filter=Filter.parse({"max_velocity": [None, 4400]})),
        Query.prepare(gathers[2], top_k=70),
    ]
    together = engine.retrieve_batch(queries)
    assert [len(answers) for answers in together] == [3, 1, 1, 1, 1]
    for answers, query in zip(together, queries, strict=True):
        for found, expected in zip(answers, engine.retrieve_batch([query])[0], strict=True):
            assert_alike(found, expected)
    assert {match.family for match in together[2][0].matches} == {"Style-A"}
    with pytest.raises(InvalidQuery, match="top_k"):
        Query.prepare(gathers[0], top_k=0)


class Bench:
    """A batcher and its model thread, which waits at a gate."""

    def __init__(self, engine: Engine, **given: Any) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.gate = threading.Event()
        limits: dict[str, Any] = {"max_batch": 8, "max_wait_s": 60.0, "max_queue": 40}
        self.batcher = Batcher(lambda job: self.pool.submit(job, engine), **limits | given)

    def close_gate(self) -> None:
        self.gate.clear()
        self.pool.submit(self.gate.wait)


@contextmanager
def bench(engine: Engine, **given: Any) -> Iterator[Bench]:
    one = Bench(engine, **given)
    try:
        yield one
    finally:
        one.gate.set()
        one.pool.shutdown(wait=True)


def test_batches_form_while_the_model_thread_is_busy(engine: Engine, gathers: Float32) -> None:
    """At most `max_batch` together, in the order they came; a larger request goes alone."""
    sizes = [1, 1, 3, 3, 1, 12, 1]
    queries = [Query.prepare(np.resize(gathers, (n, 5, 1000, 70))) for n in sizes]
    with bench(engine) as held:

        async def ask() -> list[int]:
            held.close_gate()
            asked = [asyncio.create_task(held.batcher.answer(query)) for query in queries]
            await asyncio.sleep(0)
            assert held.batcher.waiting == 22
            held.gate.set()
            return [(await each).batch for each in asked]

        # 1 + 1 + 3 + 3 fill one; then the one before the large request goes, then that, then the last
        assert asyncio.run(ask()) == [8, 8, 8, 8, 1, 12, 1]


def test_alone_there_is_no_wait(engine: Engine, gathers: Float32) -> None:
    """With nobody else on the way a batch of one leaves at once, though a batch may wait for a minute."""
    query = Query.prepare(gathers[0])
    with bench(engine) as one:

        async def ask() -> int:
            with one.batcher.coming():
                await asyncio.sleep(0)
            return (await asyncio.wait_for(one.batcher.answer(query), 30)).batch

        assert asyncio.run(ask()) == 1


def test_a_batch_waits_for_those_who_are_on_the_way(engine: Engine, gathers: Float32) -> None:
    query = Query.prepare(gathers[0])
    with bench(engine) as one:

        async def late(before: asyncio.Task[Any]) -> int:
            with one.batcher.coming():
                await asyncio.sleep(0.05)
                assert one.batcher.waiting == 1
                assert not before.done()
            return (await one.batcher.answer(query)).batch

        async def ask() -> list[int]:
            with one.batcher.coming():
                first = asyncio.create_task(one.batcher.answer(query))
                second = asyncio.create_task(late(first))
                await asyncio.sleep(0)
            return [(await first).batch, await second]

        assert asyncio.run(ask()) == [2, 2]


def test_a_batch_does_not_wait_for_ever(engine: Engine, gathers: Float32) -> None:
    with bench(engine, max_wait_s=0.02) as one:

        async def ask() -> int:
            with one.batcher.coming():  # and does not come
                return (await asyncio.wait_for(one.batcher.answer(Query.prepare(gathers[0])), 30)).batch

        assert asyncio.run(ask()) == 1


def test_a_cancelled_query_is_not_encoded(engine: Engine, gathers: Float32) -> None:
    """Promise 26: the place is free at once, and the batch is smaller."""
    query = Query.prepare(gathers[0])
    with bench(engine, max_queue=3) as one:

        async def ask() -> list[int]:
            one.close_gate()
            asked = [asyncio.create_task(one.batcher.answer(query)) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await one.batcher.answer(query)
            asked[1].cancel()
            await asyncio.sleep(0)
            assert one.batcher.waiting == 2
            asked[1] = asyncio.create_task(one.batcher.answer(Query.prepare(gathers[1])))
            await asyncio.sleep(0)
            one.gate.set()
            return [(await each).batch for each in asked]

        assert asyncio.run(ask()) == [3, 3, 3]


def test_the_fault_of_one_is_not_the_fault_of_all(engine: Engine, gathers: Float32) -> None:
    good = Query.prepare(gathers[0])
    bad = replace(good, prepared=replace(good.prepared, traces=np.full_like(good.prepared.traces, np.inf)))
    with bench(engine) as one:

        async def ask() -> list[Any]:
            one.close_gate()
            asked = [asyncio.create_task(one.batcher.answer(query)) for query in (good, bad, good)]
            await asyncio.sleep(0)
            one.gate.set()
            return await asyncio.gather(*asked, return_exceptions=True)

        first, second, third = asyncio.run(ask())
    assert isinstance(second, InvalidGather)
    expected = engine.retrieve_batch([good])[0][0]
    for answered in (first, third):
        assert_alike(answered.retrievals[0], expected)


def test_a_batch_over_http_says_what_the_engine_says(serve: Any, busy: Any, engine: Engine, gathers: Float32) -> None:
    """Promise 11: requests that were encoded together, against the in-process engine."""
    server = serve()

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            with busy(server):
                calls = [
                    asyncio.create_task(
                        http.post("/v1/retrieve", content=npy(gathers[i % 3]), params={"top_k": 2 + i}, headers=RAW)
                    )
                    for i in range(9)
                ]
                await asyncio.to_thread(until, lambda: server.serving.batches.waiting == 9)
            return list(await asyncio.gather(*calls))

    for i, response in enumerate(asyncio.run(ask())):
        (found,) = RetrieveAnswer.model_validate_json(response.content).results
        expected = retrieval_body(engine.retrieve(gathers[i % 3], top_k=2 + i)[0], PARTS)
        assert [match.model_id for match in found.matches] == [match.model_id for match in expected.matches]
        for got, wanted in zip(found.matches, expected.matches, strict=True):
            assert got.similarity == pytest.approx(wanted.similarity, abs=1e-5)
            assert got.descriptors == wanted.descriptors
        for name, quantity in (expected.physics or {}).items():
            assert (found.physics or {})[name].value == pytest.approx(quantity.value, rel=1e-4, abs=1e-4)


def test_a_client_that_leaves_frees_its_place(serve: Any, busy: Any, gathers: Float32) -> None:
    """Promise 26, over HTTP: while the model thread is still at something else, the queue and the places shrink."""
    server = serve(max_queue=3)
    body = npy(gathers[0])
    head = (
        "POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n"
    )
    address = httpx.URL(server.url)
    with ThreadPoolExecutor(1) as pool, busy(server):
        clients = [socket.create_connection((address.host, address.port or 80)) for _ in range(3)]
        for client in clients:
            client.sendall(head.format(len(body)).encode() + body)
        until(lambda: server.serving.batches.waiting == 3)
        assert server.http.post("/v1/retrieve", content=body, headers=RAW).status_code == 429
        clients[1].close()
        until(lambda: server.serving.batches.waiting == 2)
        fresh = pool.submit(server.http.post, "/v1/retrieve", content=body, headers=RAW)
        until(lambda: server.serving.batches.waiting == 3)
        for client in (clients[0], clients[2]):
            client.close()
        until(lambda: server.serving.batches.waiting == 1)
    assert fresh.result().json()["timings_ms"]["wait"] > 0


def test_beyond_the_queue_at_once(serve: Any, busy: Any, gathers: Float32) -> None:
    """Promise 22: the excess is refused while those admitted still wait, and those are answered."""
    server = serve(max_queue=4)
    body = npy(gathers[0])

    async def crowd() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            with busy(server):
                calls = [asyncio.create_task(http.post("/v1/retrieve", content=body, headers=RAW)) for _ in range(16)]
                done: set[Any] = set()
                while len(done) < 12:  # nobody is answered yet: these are refusals
                    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=0.01)
                assert server.serving.batches.waiting == 4
                for call in done:
                    assert call.result().status_code == 429
                    assert call.result().json()["code"] == "overloaded"
                    assert call.result().headers["retry-after"] == "1"
                assert (await http.post("/v1/retrieve", content=body, headers=RAW)).status_code == 429
                assert (await http.get("/healthz")).status_code == 200
            answers = await asyncio.gather(*calls)
            assert sorted(answer.status_code for answer in answers) == [200] * 4 + [429] * 12

    asyncio.run(crowd())


def test_a_request_larger_than_the_queue_is_not_refused_for_ever(serve: Any, gathers: Float32) -> None:
    server = serve(max_queue=1, max_batch=2)
    assert len(server.http.post("/v1/retrieve", content=npy(gathers), headers=RAW).json()["results"]) == 3


@pytest.mark.long
def test_sigterm_under_load(spawn: Any, gathers: Float32) -> None:
    """Promise 24: what was admitted is answered in full, what comes later is not let in, and the exit code is 0."""
    with spawn() as (server, url):
        body = npy(np.repeat(gathers, 6, axis=0)[:, :, ::2].astype(np.float16))

        async def load() -> list[Any]:
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                sent = asyncio.Semaphore(0)

                async def content() -> Any:
                    yield body
                    sent.release()

                def post() -> Any:
                    return http.post("/v1/retrieve?dt_s=0.002", content=content(), headers=RAW)

                assert (await http.get("/readyz")).status_code == 200
                calls = [asyncio.create_task(post()) for _ in range(8)]
                for _ in calls:  # more than what lies between two sockets: the server is reading them all
                    await sent.acquire()
                server.send_signal(signal.SIGTERM)
                answers = await asyncio.gather(*calls, return_exceptions=True)
                with pytest.raises(httpx.TransportError):
                    await http.get("/readyz")
                return answers

        answers = asyncio.run(load())
        assert server.wait(30) == 0
    assert [answer.status_code for answer in answers] == [200] * 8
    assert all(len(answer.json()["results"]) == 18 for answer in answers)
