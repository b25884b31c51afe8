"""What a wheel holds, and that the packages are reached by one name only."""

import ast
import importlib.metadata
import os
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import pytest

import seisbind

ROOT = Path(__file__).parents[1]
PACKAGES = ("service", "model", "index")


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)


def tracked() -> list[str]:
    """Files that git tracks; a source archive without git cannot be checked."""
    listed = run("git", "ls-files", "-z", cwd=ROOT)
    if listed.returncode != 0:
        pytest.skip(f"git does not list this checkout: {listed.stderr.strip()}")
    return [name for name in listed.stdout.split("\0") if name]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (source / name).symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file():
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out),
        str(source),
    ]
    built = run(sys.executable, *command, cwd=out)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


def test_the_package_is_the_folders() -> None:
    """Relative links that git tracks: what tools find under src/seisbind is what people find at the top."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert listed["packages"] == {"find": {"where": ["src"]}}
    links = {path.name: path.readlink().as_posix() for path in (ROOT / "src/seisbind").iterdir() if path.is_symlink()}
    assert links == {name: f"../../{name}" for name in PACKAGES}


def test_the_public_face() -> None:
    """All that it names is there, cheap until it is asked for, and its version is the distribution's."""
    code = "import seisbind, sys; print(sorted({'torch', 'faiss', 'numpy', 'httpx'} & set(sys.modules)))"
    assert run(sys.executable, "-c", code, cwd=ROOT).stdout == "[]\n"
    assert seisbind.__version__ == importlib.metadata.version("seisbind")
    assert sorted(seisbind.__all__) == dir(seisbind)
    for name in seisbind.__all__:
        assert getattr(seisbind, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        seisbind.nothing  # noqa: B018
    hints = ast.parse((ROOT / "src/seisbind/__init__.py").read_text(encoding="utf-8"))
    (typed,) = (node for node in hints.body if isinstance(node, ast.If))
    named = {alias.asname for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert named == set(seisbind.__all__) - {"__version__"}  # what type checkers see is what there is


@pytest.mark.parametrize("name", PACKAGES)
def test_a_bare_import_is_refused(name: str) -> None:
    result = run(sys.executable, "-c", f"import {name}", cwd=ROOT)
    assert result.returncode == 1 and f"import seisbind.{name}" in result.stderr


def test_the_wheel_has_everything_and_imports_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"seisbind/__init__.py", "seisbind/__main__.py", "seisbind/py.typed"} <= set(names)
    for package in PACKAGES:
        assert f"seisbind/{package}/py.typed" in names
        for module in (ROOT / package).rglob("*.py"):
            assert f"seisbind/{module.relative_to(ROOT).as_posix()}" in names
    for weights in (ROOT / "model" / "weights").glob("*"):
        assert f"seisbind/model/weights/{weights.name}" in names
    for web in (ROOT / "service" / "web").rglob("*"):
        assert web.is_dir() or f"seisbind/service/{web.relative_to(ROOT / 'service').as_posix()}" in names
    assert not [name for name in names if "test" in name or "runs/" in name]
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import seisbind.service.commands.main as c, seisbind.model.encoders.weights_file as w; "
        "print(c.__file__, w.SHIPPED)"
    )
    result = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert all(path.startswith(str(tmp_path)) for path in result.stdout.split())


def test_the_wheel_serves(wheel: Path, tmp_path: Path) -> None:
    """Promise 30: a gallery is built and served with the weights of the wheel, and nothing of this checkout."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-P", "-m", "seisbind"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "SEISBIND_DEVICE": "cpu", "SEISBIND_PORT": "0"}
    built = run(*command, "gallery", "build", "gallery", "--count", "20", cwd=tmp_path, **environment)
    assert built.returncode == 0, built.stderr
    with subprocess.Popen(
        [*command, "serve"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = next(
                word.strip(".,") for line in server.stdout for word in line.split() if word.startswith("http://")
            )
            with urllib.request.urlopen(f"{url}/readyz", timeout=60) as ready:
                assert ready.status == 200
            with urllib.request.urlopen(url, timeout=60) as page:
                assert b"20 velocity models" in page.read()
        finally:
            server.terminate()
    assert server.returncode == 0


def test_every_dependency_says_why() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [")
    for line in lines[start + 1 : lines.index("]", start)]:
        assert "#" in line, line


def test_constraints_pin_what_is_required() -> None:
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in project["dependencies"] + extras["simulation"] + extras["dev"] + extras["browser"]:
        name = requirement.split(">")[0].split("<")[0].split("[")[0].strip().lower()
        assert name in pinned | {"seisbind"}, name


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]])
def test_the_house_is_clean(command: list[str]) -> None:
    result = run(sys.executable, "-m", *command, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_path_of_a_developers_machine_is_committed() -> None:
    """Absolute paths of home or work folders, in any tracked text file."""
    needles = ["/" + "work/", "/" + "root/", "/" + "home/"]
    for name in tracked():
        path = ROOT / name
        if path.is_symlink() or not path.is_file() or path.suffix in {".safetensors", ".png", ".faiss", ".sqlite"}:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        found = [needle for needle in needles if needle in text]
        assert not found, f"{name} mentions {found}"
