"""The API description is the committed one, and every example in it runs. Those of the pages: test_blocks.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from seisbind.model.encoders.weights_file import load_weights
from seisbind.service.bulk.run import ExitCode
from seisbind.service.commands.demo import npy
from seisbind.service.http.app import openapi_document
from seisbind.service.http.forms import RAW_TYPES

DOCS = Path(__file__).parents[2] / "docs"
HINT = """write it again: python -c 'import json; from seisbind.service.http.app import openapi_document
print(json.dumps(openapi_document(), indent=1, ensure_ascii=False))' > docs/openapi.json"""


def test_the_committed_description_is_the_servers(served: Any) -> None:
    committed = json.loads((DOCS / "openapi.json").read_text(encoding="utf-8"))
    assert committed == openapi_document(), HINT
    assert served.http.get("/openapi.json").json() == committed
    assert committed["openapi"].startswith("3.1")


def test_every_example_of_the_description_runs(served: Any) -> None:
    ran = 0
    for path, operations in openapi_document()["paths"].items():
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for example in body.get("examples", {}).values():
                response = served.http.request(method, path, json=example["value"])
                assert response.status_code == 200, response.text
                assert response.json()["results"][0]["matches"]
                ran += 1
    assert ran >= 2


def test_the_docs_name_the_weights_that_ship() -> None:
    """But where they say that a figure was measured with other ones."""
    shipped = load_weights().fingerprint
    named = 0
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "model" / "weights" / "MODEL_CARD.md"):
        for line in page.read_text(encoding="utf-8").splitlines():
            for fingerprint in re.findall(r"\b[0-9a-f]{16}\b", line):
                named += 1
                assert fingerprint == shipped or "earlier weights" in line, f"{page.name}: {line}"
    assert named >= 4


FILES = {"/v1/retrieve": "gather", "/v1/read": "gather", "/v1/search": "velocity", "/v1/models": "velocity"}


def test_every_form_and_parameter_of_the_description_runs(
    serve: Any, make_gallery: Any, models: tuple[Any, list[str]], gathers: Any
) -> None:
    server, document = serve(gallery=make_gallery(), writable=True), openapi_document()
    sent = {"gather": npy(gathers[0]), "velocity": npy(models[0][0] + 1), "half": npy(gathers[0][:, ::2])}
    for path, what in FILES.items():
        operation = document["paths"][path]["post"]
        content = operation["requestBody"]["content"]
        assert set(RAW_TYPES) < set(content)
        for example in content["multipart/form-data"]["examples"].values():
            fields = dict(example["value"])
            assert fields.pop("file") == f"@{what}.npy"
            file = sent["half"] if fields.get("dt_s") == 0.002 else sent[what]
            response = server.http.post(path, files={"file": file}, data=fields)
            assert response.is_success, response.text
            server.http.delete(f"/v1/models/{fields.get('model_id')}")
        for header in (each for each in operation["parameters"] if each["in"] == "header"):
            for value in header["schema"]["examples"]:
                own = {"Content-Type": "application/x-npy", header["name"]: str(value)}
                response = server.http.post(path, content=sent[what], headers=own)
                assert response.is_success, (header["name"], response.text)
        for number, parameter in enumerate(each for each in operation["parameters"] if each["in"] == "query"):
            for value in parameter["schema"]["examples"]:
                params = {parameter["name"]: value} if parameter["name"] == "model_id" or path != "/v1/models" else {
                    parameter["name"]: value, "model_id": f"own-{number}"
                }  # fmt: skip
                raw = {"Content-Type": RAW_TYPES[number % len(RAW_TYPES)]}
                response = server.http.post(path, content=sent[what], params=params, headers=raw)
                assert response.is_success, response.text


def test_the_stream_of_the_description_runs(served: Any, gathers: Any) -> None:
    document = openapi_document()
    operation = document["paths"]["/v1/retrieve/stream"]["post"]
    schema = operation["responses"]["200"]["content"]["application/x-ndjson"]["schema"]
    (answer, _) = schema["oneOf"]
    for kind in set(operation["requestBody"]["content"]) - {"multipart/form-data"}:
        for parameter in operation["parameters"]:
            for value in parameter["schema"]["examples"]:
                response = served.http.post(
                    "/v1/retrieve/stream",
                    content=npy(gathers[0]),
                    params={parameter["name"]: value},
                    headers={"Content-Type": kind},
                )
                (line,) = response.text.splitlines()
                assert set(answer["required"]) == set(json.loads(line)), response.text


def test_the_answers_are_as_described(served: Any) -> None:
    """Each documented answer names its schema, and each schema that is named exists."""
    document = openapi_document()
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert named <= set(document["components"]["schemas"])
    for operations in document["paths"].values():
        for operation in operations.values():
            assert "4XX" in operation["responses"]
            assert operation["description"]


def test_the_exit_codes_are_documented() -> None:
    text = (DOCS / "pipelines.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) \| ", text, re.MULTILINE) == [str(int(code)) for code in ExitCode]
