"""docker/seisbind.service: systemd itself reads it, what it names exists, and its lines serve, reload and end as told.

No service manager runs where the tests do: its sandbox is checked by systemd's words and not by its walls.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import mixed
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.settings import Settings, read_settings
from seisbind.service.workers.supervisor import CLOSE_S

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "docker/seisbind.service"
PROGRAM = "/opt/seisbind/bin/seisbind"
LINES = [line.partition("=") for line in UNIT.read_text().splitlines() if re.match("[A-Z]", line)]
SEISBIND = Path(sys.executable).parent / "seisbind"


def values(name: str) -> list[str]:
    return [value for key, _, value in LINES if key == name]


def environment() -> dict[str, str]:
    return {name: value for each in values("Environment") for name, _, value in [each.partition("=")]}


def with_this_program(folder: Path) -> Path:
    """A copy whose program is the one of this environment: systemd looks whether it can be run."""
    copy = folder / UNIT.name
    copy.write_text(UNIT.read_text().replace(PROGRAM, str(SEISBIND)))
    return copy


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze is here: the unit is not read by systemd")
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


def test_systemd_reads_the_unit_without_a_word(tmp_path: Path) -> None:
    done = analyze("verify", "--man=no", str(with_this_program(tmp_path)))
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_would_tell_a_word_that_it_does_not_know(tmp_path: Path) -> None:
    copy = with_this_program(tmp_path)
    copy.write_text(copy.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    assert re.search("Unknown key.* 'NoNewPrivilege'", analyze("verify", "--man=no", str(copy)).stderr)


def test_systemd_reads_the_override_of_deploy_md_without_a_word(tmp_path: Path) -> None:
    (override,) = re.findall(r"^```ini\n(.*?)^```", (ROOT / "docs/deploy.md").read_text(), re.DOTALL | re.MULTILINE)
    folder = tmp_path / f"{UNIT.name}.d"
    folder.mkdir()
    (folder / "override.conf").write_text(override)
    done = analyze("verify", "--man=no", str(with_this_program(tmp_path)))
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = re.findall("^Environment=(.*)$", override, re.MULTILINE)
    given = {
        name.removeprefix("SEISBIND_").lower(): value for name, _, value in [w.partition("=") for w in line.split()]
    }
    assert read_settings(**given).workers == 1


def test_the_sandbox_is_one_by_systemds_own_measure() -> None:
    """Exposure from 0 to 10; a unit without a sandbox has 9.6."""
    done = analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(UNIT))
    if "offline" in done.stderr:
        pytest.skip("this systemd-analyze has no --offline (older than 250): the sandbox is not measured")
    assert done.returncode == 0, done.stdout[-2000:]


def test_settings_are_ones_that_the_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"SEISBIND_{name.upper()}" for name in Settings.model_fields}
    assert set(environment()) - known == {"MPLCONFIGDIR"}
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    (state,) = values("StateDirectory")
    assert Path(settings.gallery).is_relative_to(f"/var/lib/{state}")  # all else is read-only
    assert settings.cache.is_relative_to(f"/var/lib/{state}")
    assert settings.workers != 1  # a server without a supervisor ends by SIGHUP
    assert int(values("TimeoutStopSec")[0]) > settings.shutdown_s + CLOSE_S


@pytest.mark.long
@pytest.mark.timeout(900)
def test_its_lines_serve_reload_and_end(tmp_path: Path) -> None:
    """ExecStart as it stands, with the program, gallery and port of this test; then ExecReload and SIGTERM."""
    velocity, family = mixed(8, seed=0)
    gallery = tmp_path / "gallery"
    build_gallery(gallery, Embedder.load(device="cpu"), [(velocity, family.tolist())], source="test")
    (line,) = values("ExecStart")
    command = [str(SEISBIND) if word == PROGRAM else word for word in shlex.split(line)]
    given = os.environ | {"OMP_NUM_THREADS": "1"} | environment()
    given |= {"SEISBIND_GALLERY": str(gallery), "SEISBIND_PORT": "0", "SEISBIND_DEVICE": "cpu"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=given) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            before = started(url)
            (reload,) = values("ExecReload")
            subprocess.run(shlex.split(reload.replace("$MAINPID", str(server.pid))), check=True)
            end = time.monotonic() + 300
            while started(url) in (set(), before):
                assert time.monotonic() < end, "no worker was replaced in 300 s"
            assert httpx.get(f"{url}/readyz", timeout=60).json()["status"] == "ready"
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            if server.poll() is None:
                server.terminate()


def started(url: str) -> set[str]:
    """When the workers began; nothing where a connection met one that just ended."""
    try:
        text = httpx.get(f"{url}/metrics", timeout=60).text
    except httpx.HTTPError:
        return set()
    return set(re.findall(r"^process_start_time_seconds\S* (\S+)$", text, re.MULTILINE))
