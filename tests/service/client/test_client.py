"""The clients: the engine's twins over HTTP, what they repeat and what they raise."""

from __future__ import annotations

import asyncio
import inspect
import io
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Filter, Gallery
from seisbind.model.errors import InvalidConfig, ServerRefused, ServerUnreachable, ServiceError, UnsupportedDtype
from seisbind.model.frame import Survey
from seisbind.service.client import client as clients
from seisbind.service.client.client import AsyncClient, Client
from seisbind.service.client.retries import FIRST_S, MAX_S, Attempts, retry_after_s
from seisbind.service.engine.bodies import retrieval_body, search_result_body
from seisbind.service.engine.engine import Engine
from seisbind.service.formats.npy import npy, npz
from seisbind.service.formats.reader import Geometry
from seisbind.service.schemas import PARTS, RetrievalBody, RetrieveAnswer, StreamAnswer, StreamError

Float32 = NDArray[np.float32]

Ask = Callable[..., Any]


def ask_client(url: str, name: str, *arguments: Any, key: str | None = None, retries: int = 4, **options: Any) -> Any:
    with Client(url, key=key, retries=retries) as client:
        found = getattr(client, name)(*arguments, **options)
        return list(found) if name == "retrieve_stream" else found


def ask_async(url: str, name: str, *arguments: Any, key: str | None = None, retries: int = 4, **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncClient(url, key=key, retries=retries) as client:
            found = getattr(client, name)(*arguments, **options)
            return [each async for each in found] if name == "retrieve_stream" else await found

    return asyncio.run(ask())


@pytest.fixture(params=[ask_client, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    asked: Ask = request.param
    return asked


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that a client would have made, none of which it makes."""
    made: list[float] = []

    async def pause(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(clients, "time", SimpleNamespace(sleep=made.append))
    monkeypatch.setattr(clients, "asyncio", SimpleNamespace(sleep=pause))
    return made


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(each)
        for name, each in vars(kind).items()
        if inspect.isfunction(each) and not name.startswith("_")
    }


def test_engine_and_clients_have_the_same_calls() -> None:
    sync, awaited, engine = public(Client), public(AsyncClient), public(Engine)
    assert list(sync) == list(awaited)
    for name, signature in sync.items():
        other = awaited[name]
        assert list(signature.parameters.values()) == list(other.parameters.values()), name
    # HTTP has no call for these: a batch of requests, an answer together with what it points at (an npz there), the
    # canary behind /readyz, reload in place of refresh, one model removed at a time
    assert set(engine) - set(sync) == {"retrieve_batch", "retrieve_and_read", "canary", "refresh", "remove"}
    for name in set(engine) & set(sync):
        ours, theirs = engine[name].parameters, sync[name].parameters
        for shared in set(ours) & set(theirs) - {"self"}:
            if (name, shared) == ("add_models", "tags"):  # one form, the same tags for all
                continue
            assert ours[shared].kind == theirs[shared].kind, (name, shared)
            assert ours[shared].default == theirs[shared].default, (name, shared)
    assert set(engine["retrieve"].parameters) - set(sync["retrieve"].parameters) == {"notes"}  # the server's own
    for name in ("record", "velocity"):
        own = [*inspect.signature(getattr(Gallery, name)).parameters, "scale"]  # of which a gallery knows nothing
        assert list(sync[name].parameters) == own


def same(found: Sequence[RetrievalBody], expected: Sequence[RetrievalBody]) -> None:
    """Equal but for rounding in what the encoders computed in another batch."""
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        assert [m.model_id for m in got.matches] == [m.model_id for m in wanted.matches]
        assert [m.descriptors for m in got.matches] == [m.descriptors for m in wanted.matches]
        for a, b in zip(got.matches, wanted.matches, strict=True):
            assert a.similarity == pytest.approx(b.similarity, abs=1e-5)
        assert got.warnings == wanted.warnings
        assert (got.physics is None) == (wanted.physics is None)
        for name, quantity in (wanted.physics or {}).items():
            own = (got.physics or {})[name]
            assert own.unit == quantity.unit
            numbers = (quantity.value, quantity.low, quantity.high)
            assert (own.value, own.low, own.high) == pytest.approx(numbers, rel=1e-3, abs=1e-3)
        assert got.in_distribution.likely == wanted.in_distribution.likely
        assert got.in_distribution.score == pytest.approx(wanted.in_distribution.score, abs=1e-4)


@pytest.mark.parametrize(
    ("timeout_s", "sent"), [(2.5, "2500"), (1e-9, "1"), (1e9, "99999999"), (float("inf"), "99999999")]
)
def test_a_client_says_how_long_it_waits(timeout_s: float, sent: str) -> None:
    with Client("http://127.0.0.1:1", timeout_s=timeout_s) as client:
        assert client._http.headers["SeisBind-Deadline-Ms"] == sent


def test_engine_and_clients_give_the_same_answers(ask: Ask, served: Any, engine: Engine, gathers: Float32) -> None:
    def bodies(found: Any, include: Sequence[str] = PARTS) -> list[RetrievalBody]:
        return [retrieval_body(each, include) for each in found]

    answer = ask(served.url, "retrieve", gathers)
    same(answer.results, bodies(engine.retrieve(gathers)))
    assert (answer.gallery.models, answer.weights.fingerprint) == (60, engine.gallery.fingerprint)
    (one,) = ask(served.url, "retrieve", gathers[0].astype(np.float64), top_k=2, include=()).results
    same([one], bodies(engine.retrieve(gathers[0], top_k=2), ()))
    wanted = Filter.parse({"family": ["Style-A"], "max_velocity": [None, 4400]})
    for condition in (wanted, wanted.conditions()):
        filtered = ask(served.url, "retrieve", gathers[0], top_k=3, filter=condition).results
        same(filtered, bodies(engine.retrieve(gathers[0], top_k=3, filter=wanted)))

    line = Survey((0.0, 340.0), tuple(10.0 * i for i in range(0, 70, 2)), 0.002, 12.0)
    sparse = gathers[:2, [0, 2], ::2, ::2]
    same(ask(served.url, "retrieve", sparse, line).results, bodies(engine.retrieve(sparse, line)))

    velocity = engine.gallery.velocity(engine.gallery.model_ids()[7])
    expected = [search_result_body(each, PARTS) for each in engine.search_velocity(velocity, top_k=2)]
    found = ask(served.url, "search_velocity", velocity, top_k=2).results
    assert [m.model_id for m in found[0].matches] == [m.model_id for m in expected[0].matches]
    physics = {"mean_velocity": 2500.0}
    found = ask(served.url, "search_descriptors", physics, top_k=4, filter=wanted).results
    own = search_result_body(engine.search_descriptors(physics, top_k=4, filter=wanted), PARTS)
    assert found == [own]

    info = ask(served.url, "info")
    assert (info.gallery.models, info.families) == (engine.info().count, engine.info().families)


def test_an_answer_in_arrays(ask: Ask, served: Any, engine: Engine, gathers: Float32) -> None:
    line = Survey((0.0, 340.0), tuple(10.0 * i for i in range(0, 70, 2)), 0.002, 12.0)
    sparse, wanted = gathers[:2, [0, 2], ::2, ::2], Filter.parse({"max_velocity": [None, 4400]})
    asked = {"top_k": 3, "filter": wanted, "include": ("physics",)}
    arrays = ask(served.url, "retrieve_arrays", sparse, line, **asked)
    answer = RetrieveAnswer.model_validate_json(arrays["answer"].tobytes())
    same(answer.results, ask(served.url, "retrieve", sparse, line, **asked).results)
    for row, result in enumerate(answer.results):
        assert arrays["model_id"][row].tolist() == [match.model_id for match in result.matches]
        for place, match in enumerate(result.matches):
            np.testing.assert_array_equal(arrays["velocity"][row, place], engine.gallery.velocity(match.model_id))


def test_arrays_of_a_stranger(ask: Ask, stubbed: Any, gathers: Float32) -> None:
    """JSON from a server that does not know of npz, a damaged npz, and one that would have to be unpickled."""
    pickled, whole = io.BytesIO(), npz({"answer": np.zeros(9)})
    np.savez(pickled, answer=np.array([None]))
    for content in (b"{}", npy(np.zeros(3)), whole[:-9], whole.replace(b"NUMPY", b"GRUMP"), pickled.getvalue()):
        with stubbed((200, content, {})) as one, pytest.raises(ServiceError, match="something else"):
            ask(one.url, "retrieve_arrays", gathers[0])
    with stubbed((200, whole, {})) as one:
        assert list(ask(one.url, "retrieve_arrays", gathers[0])) == ["answer"]


def test_a_file_is_sent_as_it_is(ask: Ask, served: Any, engine: Engine, gathers: Float32, tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", gathers=gathers[:2, :, ::2], dt_s=0.001)  # wrong, and corrected below
    answer = ask(served.url, "retrieve_file", tmp_path / "two.npz", Geometry(dt_s=0.002), top_k=1)
    assert (answer.ingest.format, answer.ingest.dt_s, len(answer.results)) == ("npz", 0.002, 2)
    again = ask(served.url, "retrieve_file", (tmp_path / "two.npz").read_bytes(), Geometry(dt_s=0.002), top_k=1)
    assert again.results == answer.results


def test_a_stream_of_parts(
    ask: Ask, served: Any, engine: Engine, gathers: Float32, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven gathers in parts of two, from a file that is not read whole; one of them cannot be used."""
    monkeypatch.setattr("seisbind.service.client.parts.PART_BYTES", 2 * gathers[0].nbytes)
    stack = np.concatenate([gathers, gathers[::-1], gathers[:1]])
    stack[4, 0, 0, 0] = np.nan
    np.save(tmp_path / "stack.npy", stack)
    found = ask(served.url, "retrieve_stream", np.load(tmp_path / "stack.npy", mmap_mode="r"), top_k=3, first=1)
    assert [each.index for each in found] == [1, 2, 3, 4, 5, 6]
    bad = found.pop(3)
    assert isinstance(bad, StreamError) and bad.error.code == "invalid_gather"
    good = [retrieval_body(each, PARTS) for each in engine.retrieve(stack[[1, 2, 3, 5, 6]], top_k=3)]
    same([each.result for each in found if isinstance(each, StreamAnswer)], good)
    (alone,) = ask(served.url, "retrieve_stream", gathers[0], top_k=1)
    assert alone.index == 0


def test_a_stream_goes_on_where_a_connection_broke(
    ask: Ask, cutting: Any, served: Any, gathers: Float32, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setattr("seisbind.service.client.parts.PART_BYTES", 4 * gathers[0].nbytes)
    stack = np.concatenate([gathers, gathers])
    whole = ask(served.url, "retrieve_stream", stack, top_k=1)
    port = httpx.URL(served.url).port
    with cutting(port, cuts=[2, 0, 0, 1]) as (url, passed):
        found = ask(url, "retrieve_stream", stack, top_k=1)
        assert passed[:4] == [2, 0, 0, 1]
    assert [each.index for each in found] == list(range(6))
    same([each.result for each in found], [each.result for each in whole])
    assert len(pauses) == 4
    with cutting(port, cuts=[0] * 9) as (url, passed), pytest.raises(ServerUnreachable):
        ask(url, "retrieve_stream", stack, top_k=1, retries=2)
    assert len(passed) == 3


def test_every_call_that_changes_something(ask: Ask, writable: Any, models: tuple[Float32, list[str]]) -> None:
    own, url = models[0][:2] + 3, writable.url
    name = f"own-{ask.__name__}"
    ids = [f"{name}-1", f"{name}/2 é"]  # an id is part of a path
    with pytest.raises(ServerRefused) as caught:
        ask(url, "add_models", own, model_ids=ids, family="mine", tags=("a", "b"))
    assert caught.value.code == "invalid_query"
    ids[1] = f"{name}-2"
    added = ask(url, "add_models", own, model_ids=ids, family="mine", tags=("a", "b"), source="survey")
    assert added.model_ids == ids
    record = ask(url, "record", ids[1])
    assert (record.family, record.tags, record.source) == ("mine", ["a", "b"], "survey")
    np.testing.assert_array_equal(ask(url, "velocity", ids[0]), own[0])
    assert ask(url, "image", ids[0]).startswith(b"\x89PNG")
    for each in ids:
        assert ask(url, "remove_model", each) is None
    with pytest.raises(ServerRefused) as caught:
        ask(url, "velocity", ids[0])
    assert (caught.value.code, caught.value.status) == ("unknown_model", 404)
    assert ask(url, "reload").after.models == 60
    assert "seisbind_requests_total" in ask(url, "metrics")
    assert ask(url, "live") is ask(url, "ready") is True


def test_a_refusal_carries_the_problem(ask: Ask, served: Any, gathers: Float32) -> None:
    with pytest.raises(ServerRefused) as caught:
        ask(served.url, "retrieve", gathers[0], top_k=1000)
    error = caught.value
    assert (error.code, error.status) == ("invalid_query", 422)
    assert error.detail.startswith("top_k is 1000; this server gives at most 70")
    assert error.request_id and error.detail in str(error)
    assert isinstance(error, ServiceError)
    with pytest.raises(ServerRefused) as caught:
        ask(served.url, "search_descriptors", {"mean_velocity": float("nan")})
    assert caught.value.status == 422
    with pytest.raises(UnsupportedDtype):
        ask(served.url, "retrieve", np.array([None]))


def test_strangers_and_nobody(ask: Ask, stubbed: Any, gathers: Float32, pauses: list[float]) -> None:
    with stubbed((200, b'{"hello": "world"}', {})) as one, pytest.raises(ServiceError, match="something else"):
        ask(one.url, "retrieve", gathers[0])
    with stubbed((200, b'{"hello": "world"}\n', {})) as one, pytest.raises(ServiceError, match="something else"):
        ask(one.url, "retrieve_stream", gathers[0])
    with stubbed((502, b"<h1>Bad gateway", {})) as one, pytest.raises(ServerRefused) as caught:
        ask(one.url, "info")
    assert (caught.value.code, caught.value.status, caught.value.detail) == ("service_error", 502, "<h1>Bad gateway")
    assert pauses == []
    with pytest.raises(ServerUnreachable):
        ask("http://127.0.0.1:9", "info")
    assert len(pauses) == 4
    assert ask("http://127.0.0.1:9", "ready") is ask("http://127.0.0.1:9", "live") is False
    for bad in ("nonsense", "http://host:port"):
        with pytest.raises(ServerUnreachable):
            ask(bad, "info")
    for bad in ("a b", "é", "key\n"):
        with pytest.raises(InvalidConfig):
            ask("http://127.0.0.1:9", "info", key=bad)


ADDED = b'{"model_ids": [], "gallery": {"name": "g", "models": 1, "generation": 1}}'
OK = (200, ADDED, {"Content-Type": "application/json"})
BUSY, DOWN, BROKEN = (429, "overloaded", {"Retry-After": "3"}), (503, "not_ready", {}), (500, "internal_error", {})


@pytest.mark.parametrize(
    ("name", "fault", "repeated"),
    [("info", BUSY, True), ("info", DOWN, True), ("info", None, True), ("add_models", BUSY, True),
     ("add_models", DOWN, False), ("add_models", None, False), ("remove_model", None, False),
     ("info", BROKEN, False), ("reload", None, True)],
)  # fmt: skip
def test_what_is_repeated(ask: Ask, stubbed: Any, pauses: list[float], name: str, fault: Any, repeated: bool) -> None:
    """Three faults, then an answer; what cannot be repeated is asked once."""
    arguments = {"info": (), "reload": (), "remove_model": ("v",), "add_models": (np.zeros((70, 70)),)}[name]
    with stubbed(fault, fault, fault, OK) as server:
        with pytest.raises(ServiceError) as caught:  # the last answer is one to add_models alone
            ask(server.url, name, *arguments)
            raise ServiceError("answered")
        assert len(server.asked) == len(pauses) + 1 == (4 if repeated else 1)
    if fault is BUSY:
        assert all(3 <= pause <= 3 + FIRST_S * 8 for pause in pauses)
    if not repeated:
        assert isinstance(caught.value, ServerUnreachable if fault is None else ServerRefused)


def test_retries_are_bounded(ask: Ask, stubbed: Any, pauses: list[float]) -> None:
    with stubbed(BUSY) as server, pytest.raises(ServerRefused) as caught:
        ask(server.url, "info", retries=2)
    assert (caught.value.code, caught.value.retry_after_s, len(server.asked)) == ("overloaded", 3.0, 3)
    with stubbed((429, "overloaded", {"Retry-After": "3600"})) as server:
        with pytest.raises(ServerRefused):
            ask(server.url, "info")
        assert len(server.asked) == 1  # told, not waited for


def test_how_long_it_waits() -> None:
    def attempts(repeated: int = 0, *, repeatable: bool = True) -> Attempts:
        found = Attempts("http://nobody", 5, repeatable=repeatable)
        for _ in range(repeated):
            found.failed(gone)
        return found

    gone = httpx.ReadError("gone")
    for repeated in range(5):
        waits = {attempts(repeated).failed(gone) for _ in range(20)}
        assert len(waits) > 10  # clients do not come back together
        assert all(FIRST_S * 2**repeated / 2 <= wait <= FIRST_S * 2**repeated for wait in waits)
    with pytest.raises(ServerUnreachable):
        attempts(5).failed(gone)
    assert attempts(repeatable=False).wait_s(gone) is None
    assert attempts().wait_s(httpx.ReadTimeout("slow")) is None
    assert attempts(repeatable=False).wait_s(httpx.ConnectError("nobody")) is not None
    assert retry_after_s("7") == 7
    assert retry_after_s(None) is retry_after_s("soon") is None
    later = retry_after_s(format_datetime(datetime.now(UTC) + timedelta(seconds=MAX_S), usegmt=True))
    assert later is not None and 0 < later <= MAX_S
    assert retry_after_s("Wed, 01 Jan 2020 00:00:00 GMT") == 0


def test_the_key_is_sent(ask: Ask, stubbed: Any, gathers: Float32) -> None:
    with stubbed((401, "key_unknown", {})) as server, pytest.raises(ServerRefused) as caught:
        ask(server.url, "retrieve", gathers[0], key="seisbind_K")
    assert "seisbind_K" not in str(caught.value)


def test_an_array_travels_first_axis_slowest(gathers: Float32) -> None:
    turned = np.asfortranarray(gathers[:1])
    assert npy(turned) == npy(gathers[:1])
