"""Every fenced block of README, CONTRIBUTING, the model card and docs/ is run, or held to what it names.

`PLAN` says which. Run: as printed, but for sizes (`SMALLER`), addresses and folders. Held: where a container engine, a
GPU or hours would be needed; each command of a bash or console block then goes through the real parser of its
program, and what it names exists, but for those behind ``NAME=value``. Commands within sentences are held, too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml

import standin
from seisbind.model.ground.families import mixed
from seisbind.model.waves.wavefield import simulate
from seisbind.service.commands.main import app
from seisbind.service.formats.reader import read_gathers
from seisbind.service.http.app import openapi_document
from seisbind.service.jobs import keeper

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "model/weights/MODEL_CARD.md",
    *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
)
PROGRAMS = (
    "seisbind",
    "torchrun",
    "python",
    "make",
    "docker",
    "curl",
    "pip",
    ".venv/bin/pip",
    ".venv/bin/python",
    "git",
    "apt",
    "kubectl",
)
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"] | yaml.safe_load((ROOT / "docker/cluster.yml").read_text())["services"]

RUN = "run below"
# The first words of a block, and what becomes of it: RUN, or why it is held only.
PLAN = {
    ("README.md", "make demo"): "`seisbind demo` and the tests themselves",
    ("README.md", "docker compose up"): "needs a container engine",
    ("README.md", "gather "): "what `seisbind demo` prints; test_cli.py reads it",
    ("README.md", ".venv/bin/pip install"): "installs; the tests that it is about",
    ("README.md", "seisbind gallery build"): RUN,
    ("CONTRIBUTING.md", "graph TD"): "drawn from the imports; tests/test_rooms.py compares",
    ("CONTRIBUTING.md", "make check"): "ruff, mypy and the tests themselves",
    ("CONTRIBUTING.md", "import numpy"): RUN,
    ("CONTRIBUTING.md", "import io"): RUN,
    ("CONTRIBUTING.md", "from fastapi import"): RUN,
    ("CONTRIBUTING.md", "SEISBIND_WRITABLE=true seisbind serve"): "installs forty packages, and takes minutes",
    ("docs/capacity.md", "On CPUs"): "what benchmarks/capacity.py prints; tests/test_capacity.py compares",
    ("docs/capacity.md", "On GPUs"): "the same",
    ("docs/capacity.md", "Galleries."): "the same",
    ("docs/capacity.md", "2 x "): "what benchmarks/capacity_simulation.py printed, in minutes on one machine",
    ("docs/check.md", "seisbind check"): "tests/service/commands/test_check_command.py runs its like",
    (
        "docs/check.md",
        "import numpy",
    ): "makes the record of the pictures; tests/model/inversion/test_check.py has its like",
    ("docs/check.md", "seisbind gallery build"): "makes the pictures; tests/service/commands/test_check_command.py",
    ("docs/check.md", "┏"): "what it prints, with the shipped weights",
    ("docs/deploy.md", "docker compose"): "needs a container engine",
    ("docs/deploy.md", "seisbind-1  |"): "a container's log; docker/build_with_buildah.py prints it",
    ("docs/deploy.md", "$ seisbind gallery publish"): "needs a bucket; tests/index/test_replicas.py has one of its own",
    ("docs/deploy.md", "git pull"): "needs a container engine",
    ("docs/deploy.md", "kubectl create"): "needs a cluster; tests/test_kubernetes.py reads the files",
    ("docs/deploy.md", "[Service]"): "needs a service manager; tests/test_systemd.py has systemd read it",
    ("docs/deploy.md", "apt install"): "needs root and minutes; docker/build_with_buildah.py itself",
    ("docs/formats.md", "{"): RUN,
    ("docs/fwi.md", ""): RUN,
    ("docs/http.md", "$ python benchmarks/page_samples.py"): "writes into the source",
    ("docs/http.md", ""): RUN,
    ("docs/inspect.md", ""): RUN,
    ("docs/inspect.md", "┏"): "what `seisbind inspect` prints; compared below",
    ("docs/my_line.md", ""): RUN,
    ("docs/milvus.md", "pip install"): "needs a Milvus; tests/service/commands/test_gallery_cluster.py runs its like",
    ("docs/operations.md", "seisbind key new"): RUN,
    ("docs/operations.md", "scrape_configs"): RUN,
    ("docs/operations.md", "server {"): RUN,
    ("docs/operations.md", "seisbind gallery backup"): RUN,
    ("docs/physics.md", "python benchmarks/geology_statistics.py"): RUN,
    ("docs/pipelines.md", "seisbind bulk"): "names a bucket and a cluster; bulk/test_parts.py runs its like",
    ("docs/pipelines.md", ""): RUN,
    ("docs/scale.md", "$ seisbind retrieve line.sgy"): "tests/service/http/test_scale.py runs its like",
    ("docs/jobs.md", ""): RUN,
    ("docs/refine.md", "seisbind refine"): "takes minutes; tests/service/commands/test_refine_command.py",
    ("docs/section.md", ""): RUN,
    ("docs/training.md", "seisbind"): RUN,
    ("docs/operations.md", "seisbind serve --gallery gallery --workers"): "serves until it is ended; test_workers.py",
    ("docs/training.md", "torchrun"): "four processes; test_training.py runs two",
    ("docs/training.md", "seisbind simulate runs/line"): "minutes; tests/service/test_own_line.py runs its like",
    ("docs/training.md", "python benchmarks/own_frame.py"): "minutes; it runs the same commands",
    ("docs/training.md", '{"name"'): RUN,
    ("docs/training.md", "export GLIBC_TUNABLES"): RUN,
    ("docs/training.md", "python benchmarks/train_weights.py"): "hours",
}
SMALLER = {
    "--count 5000 --seed 1": "--count 40 --seed 1",
    "record my-line": "record my-line --length 1400",
    "--count 500 --per-file 100": "--count 5 --per-file 1",
    "--count 500": "--count 30",
    "--count 20000": "--count 20",
    "--gallery-size 1000": "--gallery-size 10",
    "seisbind train": "seisbind train --config recipe.json",
    "--start model/weights/seisbind.safetensors --config further": "--start runs/mine/weights.safetensors",
    "step_time.py": "step_time.py --config recipe.json --steps 1",
}  # fmt: skip
RECIPE = {"steps": 2, "batch": 8, "warmup": 1, "encoders": {"width": 8, "velocity_width": 8, "hidden": 16}}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    @property
    def plan(self) -> str:
        fit = [key for key in PLAN if key[0] == self.page and self.text.lstrip().startswith(key[1])]
        assert fit, f"{self}: neither run nor held; add it to PLAN"
        return PLAN[max(fit, key=lambda key: len(key[1]))]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks() -> Iterator[Block]:
    for page in PAGES:
        begun: tuple[int, str, list[str]] | None = None
        for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1):
            if not line.lstrip().startswith("```"):
                if begun:
                    begun[2].append(line)
            elif begun:
                yield Block(page, begun[0], begun[1], "\n".join(begun[2]) + "\n")
                begun = None
            else:
                begun = (number, line.strip(" `"), [])
        assert begun is None, f"{page}: a block without an end"


BLOCKS = list(read_blocks())


def those(page: str, *languages: str, start: str = "") -> list[Block]:
    found = [each for each in BLOCKS if each.page == page and each.language in languages]
    found = [each for each in found if each.text.startswith(start) and each.plan == RUN]
    assert found, f"{page}: no block in {languages} that starts with {start!r}"
    return found


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of each command; one with an open quote goes on in the next line."""
    begun = ""
    for line in text.replace("\\\n", " ").splitlines():
        begun += line + "\n"
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:
            continue
        begun = ""
        if words[:1] == ["$"]:
            words = words[1:]
        if words:
            yield words
    assert not begun, f"an open quote: {begun}"


def run(block: str, folder: Path, *, language: str = "bash", **environment: str) -> str:
    programs = str(Path(sys.executable).parent)
    command = [sys.executable, "-c", block] if language == "python" else ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"} | environment,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def smaller(text: str) -> str:
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    return text


def write_segy(path: Path, gather: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """``(shot, time, receiver)`` on OpenFWI's line as a SEG-Y file with IBM floats and its traces in no order."""
    segyio = pytest.importorskip("segyio", reason="segyio, which writes the SEG-Y files of this test, is not installed")
    shots, samples, receivers = gather.shape
    order = np.random.default_rng(0).permutation(shots * receivers)
    spec, field = segyio.spec(), segyio.TraceField
    spec.format, spec.samples, spec.tracecount = 1, np.arange(samples), len(order)
    path.parent.mkdir(exist_ok=True)
    with segyio.create(path, spec) as made:
        for i, (shot, receiver) in enumerate(zip(*np.divmod(order, receivers), strict=True)):
            made.header[i] = {
                field.FieldRecord: int(shot) + 1,
                field.TraceNumber: int(receiver) + 1,
                field.TraceIdentificationCode: 1,
                field.SourceX: (0, 170, 340, 520, 690)[shot],
                field.GroupX: 10 * int(receiver),
                field.SourceGroupScalar: 1,
                field.TRACE_SAMPLE_COUNT: samples,
                field.TRACE_SAMPLE_INTERVAL: 1000,
            }
            made.trace[i] = np.ascontiguousarray(gather[shot, :, receiver])
        made.bin.update(hdt=1000, hns=samples, mfeet=1)


def test_each_block_is_planned_and_each_plan_has_a_block() -> None:
    assert len(BLOCKS) > 30 and {each.page for each in BLOCKS} >= {key[0] for key in PLAN}
    for page, start in PLAN:
        assert any(b.page == page and b.text.lstrip().startswith(start) for b in BLOCKS), f"{page}: {start!r} is gone"
    known = {each for block in BLOCKS if block.plan == RUN for each in [(block.page, block.language)]}
    assert known == {
        ("README.md", "bash"),
        ("CONTRIBUTING.md", "python"),
        *(("docs/http.md", language) for language in ("python", "bash")),
        *(("docs/pipelines.md", language) for language in ("python", "bash")),
        *(("docs/operations.md", language) for language in ("bash", "yaml", "nginx")),
        ("docs/formats.md", "json"),
        ("docs/my_line.md", "bash"),
        *((f"docs/{page}.md", language) for page in ("fwi", "inspect") for language in ("python", "bash")),
        ("docs/physics.md", "bash"),
        *(("docs/jobs.md", language) for language in ("python", "bash")),
        *(("docs/section.md", language) for language in ("python", "bash")),
        *(("docs/training.md", language) for language in ("bash", "json")),
    }, "a test below has to run the blocks of this language"


@pytest.mark.long
def test_http_md_and_pipelines_md(serve: Any, make_gallery: Any, tmp_path: Path) -> None:
    server = serve(gallery=make_gallery(), writable=True)
    for page in ("docs/http.md", "docs/pipelines.md"):
        for block in those(page, "python", "bash"):
            run(block.text.replace("http://127.0.0.1:8000", server.url), tmp_path, language=block.language)
    assert (tmp_path / "model.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "model.npy").stat().st_size == 128 + 4 * 70 * 70
    assert len((tmp_path / "line.jsonl").read_text().splitlines()) == 1 + 3 + 6  # gathers of the three files


@pytest.mark.long
def test_section_md(serve: Any, gallery_path: Path, weights: Path, tmp_path: Path) -> None:
    server = serve()
    ours = f"--gallery {gallery_path} --weights {weights} --device cpu"
    for block in those("docs/section.md", "python", "bash"):
        text = block.text.replace("http://127.0.0.1:8000", server.url).replace("--gallery gallery", ours)
        run(text, tmp_path, language=block.language)
    assert json.loads((tmp_path / "windows.json").read_text())["windows"]
    assert (tmp_path / "section.png").read_bytes().startswith(b"\x89PNG")
    assert set(json.loads((tmp_path / "lines.ndjson").read_text().splitlines()[-1])) == {"section"}


def test_jobs_md(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "WORKER", (sys.executable, standin.__file__))
    server = serve(jobs=tmp_path / "jobs")
    for block in those("docs/jobs.md", "python", "bash"):
        said = run(block.text.replace("http://127.0.0.1:8000", server.url), tmp_path, language=block.language)
    assert said.splitlines()[-1].startswith("(70, 70)")
    lines = [json.loads(line) for line in (tmp_path / "lines.ndjson").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["iteration"]] == [1, 2, 3, 4, 5]
    assert (tmp_path / "refined.png").read_bytes().startswith(b"\x89PNG")
    assert server.http.get("/v1/jobs").json()["jobs"] == []


@pytest.mark.long
def test_my_line_md(gallery_path: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (block,) = those("docs/my_line.md", "bash")
    build, rest = block.text.split("\n", 1)  # README's block builds one
    assert build.startswith("seisbind gallery build gallery ")
    ours = f"--gallery {gallery_path} --weights {weights} --device cpu"
    said = run(smaller(rest).replace("--gallery gallery", ours), tmp_path, MPLBACKEND="agg")
    assert "With --scale auto it takes s = " in said and re.search(r"off the truth by \d+ m/s", said)
    assert (tmp_path / "my-line" / "section.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "my-line" / "start.nc").read_bytes().startswith(b"CDF")


@pytest.mark.parametrize("block", those("CONTRIBUTING.md", "python"), ids=str)
def test_a_recipe_of_contributing_md(block: Block, tmp_path: Path) -> None:
    run(block.text, tmp_path, language="python")


@pytest.mark.long
def test_readme_md_and_the_backup_of_operations_md(tmp_path: Path) -> None:
    """A gallery, a server, a gather, a line of files; then keys and a backup of that gallery."""
    velocity, _ = mixed(2, seed=7)
    gathers = simulate(velocity)
    np.save(tmp_path / "gather.npy", gathers[0])
    for i, gather in enumerate(gathers):
        write_segy(tmp_path / "line" / f"{i}.sgy", gather)
    (block,) = those("README.md", "bash")
    build, serve, *ask = smaller(block.text).splitlines()
    run(build, tmp_path)
    programs = str(Path(sys.executable).parent)
    words = [f"{programs}/{word}" if word == "seisbind" else word for word in shlex.split(serve, comments=True)]
    server = subprocess.Popen(
        words, cwd=tmp_path, env=os.environ | {"SEISBIND_PORT": "0"}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert said.startswith("Serving gallery at http://127.0.0.1:")
        for command in ask:
            run(command.replace("http://127.0.0.1:8000", said.split()[-1]), tmp_path)
    finally:
        server.terminate()
        server.communicate()
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2

    keys, copies = those("docs/operations.md", "bash")
    assert run(keys.text, tmp_path).count("seisbind_") >= 2
    assert run(copies.text, tmp_path).count("40 velocity models") >= 3
    for copy in ("backup", "restored", "both"):
        assert "40" in run(f"seisbind gallery verify {copy}", tmp_path)


def test_the_backup_of_deploy_md(make_gallery: Any, tmp_path: Path) -> None:
    """What runs inside of the container, here with a folder in place of /data."""
    (block,) = [each for each in BLOCKS if each.page == "docs/deploy.md" and "import sqlite3" in each.text]
    script, verify, _ = commands_of(block.text)
    shutil.copytree(make_gallery(), tmp_path / "gallery")
    run(script[script.index("-c") + 1].replace("/data", str(tmp_path)), tmp_path, language="python")
    run(shlex.join(verify[4:]).replace("/data", str(tmp_path)), tmp_path)


def test_the_scrape_of_operations_md() -> None:
    (block,) = those("docs/operations.md", "yaml")
    told = yaml.safe_load(block.text)["scrape_configs"][0]
    ours = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    assert told["job_name"] == ours["job_name"] and set(told) <= {*ours, "authorization", "static_configs"}
    if promtool := shutil.which("promtool"):
        subprocess.run(
            [promtool, "check", "config", "--syntax-only", "/dev/stdin"], input=block.text.encode(), check=True
        )


def test_the_proxy_of_operations_md(tmp_path: Path) -> None:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None or shutil.which("openssl") is None:
        pytest.skip("nginx (or openssl, which makes a certificate for it) is not here: its block is not checked")
    (block,) = those("docs/operations.md", "nginx")
    subprocess.run(
        shlex.split(
            "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out certificate -days 1 -subj /CN=seisbind"
        ),
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    own = f"pid {tmp_path}/pid; error_log stderr; events {{}}\nhttp {{ access_log off;\n"
    certificate = f"ssl_certificate {tmp_path}/certificate; ssl_certificate_key {tmp_path}/key;\n"
    (tmp_path / "nginx.conf").write_text(f"{own}{certificate}{block.text}}}\n")
    command = [nginx, "-t", "-q", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_formats_md_shows_is_what_is_said(tmp_path: Path) -> None:
    (block,) = those("docs/formats.md", "json")
    shown = json.loads(block.text)
    write_segy(tmp_path / "one.sgy", simulate(mixed(1, seed=7)[0])[0])
    ingest = json.loads(json.dumps(asdict(read_gathers((tmp_path / "one.sgy").read_bytes()).ingest)))
    assert [each["code"] for each in ingest["assumptions"]] == [each["code"] for each in shown["assumptions"]]
    assert {**ingest, "assumptions": None} == {**shown, "assumptions": None}


@pytest.fixture(scope="module")
def read_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a gather and the model that fwi.md reads from it, by the weights that ship."""
    folder = tmp_path_factory.mktemp("fwi")
    np.save(folder / "gather.npy", simulate(mixed(1, seed=7)[0])[0])
    run("seisbind gallery build gallery --count 20 --seed 1", folder)
    (block,) = those("docs/fwi.md", "bash")
    run(block.text, folder)
    return folder


def misfits(said: str) -> list[float]:
    return [float(each) for each in said.removeprefix("misfit ").split()]


@pytest.mark.long
def test_an_inversion_by_deepwave_begins(read_model: Path) -> None:
    pytest.importorskip("deepwave", reason="deepwave, which the recipe of fwi.md is for, is not installed")
    (block,) = those("docs/fwi.md", "python", start="import deepwave")
    found = misfits(run(block.text, read_model, language="python"))
    assert len(found) == 5 and found[-1] < 0.8 * found[0] < 0.8 * 0.05


@pytest.mark.skipif(
    importlib.util.find_spec("devito") is None, reason="devito is not installed: its recipe in fwi.md was not run"
)
def test_an_inversion_by_devito_begins(read_model: Path) -> None:
    (block,) = those("docs/fwi.md", "python", start="import numpy")
    found = misfits(run(block.text, read_model, language="python", DEVITO_LOGGING="ERROR"))
    assert len(found) == 4 and found[-1] < 0.9 * found[0] < 0.9 * 0.05


@pytest.mark.long
def test_what_inspect_md_shows_is_what_is_said(tmp_path: Path) -> None:
    (record,), (command,) = those("docs/inspect.md", "python"), those("docs/inspect.md", "bash")
    run(record.text, tmp_path, language="python")
    (shown,) = [block for block in BLOCKS if block.page == "docs/inspect.md" and block.text.startswith("┏")]
    said = run(command.text, tmp_path)
    assert re.sub(r"\d", "0", said) == re.sub(r"\d", "0", shown.text)  # machines round differently
    assert (tmp_path / "inspect.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_training_md_and_physics_md(tmp_path: Path) -> None:
    """Simulate, train, and the same in OpenFWI's layout."""
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    trained, further, simulated, other_line = those("docs/training.md", "bash", start="seisbind")
    run(smaller(simulated.text), tmp_path)
    (tmp_path / "OpenFWI").symlink_to(tmp_path / "runs" / "simulated")
    run(smaller(trained.text), tmp_path)
    run(smaller(further.text), tmp_path)
    (frame,) = those("docs/training.md", "json")
    (tmp_path / "short.json").write_text(frame.text)
    run(smaller(other_line.text), tmp_path)
    for page, start in (("docs/training.md", "export"), ("docs/physics.md", "python")):
        (block,) = those(page, "bash", start=start)
        assert run(smaller(block.text), tmp_path)


# What is held


@dataclass(frozen=True)
class Command:
    where: str
    words: tuple[str, ...]
    whole: bool  # not in a sentence, where arguments may be left out

    def __str__(self) -> str:
        return f"{self.where} {' '.join(self.words)[:50]}"


def read_commands() -> Iterator[Command]:
    for block in BLOCKS:
        if block.language in ("bash", "console"):
            for words in commands_of(block.text):
                yield Command(str(block), tuple(words), True)
    for page in PAGES:
        text = re.sub(r"^ *```.*?^ *```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
            words = found.split("`")[0].replace("\n", " ").split(" ")
            if words[0] in PROGRAMS and len(words) > 1:
                yield Command(page, tuple(shlex.split(" ".join(words), comments=True)), False)


COMMANDS = list(read_commands())


def of(*programs: str) -> list[Command]:
    found = [each for each in COMMANDS if each.words[0] in programs]
    assert found, f"no {' or '.join(programs)} is left in any page: take its test away"
    return found


UNFINISHED = ("MissingParameter", "NoArgsIsHelpError", "BadOptionUsage")  # the last: an option without its value


def seisbind_parses(words: tuple[str, ...], *, whole: bool) -> None:
    """By the command's own parser, types and bounds included; nothing is done."""
    command: Any = typer.main.get_command(app)
    waiting = [command]
    while waiting:
        one = waiting.pop()
        one.callback = lambda **_: None
        waiting += getattr(one, "commands", {}).values()
    try:
        command.main(list(words), prog_name="seisbind", standalone_mode=False)
    except Exception as error:
        if whole or type(error).__name__ not in UNFINISHED:
            raise AssertionError(f"seisbind {' '.join(words)}: {error}") from error


@pytest.mark.parametrize("command", of("seisbind", "torchrun"), ids=str)
def test_a_seisbind_command_is_one(command: Command) -> None:
    words = [word for word in command.words if not word.startswith(">")]
    seisbind_parses(tuple(words[words.index("seisbind") + 1 :]), whole=command.whole)


SCRIPTS = """
import argparse, json, runpy, sys
parse = argparse.ArgumentParser.parse_args
class Parsed(Exception): pass
def stop(self, *given, **more):
    parse(self, *given, **more)
    raise Parsed
argparse.ArgumentParser.parse_args = stop
for words in json.load(sys.stdin):
    sys.argv, sys.path[0] = words, words[0].rpartition("/")[0]
    try:
        runpy.run_path(words[0], run_name="__main__")
    except Parsed:
        print(*words)
"""


def test_scripts_take_the_options_that_they_are_given() -> None:
    """By each script's own parser: it ends there."""
    words = sorted({c.words[1:] for c in of("python") if c.words[1] != "examples/first_line.py"})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS], input=json.dumps(words), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [" ".join(each) for each in words]


@pytest.mark.parametrize("command", of("make"), ids=str)
def test_make_knows_its_targets(command: Command) -> None:
    subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *command.words[1:]], cwd=ROOT, capture_output=True, check=True
    )


@pytest.mark.parametrize("command", of("pip", ".venv/bin/pip", ".venv/bin/python"), ids=str)
def test_what_is_installed_or_tested_exists(command: Command) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in command.words[1:]:
        if found := re.fullmatch(r"(?:seisbind|\.)\[(.+)\]", word):
            assert set(found[1].split(",")) <= set(extras), word
        elif "/" in word or word.endswith(".txt"):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("command", of("curl"), ids=str)
def test_the_addresses_exist(command: Command) -> None:
    paths = [re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)) for path in openapi_document()["paths"]]
    (address,) = [word for word in command.words if word.startswith(("http://", "URL/"))]
    path = re.sub(r"^(http://127\.0\.0\.1:\d+|URL)|\?.*$", "", address)
    assert any(re.fullmatch(each, path) for each in paths), address


def services_of(words: list[str]) -> tuple[str, list[str]]:
    """The subcommand of `docker compose`, and what follows it; profiles and files that are named exist."""
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", [])}
    while words[0] == "--file":
        assert (ROOT / words[1]).is_file(), words
        words = words[2:]
    while words[0] == "--profile":
        assert words[1] in profiles, words
        words = words[2:]
    return words[0], words[1:]


TAKES_A_VALUE = ("--volume",)


@pytest.mark.parametrize("command", of("docker"), ids=str)
def test_what_docker_is_told_exists(command: Command) -> None:
    words = list(command.words[1:])
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    if words[0] == "build":
        assert (ROOT / words[words.index("-f") + 1]).is_file() and words[-1] == "."
        for word in words:
            assert "=" not in word or re.search(rf"^(ARG|FROM \S+ AS) {word.split('=')[0]}\b", dockerfile, re.MULTILINE)
        return
    assert words[0] == "compose"
    verb, rest = services_of(words[1:])
    assert verb in ("up", "run", "exec", "cp", "ps", "build"), verb
    while rest and rest[0].startswith("-"):
        assert rest[0] in ("--detach", "--rm", "--pull", *TAKES_A_VALUE), rest[0]
        rest = rest[2 if rest[0] in TAKES_A_VALUE else 1 :]
    if verb == "cp":
        rest = [rest[0].split(":")[0]]
    if rest:
        assert rest[0] in SERVICES, rest[0]
    if rest[1:2] == ["seisbind"]:
        seisbind_parses(tuple(rest[2:]), whole=True)


def test_no_command_is_left_unread() -> None:
    """Blocks hold these programs and no others."""
    known = {*PROGRAMS, "export", "id=$(curl"}
    first = {(each.words[0], each.where) for each in COMMANDS if "=" not in each.words[0]}
    assert {word for word, _ in first} <= known, first
