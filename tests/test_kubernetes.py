"""docker/kubernetes, as far as it can be read without a cluster: Kubernetes' own schemas take it, it is as hardened as
docker-compose.yml, and every setting, metric, port and path in it is one that the code and the image have."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import mixed
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.http.app import openapi_document
from seisbind.service.runtime.metrics import Metrics
from seisbind.service.runtime.serving import CANARY_DEADLINE_S
from seisbind.service.settings import Settings, read_settings
from seisbind.service.workers.supervisor import CLOSE_S

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docker/kubernetes"
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
KNOWN = {f"SEISBIND_{name.upper()}" for name in Settings.model_fields}
SECRETS = {"seisbind-keys", "seisbind-store"}
MI = {"Mi": 1 << 20, "Gi": 1 << 30}

Thing = dict[str, Any]


@functools.cache
def things(place: str) -> dict[tuple[str, str], Thing]:
    """What a folder makes, by kind and name: rendered by kubectl, or (the base alone) its files as they are."""
    if shutil.which("kubectl"):
        done = subprocess.run(
            ["kubectl", "kustomize", str(FOLDER / place)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        texts = [done.stdout]
    elif place == "base":
        listed = yaml.safe_load((FOLDER / place / "kustomization.yml").read_text())
        texts = [(FOLDER / place / name).read_text() for name in listed["resources"]]
    else:
        pytest.skip("no kubectl is here: what is laid over the base is not rendered")
    return {(each["kind"], each["metadata"]["name"]): each for text in texts for each in yaml.safe_load_all(text)}


def pods(place: str) -> dict[str, Thing]:
    return {
        name: thing["spec"]["template"]["spec"]
        for (kind, name), thing in things(place).items()
        if kind in ("Deployment", "StatefulSet")
    }


def environment(place: str, container: Thing) -> dict[str, str]:
    """What a container is given; of secrets nothing is known."""
    given: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            given |= things(place)["ConfigMap", source["configMapRef"]["name"]]["data"]
        else:
            assert source["secretRef"]["name"] in SECRETS
    return given | {each["name"]: each["value"] for each in container.get("env", [])}


def size(text: str) -> int:
    return int(text[:-2]) * MI[text[-2:]]


PLACES = pytest.mark.parametrize("place", ["base", "cpu"])


@PLACES
def test_the_schemas_of_kubernetes_take_it(place: str) -> None:
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate (extra kubernetes) is not here: its schemas are not checked"
    )
    for thing in things(place).values():
        schemas.validate(thing, schemas.latest_version(), strict=True)


@PLACES
def test_the_schemas_would_refuse_what_is_misspelt(place: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate (extra kubernetes) is not here")
    spec = things(place)["Deployment", "seisbind-readers"]["spec"]
    wrong = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec | {"revisionsHistoryLimit": 3}}
    with pytest.raises(schemas.ValidationError):
        schemas.validate(wrong, schemas.latest_version(), strict=True)


@PLACES
def test_every_pod_is_hardened_and_keeps_to_the_image(place: str) -> None:
    user = int(re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)[-1])
    assert things(place)["Namespace", "seisbind"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    for pod in pods(place).values():
        own = pod["securityContext"]
        assert own["runAsNonRoot"] and (own["runAsUser"], own["runAsGroup"], own["fsGroup"]) == (user,) * 3
        assert own["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert size(container["resources"]["requests"]["memory"]) <= size(
                container["resources"]["limits"]["memory"]
            )
            mounts = {each["mountPath"] for each in container["volumeMounts"]}
            assert {"/tmp", "/data"} <= mounts  # HOME and WORKDIR of the image; all else is read-only
            assert "HOME=/tmp" in DOCKERFILE and "WORKDIR /data" in DOCKERFILE
            assert not container["image"].endswith(":latest")


@PLACES
def test_settings_are_ones_that_the_server_takes(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"SAMPLE_MODELS"}  # start.sh
    for pod in pods(place).values():
        assert pod["enableServiceLinks"] is False  # else the service `seisbind` sets SEISBIND_PORT to tcp://…
        for container in pod["containers"]:
            given = environment(place, container)
            assert {name for name in given if not name.startswith("AWS_")} - own <= KNOWN
            assert not [name for name in given if re.search("SECRET|PASSWORD|KEY_ID|API_KEYS$", name)]
            with monkeypatch.context() as patched:
                for name, value in given.items():
                    patched.setenv(name, value)
                settings = read_settings()
            mounts = [each["mountPath"] for each in container["volumeMounts"]]
            for path in (settings.api_keys_file, settings.audit_log):
                if path is not None and container["name"] == "seisbind":
                    assert any(path.is_relative_to(mount) for mount in mounts), path


@PLACES
def test_readers_and_writer_meet_at_one_gallery(place: str) -> None:
    reader = environment(place, pods(place)["seisbind-readers"]["containers"][0])
    writer, publisher = pods(place)["seisbind-writer"]["containers"]
    given = environment(place, writer)
    assert things(place)["StatefulSet", "seisbind-writer"]["spec"]["replicas"] == 1
    assert given["SEISBIND_WRITABLE"] == "true" and "SEISBIND_WRITABLE" not in reader
    (line,) = re.findall(r"seisbind gallery publish (\S+) (\S+)", publisher["args"][0])
    assert line == (given["SEISBIND_GALLERY"], reader["SEISBIND_GALLERY"])
    assert float(reader["SEISBIND_WATCH_S"]) > 0
    volume = next(each for each in pods(place)["seisbind-readers"]["volumes"] if each["name"] == "data")
    asked = pods(place)["seisbind-readers"]["containers"][0]["resources"]["requests"]["ephemeral-storage"]
    assert size(volume["emptyDir"]["sizeLimit"]) <= size(asked)


@PLACES
def test_probes_ask_what_the_server_answers(place: str) -> None:
    paths = openapi_document()["paths"]
    for name, pod in pods(place).items():
        server = pod["containers"][0]
        (port,) = server["ports"]
        assert f"SEISBIND_PORT={port['containerPort']}" in DOCKERFILE
        template = next(
            thing for (_, own), thing in things(place).items() if own == name and "template" in thing["spec"]
        )
        scraped = template["spec"]["template"]["metadata"]["annotations"]
        assert (scraped["prometheus.io/port"], scraped["prometheus.io/path"]) == ("8000", "/metrics")
        assert "/metrics" in paths
        asked = {kind: server[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
        assert {each["port"] for each in asked.values()} == {port["name"]}
        assert {kind: each["path"] for kind, each in asked.items()} == {
            "startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz",
        }  # fmt: skip
        assert {each["path"] for each in asked.values()} <= set(paths)
        for kind in ("startup", "readiness"):
            assert server[f"{kind}Probe"]["timeoutSeconds"] > CANARY_DEADLINE_S
        # what was admitted is answered before the pod is killed
        drain_s = float(environment(place, server)["SEISBIND_SHUTDOWN_S"]) + CLOSE_S
        assert pod["terminationGracePeriodSeconds"] > server["lifecycle"]["preStop"]["sleep"]["seconds"] + drain_s


@PLACES
def test_what_scales_and_what_is_kept_are_the_readers(place: str) -> None:
    made = things(place)
    readers = made["Deployment", "seisbind-readers"]["spec"]
    labels = readers["selector"]["matchLabels"]
    assert readers["template"]["metadata"]["labels"] == labels and "replicas" not in readers
    assert made["PodDisruptionBudget", "seisbind-readers"]["spec"]["selector"]["matchLabels"] == labels
    assert made["Service", "seisbind"]["spec"]["selector"] == labels
    target = made["HorizontalPodAutoscaler", "seisbind-readers"]["spec"]["scaleTargetRef"]
    assert ("Deployment", target["name"]) in made
    writer = made["StatefulSet", "seisbind-writer"]["spec"]
    assert made["Service", writer["serviceName"]]["spec"]["selector"] == writer["selector"]["matchLabels"]
    policy = made["NetworkPolicy", "seisbind"]["spec"]["podSelector"]["matchLabels"]
    for each in (labels, writer["selector"]["matchLabels"]):
        assert policy.items() <= each.items()


def test_the_autoscaler_scales_on_a_gauge_of_metrics() -> None:
    """The adapter's rule names it, and makes the name that the autoscaler asks for."""
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yml").read_text())["rules"]["custom"]
    (metric,) = things("base")["HorizontalPodAutoscaler", "seisbind-readers"]["spec"]["metrics"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    series = rule["seriesQuery"].partition("{")[0]
    assert {each.name: each.type for each in Metrics().collect()}[series] == "gauge"
    assert rule["metricsQuery"].count("<<.Series>>") == 1
    places = int(environment("base", pods("base")["seisbind-readers"]["containers"][0])["SEISBIND_MAX_CONCURRENCY"])
    assert 1 <= float(metric["pods"]["target"]["averageValue"]) < places  # more than all places never wait


def test_only_readers_ask_for_a_gpu_and_the_overlay_takes_it_away() -> None:
    gpu, cpu = pods("base")["seisbind-readers"], pods("cpu")["seisbind-readers"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert gpu["nodeSelector"] and [each["key"] for each in gpu["tolerations"]] == ["nvidia.com/gpu"]
    assert "nvidia.com/gpu" not in cpu["containers"][0]["resources"]["limits"]
    assert "nodeSelector" not in cpu and "tolerations" not in cpu
    for pod, device in ((gpu, "cuda"), (cpu, "cpu")):
        container = pod["containers"][0]
        assert {each["name"]: each["value"] for each in container["env"]}["SEISBIND_DEVICE"] == device
        assert container["image"].endswith(f":{device}") and f" AS {device}\n" in DOCKERFILE
    assert "nvidia.com/gpu" not in str(pods("base")["seisbind-writer"])


def test_the_page_says_what_has_to_be_there_first() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    for name in (
        *SECRETS,
        "docker/kubernetes/base",
        "docker/kubernetes/cpu",
        "docker/kubernetes/prometheus-adapter.yml",
    ):
        assert name in page, f"docs/deploy.md does not name {name}"


@pytest.mark.long
def test_the_publishers_line_publishes(tmp_path: Path) -> None:
    """The script as it stands, with other places: one round, then what `TERM` does."""
    pytest.importorskip("obstore", reason="obstore (extra cluster) is not here")
    velocity, family = mixed(8, seed=0)
    gallery, store = tmp_path / "gallery", tmp_path / "store"
    build_gallery(gallery, Embedder.load(device="cpu"), [(velocity, family.tolist())], source="test")
    store.mkdir()
    script = pods("base")["seisbind-writer"]["containers"][1]["args"][0]
    script = script.replace("/data/gallery", str(gallery)).replace("s3://seisbind/galleries/main", f"file://{store}")
    script = script.replace("seisbind gallery", f"{sys.executable} -m seisbind gallery")
    script = script.replace("sleep 300 & wait $!", "kill -TERM $$")  # `TERM` comes while nothing else runs
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(store.rglob("latest.json"))
