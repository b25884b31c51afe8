"""Whether two checkouts answer alike: some 200 requests of every kind to a server of each, over copies of one gallery.

    python benchmarks/compare_checkouts.py ../old .    # each with its own .venv, made by `make setup-dev`

Status, content type and body of every answer have to be the same; what differs by nature (times, request ids, the day)
is taken out first. The command line answers, too. Exits with 1 where something differs, and prints what.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import segyio

SHOTS_M = (0.0, 170.0, 340.0, 520.0, 690.0)
RECEIVERS_M = tuple(10.0 * i for i in range(70))
# one thread and one gather at a time: how gathers of a stream fall into batches moves their last digits
SETTINGS = {"SEISBIND_WRITABLE": "true", "SEISBIND_THREADS": "1", "SEISBIND_MAX_BATCH": "1"}
OCTETS = {"Content-Type": "application/octet-stream"}
VOLATILE = re.compile(
    rb'"(?:request_id|added_at|created_at|timings_ms|checksum)":\s*(?:"[^"]*"|\{[^}]*\}|[-+.e\d]+|null)'
    rb'|X-Request-ID: \S+|\d\d\d\d-\d\d-\d\dT[\d:.+Z-]+|"bytes":\s*\d+'
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; ``name`` says which in the report."""

    name: str
    method: str
    path: str
    more: dict[str, object] = field(default_factory=dict)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def segy(gather: np.ndarray, folder: Path, *, coding: int = 5) -> bytes:
    """``(shot, time, receiver)`` as SEG-Y revision 1 by segyio."""
    spec = segyio.spec()
    spec.format, spec.samples, spec.tracecount = coding, np.arange(gather.shape[1]), gather.shape[0] * gather.shape[2]
    path = folder / "gather.segy"
    with segyio.create(str(path), spec) as file:
        number = 0
        for shot, traces in enumerate(gather):
            for receiver in range(gather.shape[2]):
                file.header[number] = {
                    segyio.su.fldr: shot + 1, segyio.su.tracf: receiver + 1, segyio.su.trid: 1, segyio.su.scalco: 1,
                    segyio.su.counit: 1, segyio.su.sx: round(SHOTS_M[shot]), segyio.su.gx: round(RECEIVERS_M[receiver]),
                    segyio.su.ns: gather.shape[1], segyio.su.dt: 1000,
                }  # fmt: skip
                file.trace[number] = np.ascontiguousarray(traces[:, receiver])
                number += 1
        file.bin.update({segyio.BinField.Interval: 1000, segyio.BinField.MeasurementSystem: 1})
    return path.read_bytes()


def gathers(samples: Path) -> list[np.ndarray]:
    """Gathers ``(5, 1000, 70)`` made of the page's samples and of noise, by a seed."""
    rng = np.random.default_rng(0)
    found = []
    for path in sorted(samples.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            name = max(file.files, key=lambda each: file[each].size)
            gather = file[name].astype(np.float32)
        whole = np.zeros((5, 1000, 70), np.float32)
        gather = gather.reshape(-1, *gather.shape[-2:])[:5]
        stretched = np.repeat(gather, max(1, 1000 // gather.shape[1]), axis=1)[:, :1000, :70]
        whole[: len(stretched), : stretched.shape[1], : stretched.shape[2]] = stretched
        found.append(whole)
        found.append(whole + 0.05 * whole.std() * rng.standard_normal(whole.shape).astype(np.float32))
    return found


def requests(samples: Path, folder: Path, ids: list[str]) -> list[Ask]:
    """All that is asked, in order: what changes the gallery comes last."""
    rng = np.random.default_rng(1)
    asks: list[Ask] = []

    def ask(name: str, method: str, path: str, **more: object) -> None:
        asks.append(Ask(name, method, path, more))

    all_gathers = gathers(samples)
    for number, gather in enumerate(all_gathers):
        body = npy(gather)
        for query in ("", "?top_k=3", "?top_k=20&include=velocity", "?include=gather"):
            ask(f"retrieve npy {number} {query}", "POST", f"/v1/retrieve{query}", content=body, headers=OCTETS)
        ask(f"form {number}", "POST", "/v1/retrieve", files={"file": ("g.npy", body)}, data={"top_k": "2"})
        wanted = json.dumps({"family": ["FlatVel-A", "CurveFault-B"], "mean_velocity": [1800, 3600]})
        ask(f"filter {number}", "POST", "/v1/retrieve", files={"file": ("g.npy", body)}, data={"filter": wanted})
        ask(f"float64 {number}", "POST", "/v1/retrieve", content=npy(gather.astype(">f8")), headers=OCTETS)
        ask(f"4 ms {number}", "POST", "/v1/retrieve?dt_s=0.004", content=npy(gather[:, ::4]), headers=OCTETS)
        ask(f"half {number}", "POST", "/v1/retrieve", content=npy(gather[:, :800]), headers=OCTETS)
        every = ",".join(f"{x:g}" for x in RECEIVERS_M[::2])
        shots = ",".join(f"{x:g}" for x in SHOTS_M[1:4])
        ask(
            f"geometry {number}", "POST", f"/v1/retrieve?shot_x_m={shots}&receiver_x_m={every}",
            content=npy(gather[1:4, :, ::2]), headers=OCTETS,
        )  # fmt: skip
        ask(f"polarity {number}", "POST", "/v1/retrieve", content=npy(-3 * gather), headers=OCTETS)
        ask(f"segy {number}", "POST", "/v1/retrieve", content=segy(gather, folder), headers=OCTETS)
        ask(
            f"arrays {number}", "POST", "/v1/retrieve?top_k=2", content=body,
            headers=OCTETS | {"Accept": "application/x-npz"},
        )  # fmt: skip
        with_geometry = npz(gathers=gather, dt_s=np.float64(0.001), shot_x_m=np.array(SHOTS_M),
                            receiver_x_m=np.array(RECEIVERS_M))  # fmt: skip
        ask(f"npz {number}", "POST", "/v1/retrieve", content=with_geometry, headers=OCTETS)
    stack = np.stack(all_gathers)
    ask("stack", "POST", "/v1/retrieve?top_k=2", content=npy(stack), headers=OCTETS)
    ask("stream", "POST", "/v1/retrieve/stream?top_k=2", content=npy(stack), headers=OCTETS)
    ask("stream form", "POST", "/v1/retrieve/stream", files={"file": ("s.npy", npy(stack))}, data={"top_k": "1"})
    stack[3] = np.nan
    ask("stream with a fault", "POST", "/v1/retrieve/stream", content=npy(stack), headers=OCTETS)
    for number in range(4):
        layers = np.sort(rng.integers(1500, 4500, 5)).repeat(14)[:, None].repeat(70, 1).astype(np.float32)
        ask(f"search velocity {number}", "POST", "/v1/search?top_k=4", content=npy(layers), headers=OCTETS)
        wanted_physics = {"mean_velocity": float(rng.uniform(1800, 4000)), "interface_share": 0.05}
        ask(f"search physics {number}", "POST", "/v1/search", json={"descriptors": wanted_physics, "top_k": 3})
    ask(
        "search filtered",
        "POST",
        "/v1/search",
        json={"descriptors": {"max_velocity": 4000.0}, "filter": {"family": "Style-A"}},
    )
    for model_id in ids[:6]:
        for what in ("", "/velocity.npy", "/velocity.segy", "/image.png"):
            ask(f"model {model_id}{what}", "GET", f"/v1/models/{model_id}{what}")
    for path in ("/v1/gallery", "/v1/gallery/distribution", "/healthz", "/readyz", "/metrics"):
        ask(path, "GET", path)
    small = npy(all_gathers[0])
    for name, method, path, more in (
        ("unknown model", "GET", "/v1/models/none", {}),
        ("unknown path", "GET", "/v1/nothing", {}),
        ("method", "GET", "/v1/retrieve", {}),
        ("no type", "POST", "/v1/retrieve", {"content": small}),
        ("wrong type", "POST", "/v1/retrieve", {"content": small, "headers": {"Content-Type": "text/plain"}}),
        ("empty", "POST", "/v1/retrieve", {"content": b"", "headers": OCTETS}),
        ("junk", "POST", "/v1/retrieve", {"content": b"junk" * 100, "headers": OCTETS}),
        ("truncated", "POST", "/v1/retrieve", {"content": small[:5000], "headers": OCTETS}),
        ("nan", "POST", "/v1/retrieve", {"content": npy(np.full((5, 1000, 70), np.nan, "f4")), "headers": OCTETS}),
        ("flat", "POST", "/v1/retrieve", {"content": npy(np.ones((5, 1000, 70), "f4")), "headers": OCTETS}),
        ("axes", "POST", "/v1/retrieve", {"content": npy(np.ones((70, 70), "f4")), "headers": OCTETS}),
        ("short line", "POST", "/v1/retrieve", {"content": npy(np.ones((5, 1000, 9), "f4")), "headers": OCTETS}),
        ("top_k 0", "POST", "/v1/retrieve?top_k=0", {"content": small, "headers": OCTETS}),
        ("top_k text", "POST", "/v1/retrieve?top_k=few", {"content": small, "headers": OCTETS}),
        ("include", "POST", "/v1/retrieve?include=all", {"content": small, "headers": OCTETS}),
        ("filter json", "POST", "/v1/retrieve?filter=[", {"content": small, "headers": OCTETS}),
        ("filter key", "POST", "/v1/retrieve?filter={\"no\":1}", {"content": small, "headers": OCTETS}),
        ("unknown field", "POST", "/v1/retrieve?nothing=1", {"content": small, "headers": OCTETS}),
        ("descriptor", "POST", "/v1/search", {"json": {"descriptors": {"colour": 1}}}),
        ("json array", "POST", "/v1/search", {"json": [1]}),
        ("two files", "POST", "/v1/retrieve", {"files": [("file", ("a", small)), ("file", ("b", small))]}),
        ("form without file", "POST", "/v1/retrieve", {"files": {"other": ("a", small)}}),
        ("stream of junk", "POST", "/v1/retrieve/stream", {"content": b"junk", "headers": OCTETS}),
    ):  # fmt: skip
        ask(name, method, path, **more)
    ground = np.linspace(1600, 4200, 70, dtype="f4")[:, None].repeat(70, 1)
    added = {"file": ("v.npy", npy(ground))}
    ask("add", "POST", "/v1/models", files=added, data={"model_id": "compared", "family": "mine", "tags": "a,b"})
    ask("add again", "POST", "/v1/models", files=added, data={"model_id": "compared"})
    ask("add wrong cells", "POST", "/v1/models", files={"file": ("v.npy", npy(ground[:30]))})
    ask("added", "GET", "/v1/models/compared")
    ask("found", "POST", "/v1/search?top_k=2", content=npy(ground), headers=OCTETS)
    ask("remove", "DELETE", "/v1/models/compared")
    ask("remove again", "DELETE", "/v1/models/compared")
    ask("reload", "POST", "/v1/gallery/reload")
    ask("gallery at the end", "GET", "/v1/gallery")
    return asks


def plain(content: bytes, content_type: str) -> bytes:
    """A body without what differs from one run to the next; archives as digests of their arrays."""
    if content[:2] == b"PK":
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            parts = {}
            for name in file.files:
                array = file[name]
                raw = array.tobytes()
                if array.dtype == np.uint8:  # the JSON of the answer
                    parts[name] = VOLATILE.sub(b"", raw).decode()
                else:
                    parts[name] = f"{array.dtype} {array.shape} {hashlib.sha256(raw).hexdigest()}"
        return json.dumps(parts, sort_keys=True).encode()
    if content_type.startswith("text/plain"):
        return b"\n".join(sorted({line.split(b"{")[0].split(b" ")[0] for line in content.splitlines()}))
    return VOLATILE.sub(b"", content)


@contextlib.contextmanager
def server(checkout: Path, gallery: Path) -> Iterator[httpx.Client]:
    """A writable server of ``checkout`` over ``gallery``."""
    command = [str(checkout / ".venv" / "bin" / "seisbind"), "serve", "--port", "0", "--gallery", str(gallery)]
    log = gallery.with_suffix(".log")
    with log.open("wb") as errors, subprocess.Popen(
        command, cwd=gallery.parent, stdout=subprocess.PIPE, stderr=errors, text=True,
        env=os.environ | SETTINGS,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            url = ""
            while not url and (line := process.stdout.readline()):
                url = next((word.strip(".,") for word in line.split() if word.startswith("http://")), "")
            if not url:
                sys.exit(f"The server of {checkout} did not start: {log.read_text(errors='replace')}")
            with httpx.Client(base_url=url, timeout=60) as client:
                yield client
        finally:
            process.terminate()


def commands(checkout: Path, gallery: Path, gather: Path) -> dict[str, bytes]:
    """What the command line says, by command."""
    program = str(checkout / ".venv" / "bin" / "seisbind")
    answers = {}
    for arguments in (
        ["gallery", "info", str(gallery), "--json"],
        ["gallery", "verify", str(gallery), "--json"],
        ["retrieve", str(gather), "--gallery", str(gallery), "--json"],
        ["retrieve", str(gather), "--gallery", str(gallery), "--top-k", "2"],
        ["retrieve", "absent.npy", "--gallery", str(gallery)],
    ):
        done = subprocess.run([program, *arguments], capture_output=True, cwd=gallery.parent, check=False)
        said = done.stdout.replace(str(gallery).encode(), b"GALLERY")
        answers["$ " + " ".join(Path(a).name if "/" in a else a for a in arguments)] = (
            b"exit %d " % done.returncode + VOLATILE.sub(b"", said)
        )
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path, help="the old and the new one")
    parser.add_argument("--models", type=int, default=400, help="in the gallery")
    options = parser.parse_args()
    old, new = (each.resolve() for each in options.checkouts)
    heard: list[dict[str, tuple[str, bytes]]] = []
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        build = ["gallery", "build", str(made), "--count", str(options.models), "--seed", "3"]
        subprocess.run([str(old / ".venv" / "bin" / "seisbind"), *build], check=True, stdout=subprocess.DEVNULL)
        listed = json.loads(
            subprocess.run(
                [
                    str(old / ".venv" / "bin" / "python"), "-c",
                    "import sys, json, pathlib; from seisbind.index import Gallery; "
                    "print(json.dumps(Gallery.open(pathlib.Path(sys.argv[1]), fingerprint=None).model_ids()))",
                    str(made),
                ],
                check=True, capture_output=True,
            ).stdout
        )  # fmt: skip
        samples = old / "service" / "web" / "samples"
        asks = requests(samples, Path(folder), listed)
        gather = Path(folder) / "gather.npy"
        np.save(gather, gathers(samples)[0])
        for name, checkout in (("old", old), ("new", new)):
            gallery = Path(folder) / "gallery"  # one path for both, which sentences repeat
            shutil.copytree(made, gallery)
            answers: dict[str, tuple[str, bytes]] = {}
            for what, said in commands(checkout, gallery, gather).items():
                answers[what] = ("", said)
            with server(checkout, gallery) as client:
                for each in asks:
                    response = client.request(each.method, each.path, **each.more)  # type: ignore[arg-type]
                    kind = response.headers.get("content-type", "")
                    answers[each.name] = (f"{response.status_code} {kind}", plain(response.content, kind))
            heard.append(answers)
            gallery.rename(Path(folder) / name)
    before, after = heard
    different = [name for name in before if before[name] != after[name]]
    for name in different:
        print(f"DIFFERENT {name}: {before[name][0]} | {after[name][0]}")
        a, b = before[name][1], after[name][1]
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        print(f"   old … {a[max(0, at - 80) : at + 160]!r}\n   new … {b[max(0, at - 80) : at + 160]!r}")
    statuses = sorted({said.split()[0] for said, _ in before.values() if said})
    print(
        f"{len(before)} requests and commands, statuses {', '.join(statuses)}: {len(different)} answered differently."
    )
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
