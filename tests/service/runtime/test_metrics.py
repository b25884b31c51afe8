"""What /metrics says follows what happened, takes bounded room, and is documented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from seisbind.index import Gallery
from seisbind.model.encoders.embedder import Embedder
from seisbind.service.runtime.metrics import Metrics
from wire import RAW, npy

Float32 = NDArray[np.float32]
DOCS = Path(__file__).parents[3] / "docs" / "operations.md"
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(server: Any) -> Series:
    response = server.http.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    return series.get((name, tuple(sorted(labels.items()))), 0.0)


def test_metrics_follow_the_requests(serve: Any, gathers: Float32) -> None:
    server = serve(max_body_bytes=8 << 20)
    before = scraped(server)
    assert value(before, "seisbind_gathers_total") == 0
    body = npy(gathers)
    assert server.http.post("/v1/retrieve", content=body, headers=RAW).status_code == 200
    assert server.http.post("/v1/retrieve", content=b"hello", headers=RAW).status_code == 415
    model = server.http.post("/v1/search", json={"descriptors": {"mean_velocity": 2500}}).json()["results"][0]
    assert server.http.get(model["matches"][0]["image_url"]).status_code == 200
    assert server.http.get("/v1/models/v-none").status_code == 404
    after = scraped(server)

    def requests(method: str, route: str, status: str) -> float:
        return value(after, "seisbind_requests_total", method=method, route=route, status=status)

    assert requests("POST", "/v1/retrieve", "200") == 1
    assert requests("POST", "/v1/retrieve", "415") == 1
    assert requests("GET", "/v1/models/{model_id}/image.png", "200") == 1
    assert requests("GET", "/v1/models/{model_id}", "404") == 1
    assert requests("GET", "/metrics", "200") == 1
    assert value(after, "seisbind_request_seconds_count", route="/v1/retrieve") == 2
    assert value(after, "seisbind_errors_total", code="unsupported_format") == 1
    assert value(after, "seisbind_errors_total", code="unknown_model") == 1
    assert value(after, "seisbind_gathers_total") == 3
    assert value(after, "seisbind_received_bytes_total") >= len(body) + 5
    assert value(after, "seisbind_batch_gathers_sum") >= 3
    for stage in ("decode", "prepare", "encode", "infer"):
        assert value(after, "seisbind_stage_seconds_count", stage=stage) >= 1, stage
    assert value(after, "seisbind_stage_seconds_count", stage="search") == 2  # the retrieval's and the search's
    assert value(after, "seisbind_stage_seconds_count", stage="render") == 3  # two answers and a picture
    assert value(after, "seisbind_requests_in_flight") == 1  # the scrape itself
    assert value(after, "seisbind_admitted_requests") == 0
    assert value(after, "seisbind_queue_depth") == 0


def test_what_is_running_is_visible(serve: Any) -> None:
    server = serve()
    said, series = server.http.get("/v1/gallery").json(), scraped(server)
    (labels,) = [dict(labels) for name, labels in series if name == "seisbind_build_info"]
    assert labels == {
        "version": server.http.get("/openapi.json").json()["info"]["version"],
        "weights": said["weights"]["fingerprint"],
        "weights_name": said["weights"]["name"],
        "gallery": said["gallery"]["name"],
    }
    assert value(series, "seisbind_gallery_models") == said["gallery"]["models"] == 60
    assert value(series, "seisbind_gallery_generation") == said["gallery"]["generation"]


def test_clients_cannot_make_series(serve: Any) -> None:
    """Paths, ids, codes and methods of a client's choice: the number of series stays where it was."""
    server = serve()

    def ask(tag: str) -> int:
        for path in (f"/{tag}", f"/v1/models/{tag}", f"/v1/models/{tag}/image.png", f"/v1/{tag}/x", f"/?{tag}"):
            server.http.get(path)
        server.http.request(f"X{tag.upper()}", "/v1/gallery")
        server.http.post(f"/v1/retrieve?{tag}=1", content=b"x", headers=RAW)
        return len(scraped(server))

    ask("first")
    before = ask("second")
    assert [ask(f"tag{i}") for i in range(10)][-1] == before


def test_two_applications_do_not_add_up(serve: Any) -> None:
    one, other = serve(), serve()
    one.http.get("/v1/models/v-none")
    labels = {"method": "GET", "route": "/v1/models/{model_id}", "status": "404"}
    assert value(scraped(one), "seisbind_requests_total", **labels) == 1
    assert value(scraped(other), "seisbind_requests_total", **labels) == 0


def test_a_gallery_that_cannot_be_served_is_counted_by_its_fault(
    serve: Any, make_gallery: Any, other_weights: Path, gathers: Float32, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 17: the old one keeps answering, readiness holds, a counter and a log line name the fault."""
    path = make_gallery()
    server = serve(gallery=path, canary_max_age_s=0.001)
    Gallery.create(path, fingerprint=Embedder.load(other_weights).fingerprint, overwrite=True).close()
    refused = server.http.post("/v1/gallery/reload")
    assert refused.json()["code"] == "weights_mismatch"
    (path / "records.sqlite").write_bytes(b"no database at all" * 100)
    damaged = server.http.post("/v1/gallery/reload").json()["code"]
    series = scraped(server)
    assert value(series, "seisbind_gallery_reload_failures_total", code="weights_mismatch") == 1
    assert value(series, "seisbind_gallery_reload_failures_total", code=damaged) == 1
    assert value(series, "seisbind_gallery_models") == 60
    assert server.http.get("/readyz").status_code == 200
    assert server.http.post("/v1/retrieve", content=npy(gathers[0]), headers=RAW).status_code == 200
    said = [record.getMessage() for record in caplog.records if "not reloaded" in record.getMessage()]
    assert ["[weights_mismatch]" in said[0], f"[{damaged}]" in said[1]] == [True, True]


def test_a_job_waits_until_it_begins_or_is_given_up() -> None:
    metrics = Metrics()

    def depth() -> float:
        (found,) = [family for family in metrics.collect() if family.name == "seisbind_queue_depth"]
        return found.samples[0].value

    with metrics.queued() as begun:
        assert depth() == 1
        with metrics.queued():
            assert depth() == 2
        assert depth() == 1
        begun()
        assert depth() == 0
    assert depth() == 0


def documented() -> Iterator[tuple[str, str, str]]:
    row = re.compile(r"^\| `(seisbind_\w+)` \| (\w+) \| ([^|]*) \| [^|]+ \|$", re.MULTILINE)
    for name, kind, labels in row.findall(DOCS.read_text(encoding="utf-8")):
        yield name, kind, ", ".join(re.findall(r"`(\w+)`", labels))


def test_docs_list_every_metric() -> None:
    """Promise 29: name as Prometheus stores it, type and labels."""
    expected = set()
    for each in vars(Metrics()).values():
        if hasattr(each, "_labelnames"):
            name, kind = each._name, each._type
            expected.add((name + ("_total" if kind == "counter" else ""), kind, ", ".join(each._labelnames)))
    assert len(expected) >= 15
    assert set(documented()) == expected
    names = {metric.name for metric in Metrics().collect()}
    assert {name for name in names if not name.startswith("seisbind_")} == {
        name for name in names if name.startswith("process_")
    }
