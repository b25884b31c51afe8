"""Build both images without a container engine, run them as `docker compose` would, and ask them something.

    python docker/build_with_buildah.py --wheels FOLDER [--extras bulk,mdio] [--cache FOLDER] [--python PYTHON]

Needs root, Debian's ``buildah`` and ``debootstrap``, and pip's usual index for the wheels. The images are built from a
Debian base made here, offline, from a folder of wheels. A container is then a chroot into the built image in mount and
process namespaces of its own: read-only root, a tmpfs on /tmp, a folder on /data, the image's user, no capability, no
new privileges. What that does not show is said at the end. Exit code 1 where something is not as it should be.

With ``--extras bulk,mdio`` the images have these, too, and a container runs `seisbind bulk retrieve` by actors of Ray
over a folder with the gather as npy and as an MDIO store. One module because it is one run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SUITE, PYTHON = "bookworm", "3.11"
BASE = "localhost/seisbind-base"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 26, 24, 17, 12, 5)] + ["manylinux2014_x86_64"]
COMPILERS = {"gcc", "g++", "cc", "c++", "clang", "ld", "as", "make", "nvcc", "rustc"}
DEADLINE_S = 3600.0  # for a start, on a machine with other work
PROGRAMS = ("buildah", "debootstrap", "unshare", "nsenter", "setpriv")
RUNTIME = {"cpu": "onnxruntime", "cuda": "torch"}  # what embeds gathers; torch has the GPU, where there is one

SANDBOX = """
set -e
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
mount --bind "$DATA" "$ROOT/data"
mount -t tmpfs -o size=64m,mode=1777,nosuid,nodev,noexec tmpfs "$ROOT/tmp"
mount -t proc -o nosuid,nodev,noexec proc "$ROOT/proc"
mount -t tmpfs -o size=1m,mode=755 tmpfs "$ROOT/dev"
mkdir "$ROOT/dev/shm"
mount -t tmpfs -o size=64m,mode=1777,nosuid,nodev,noexec tmpfs "$ROOT/dev/shm"
for device in null zero random urandom; do
  touch "$ROOT/dev/$device"
  mount --bind "/dev/$device" "$ROOT/dev/$device"
done
mount -o remount,bind,ro "$ROOT"
cd "$ROOT"
exec chroot . /usr/bin/setpriv --reuid "$UID_" --regid "$GID_" --clear-groups --no-new-privs \
  --inh-caps=-all --bounding-set=-all /usr/bin/env -i "$@"
"""

# Says to which of the folders something can be written.
WRITES = """
for folder in / /etc /usr /opt/seisbind /tmp /data; do
  if touch "$folder/probe" 2>/dev/null; then echo "$folder"; rm "$folder/probe"; fi
done
"""

# Simulates a gather over one of the sample gallery's own models; prints that model's id.
SAMPLE = """
import sys
import numpy as np
from seisbind.index.storage.record import content_id
from seisbind.model.waves.wavefield import simulate
from seisbind.service.engine.gallery_builder import random_models
velocity, _ = next(random_models(int(sys.argv[2]), 1, None))
np.save(sys.argv[1], simulate(velocity[:1])[0])
print(content_id(velocity[0]))
"""

# Writes the gather as an MDIO store, laid out as the tests have it.
STORE = """
import sys, warnings
sys.path[:0] = ["tests/service/formats", "tests/service/support"]
warnings.simplefilter("ignore")
from pathlib import Path
import numpy as np
from test_mdio import store
store(Path(sys.argv[2]), np.load(sys.argv[1]), 1000)
"""

# Prints for each file the first match of its gather, or what was wrong with it.
READ = """
import sys
import pyarrow.parquet as parquet
for row in parquet.read_table(sys.argv[1]).to_pylist():
    print(row)
"""

RUNTIMES = {"cpu": ("onnxruntime", "inversion"), "cuda": ("inversion",)}  # extras, as the Dockerfile has them

# overlay shares layers between images; vfs, which needs nothing of the kernel, copies them
DRIVER = "overlay" if "overlay" in Path("/proc/filesystems").read_text() else "vfs"

failures: list[str] = []


@dataclass(frozen=True, slots=True)
class Ask:
    """What a container is asked, and what it has to say: an npy body, the first match's id, the runtime's name."""

    gather: bytes
    expected: str
    runtime: str


def main() -> None:
    options = parse()
    if os.geteuid() != 0:
        sys.exit("Mounts need root.")
    begun = time.monotonic()
    install_programs()
    options.cache.mkdir(parents=True, exist_ok=True)
    storage = options.cache / "storage"
    try:
        if not options.built:
            make_base(options.cache, options.mirror, storage)
            wheels = gather_wheels(options.cache, options.wheels, options.extras)
            for target in options.target:
                build(target, wheels, storage, options.extras)
        sizes(storage)
        gather, expected = make_sample(options.cache, options.python, options.models)
        for target in options.target:
            try_out(target, storage, options, gather, expected)
    finally:
        if not options.keep and not options.built:
            shutil.rmtree(storage, ignore_errors=True)
    print(UNPROVEN)
    say(f"{time.monotonic() - begun:.0f} s in all")
    if failures:
        sys.exit("NOT as it should be: " + "; ".join(failures))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder that holds torch's CPU wheel, if pip's index does not")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "seisbind-images")
    parser.add_argument("--python", default=str(ROOT / ".venv/bin/python"), help="has seisbind[simulation]")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument("--models", type=int, default=2000, help="in the sample gallery, as docker-compose.yml has it")
    parser.add_argument("--extras", default="", help="of pyproject.toml, beside those that the images have: bulk,mdio")
    parser.add_argument("--target", action="append", choices=["cpu", "cuda"], help="default: both")
    parser.add_argument("--keep", action="store_true", help="leave the images in the cache")
    parser.add_argument("--built", action="store_true", help="try out the images that --keep has left in the cache")
    options = parser.parse_args()
    options.target = options.target or ["cpu", "cuda"]
    options.extras = [word for word in options.extras.split(",") if word]
    return options


def install_programs() -> None:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing and shutil.which("apt-get") is None:
        sys.exit(f"{', '.join(missing)} missing. On Debian: apt install buildah debootstrap util-linux")
    if missing:
        say(f"installing {', '.join(missing)} with apt")
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "buildah", "debootstrap", "util-linux")


def say(sentence: str) -> None:
    print(f"==> {sentence}", flush=True)


def check(holds: bool, what: str) -> None:
    print(f"    {'ok ' if holds else 'NOT'} {what}", flush=True)
    if not holds:
        failures.append(what)


def run(*command: str | Path, **more: Any) -> str:
    done = subprocess.run([str(word) for word in command], text=True, stdout=subprocess.PIPE, check=False, **more)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command[:6]))} ... ended with {done.returncode}: {done.stdout[-2000:]}")
    return done.stdout


def buildah(storage: Path, *words: str | Path) -> str:
    own = ("--root", storage, "--runroot", storage / "run", "--storage-driver", DRIVER)
    return run("buildah", *own, *words)


def make_base(cache: Path, mirror: str, storage: Path) -> None:
    archive = cache / f"{SUITE}.tar"
    if not archive.exists():
        say(f"making a Debian base ({SUITE}) with debootstrap; it is kept in {archive}")
        folder = cache / "base"
        shutil.rmtree(folder, ignore_errors=True)
        run("debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", SUITE, folder, mirror)
        leave_out = ("./var/cache/apt/*", "./var/lib/apt/lists/*", "./usr/share/doc/*", "./usr/share/man/*")
        part = archive.with_suffix(".part")
        run("tar", "-C", folder, *(f"--exclude={name}" for name in leave_out), "-cf", part, ".")
        part.rename(archive)
        shutil.rmtree(folder)
    container = buildah(storage, "from", "scratch").strip()
    buildah(storage, "add", "--quiet", container, archive, "/")
    buildah(storage, "commit", "--quiet", "--rm", container, BASE)


def gather_wheels(cache: Path, more: Path | None, extras: list[str]) -> Path:
    """A folder with every wheel that the images need; pip's own configuration says where they come from."""
    folder = cache / "wheels"
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*needed["project"]["dependencies"], *needed["build-system"]["requires"], f"{torch}+cpu"]
    for extra in ("onnxruntime", "inversion", *extras):
        wanted += required(needed["project"]["optional-dependencies"], extra)
    say(f"downloading wheels to {folder}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder, "--only-binary=:all:"]
    command += ["--constraint", ROOT / "constraints.txt", "--python-version", PYTHON]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    run(*command, *(("--find-links", more.resolve()) if more else ()), *wanted)
    return folder


def required(extras: dict[str, list[str]], name: str) -> list[str]:
    """What an extra requires, with those that it names itself."""
    found = []
    for line in extras[name]:
        own = re.fullmatch(r"seisbind\[(.+)\]", line)
        found += [each for extra in own[1].split(",") for each in required(extras, extra)] if own else [line]
    return found


def build(target: str, wheels: Path, storage: Path, extras: list[str]) -> None:
    begun = time.monotonic()
    arguments = {"BASE": BASE, "PIP_NO_INDEX": "1", "CUDA_TORCH_BUILD": "+cpu"}
    if extras:
        arguments["EXTRAS"] = ",".join((*RUNTIMES[target], *extras))
    note = " (with torch's CPU build: its CUDA build and a GPU are not tried here)" if target == "cuda" else ""
    say(f"building {target}{note}")
    buildah(
        storage,
        *("bud", "--quiet", "--isolation", "chroot", "--format", "docker", "--layers=false"),
        *(word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")),
        *("--build-context", f"wheels={wheels}", "--target", target, "--tag", f"seisbind:{target}"),
        *("--file", ROOT / "docker" / "Dockerfile", "--ignorefile", ROOT / ".dockerignore", ROOT),
    )
    print(f"    built in {time.monotonic() - begun:.0f} s")


def sizes(storage: Path) -> None:
    say("sizes, unpacked")
    for image in json.loads(buildah(storage, "images", "--json")):
        if image.get("names"):
            print(f"    {image['names'][0]:32} {image['size']}")


def make_sample(cache: Path, python: str, models: int) -> tuple[bytes, str]:
    path = cache / "gather.npy"
    expected = run(python, "-c", SAMPLE, path, str(models)).split()[-1]
    return path.read_bytes(), expected


@contextmanager
def mounted(storage: Path, image: str) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """The image's root folder, its configuration and the container's name."""
    container = buildah(storage, "from", "--pull-never", image).strip()
    try:
        root = Path(buildah(storage, "mount", container).strip())
        described = json.loads(buildah(storage, "inspect", "--type", "image", image))
        yield root, described["Docker"]["config"], container
    finally:
        buildah(storage, "rm", container)


def try_out(target: str, storage: Path, options: argparse.Namespace, gather: bytes, expected: str) -> None:
    with mounted(storage, f"localhost/seisbind:{target}") as (root, config, container):
        say(f"{target}: what the image says of itself")
        check(config["User"] == "10001:10001", f"user {config['User']}")
        own = buildah(storage, "run", "--isolation", "chroot", container, "--", "id", "-u").strip()
        check(own == "10001", f"buildah run: uid {own}")
        check(config["Healthcheck"]["Test"][0] == "CMD", f"health check {config['Healthcheck']['Test']}")
        found = sorted(
            COMPILERS & {path.name for each in ("usr/bin", "usr/local/bin") for path in (root / each).glob("*")}
        )
        check(not found, f"no compiler {found or ''}".rstrip())
        print(f"    largest packages: {largest_packages(root)}")
        data = Path(tempfile.mkdtemp(dir=options.cache))
        os.chown(data, 10001, 10001)
        try:
            if target == options.target[0]:
                interrupt_the_first_start(root, config, data, options.models)
            ask = Ask(gather, expected, RUNTIME[target])
            serve(root, config, data, options.models, ask, first=True)
            serve(root, config, data, options.models, ask, first=False)
            if {"bulk", "mdio"} <= set(options.extras):
                answer_in_bulk(root, config, data, options, expected)
        finally:
            shutil.rmtree(data)


def largest_packages(root: Path) -> str:
    (packages,) = (root / "opt/seisbind/lib").glob("python3*/site-packages")
    lines = run("du", "-sm", *(path for path in packages.iterdir() if path.is_dir())).splitlines()
    sizes = sorted(((int(line.split("\t")[0]), Path(line.split("\t")[1]).name) for line in lines), reverse=True)
    return ", ".join(f"{name} {size} MB" for size, name in sizes[:8])


def in_sandbox(
    root: Path, config: dict[str, Any], data: Path, command: list[str], environment: list[str]
) -> dict[str, Any]:
    """The arguments of `subprocess` for a command in a container."""
    user, _, group = config["User"].partition(":")
    return {
        "args": [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", SANDBOX, "sandbox"),
            *(*config["Env"], *environment, "sh", "-c", f'cd {config["WorkingDir"]}; exec "$@"', "sh", *command),
        ],
        "env": {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "ROOT": str(root), "DATA": str(data)}
        | {"UID_": user, "GID_": group},
    }


@contextmanager
def started(
    root: Path, config: dict[str, Any], data: Path, models: int
) -> Iterator[tuple[subprocess.Popen[bytes], Path, int]]:
    """The container's own command in a sandbox; its log and its port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    environment = [f"SAMPLE_MODELS={models}", "SEISBIND_HOST=127.0.0.1", f"SEISBIND_PORT={port}"]
    log = data.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen(
            **in_sandbox(root, config, data, [*config["Entrypoint"], *config["Cmd"]], environment),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process, log, port
    finally:
        process.kill()
        process.wait()
        log.unlink(missing_ok=True)


def first_process(process: subprocess.Popen[bytes]) -> int:
    """The process that is number 1 in the sandbox."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def status_of(process: int) -> dict[str, str]:
    """What Linux says of a process."""
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())


def processor_s(process: int) -> float:
    """Processor time of a process and of those that it has waited for, seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def interrupt_the_first_start(root: Path, config: dict[str, Any], data: Path, models: int) -> None:
    say("a first start, interrupted while it builds the gallery")
    with started(root, config, data, models) as (process, log, _):
        wait_for(lambda: (data / "gallery" / "building" / "records.sqlite").exists(), process, log)
        begun = time.monotonic()
        os.kill(first_process(process), signal.SIGTERM)
        code = process.wait(timeout=30)
        check(code == 0, f"SIGTERM: exit code {code} after {time.monotonic() - begun:.1f} s")
        check(not (data / "gallery" / "records.sqlite").exists(), "no half gallery")


def serve(root: Path, config: dict[str, Any], data: Path, models: int, ask: Ask, *, first: bool) -> None:
    say("the first start" if first else "the second start")
    begun = time.monotonic()
    with started(root, config, data, models) as (process, log, port):
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(f"{url}/readyz"), process, log)
        elapsed, server = time.monotonic() - begun, first_process(process)
        print(f"    ready after {elapsed:.1f} s, {processor_s(server):.1f} s of them on a processor")
        said = log.read_text()
        print("".join(f"    | {line}\n" for line in said.splitlines()), end="")
        check(("building one of" in said) is first, "builds its gallery" if first else "does not build again")
        check(f"embedded by {ask.runtime} on" in said, f"gathers are embedded by {ask.runtime}")
        status = status_of(server)
        check(
            status["Uid"].split() == ["10001"] * 4,
            f"uid {status['Uid'].split()[0]}, process {status['NSpid'].split()[-1]}",
        )
        check(int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, "no capability, effective or bounding")
        check(status["NoNewPrivs"].strip() == "1", "no new privileges")
        print(f"    memory when ready: {int(status['VmRSS'].split()[0]) / 1024:.0f} MiB")
        enter = ["nsenter", "--target", str(server), "--mount", "--pid", "--root", "--wd"]
        user = ["setpriv", "--reuid", "10001", "--regid", "10001", "--clear-groups"]
        for who, words in (("its user", user), ("even root", [])):
            writable = run(*enter, *words, "sh", "-c", WRITES).split()
            check(writable == ["/tmp", "/data"], f"{who} can write to {' '.join(writable)} only")
        healthy = [*config["Env"], f"SEISBIND_PORT={port}", *config["Healthcheck"]["Test"][1:]]
        code = subprocess.run([*enter, *user, "env", "-i", *healthy], check=False).returncode
        check(code == 0, f"the image's health check: exit code {code}")
        request = urllib.request.Request(f"{url}/v1/retrieve", ask.gather, {"Content-Type": "application/octet-stream"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        match = answer["results"][0]["matches"][0]
        found = f"{match['model_id']}, {match['family']}, similarity {match['similarity']:.3f}"
        print(f"    POST /v1/retrieve: rank 1 is {found}")
        check(match["model_id"] == ask.expected, "which is the model that the gather was simulated over")
        with urllib.request.urlopen(url + match["image_url"], timeout=60) as response:
            check(response.read(4) == b"\x89PNG", "its picture is drawn")
        request = urllib.request.Request(
            f"{url}/v1/check?top_k=1&include=", ask.gather, {"Content-Type": "application/octet-stream"}
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            best = json.load(response)["check"]["best"]
        check(best == "match 1", f"POST /v1/check: {best} explains the gather best")
        print(f"    most memory so far: {int(status_of(server)['VmHWM'].split()[0]) / 1024:.0f} MiB")
        os.kill(server, signal.SIGTERM)
        code = process.wait(timeout=40)
        check(code == 0, f"SIGTERM: exit code {code}")


def answer_in_bulk(root: Path, config: dict[str, Any], data: Path, options: argparse.Namespace, expected: str) -> None:
    say("bulk retrieval of an npy file and an MDIO store, by Ray")
    asked = data / "asked"
    asked.mkdir()
    shutil.copy(options.cache / "gather.npy", asked)
    run(options.python, "-c", STORE, asked / "gather.npy", asked / "gather.mdio", cwd=ROOT)
    command = ["seisbind", "bulk", "retrieve", "/data/asked", "--gallery", "/data/gallery", "--out", "/data/answers"]
    begun = time.monotonic()
    done = subprocess.run(
        **in_sandbox(root, config, data, [*command, "--engine", "ray"], []),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    print("".join(f"    | {line}\n" for line in done.stdout.splitlines()[-6:]), end="")
    check(done.returncode == 0, f"exit code {done.returncode} after {time.monotonic() - begun:.0f} s")
    found = run(options.python, "-c", READ, data / "answers").splitlines() if done.returncode == 0 else []
    check(len(found) == 2 and all(expected in line for line in found), f"{len(found)} answers, of {expected}")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=12):
            return True
    except OSError:
        return False


def wait_for(holds: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    begun = time.monotonic()
    while not holds():
        if process.poll() is not None or time.monotonic() - begun > DEADLINE_S:
            sys.exit(
                f"It ended with {process.poll()} or took longer than {DEADLINE_S:.0f} s: {log.read_text()[-2000:]}"
            )
        time.sleep(0.05)


UNPROVEN = """==> could not be proven here:
    - that Docker builds the same from python:3.11-slim-bookworm: the base was Debian's own, and buildah built
    - the cuda image with torch's CUDA build, and on a GPU
    - that images of Prometheus and Grafana can be pulled and run as docker-compose.yml has them
    - limits of memory and processes, published ports, restarts and networks, which a container engine makes
    - seccomp and AppArmor profiles of a container engine"""

if __name__ == "__main__":
    main()
