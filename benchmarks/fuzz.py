"""Mutated uploads against a real server: npy, npz, SEG-Y, SU, SEG-2 and form fields, broken in all cheap ways.

    python benchmarks/fuzz.py [--count 20000] [--seed 0] [--weights W]

Each upload starts as a good file and a good form, and is mutated by up to three of: flipped bytes (in the header or
anywhere), extreme integers where headers have theirs, truncation, a piece doubled, dropped or taken from another file,
form fields of nonsense. Upload i depends on (seed, i) alone; those that break a promise are named with their number.
Promised: no answer in the 500s, the server lives, none takes longer than 5 s, every refusal is a problem+json with a
code, and in every answer the matches are ranked, of models that exist, and all numbers are numbers.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from seisbind.index import Gallery
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.survey.preparation import OPENFWI
from seisbind.service.engine.engine import canary_gather
from seisbind.service.engine.gallery_builder import build_gallery, random_models
from seisbind.service.formats.npy import npy

SLOWEST_S = 5.0
MODELS = 50  # in the gallery, before and after
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
NONSENSE = (
    *("", "0", "-1", "1e999", "nan", "inf", "9" * 400, "0,690", "1," * 3000, "null", "{}", "[]", "true", "1;2", "0x10"),
    *('{"family": 3}', '{"mean_velocity": [5, 1]}', '{"mean_velocity": [NaN, null]}', "../../etc/passwd"),
    *("\u00fc\u202e", "\x00"),
)
KINDS = ("application/octet-stream", "application/x-npy", "text/plain", "multipart/form-data; boundary=x")
SHARES = (0.85, 0.05, 0.05, 0.05)  # of the kinds
PARTS = ("value", "low", "high")  # of a quantity
FIELDS = ("top_k", "filter", "include", "dt_s", "shot_x_m", "receiver_x_m", "peak_hz", "unknown")
PATHS = ("/v1/retrieve", "/v1/retrieve", "/v1/retrieve", "/v1/retrieve/stream", "/v1/search")


def segy(gather: np.ndarray, dt_s: float, *, su: bool = False) -> bytes:
    """A gather ``(shot, time, receiver)`` as SEG-Y revision 1 (IEEE floats, big-endian), or as SU."""
    shots, samples, receivers = gather.shape
    order = "<" if su else ">"
    header = np.dtype(
        {
            "names": ["record", "channel", "kind", "scalar", "sx", "gx", "samples", "dt"],
            "formats": [order + kind for kind in ("i4", "i4", "i2", "i2", "i4", "i4", "u2", "u2")],
            "offsets": [8, 12, 28, 70, 72, 80, 114, 116],
            "itemsize": 240,
        }
    )
    trace = np.zeros(shots * receivers, np.dtype([("header", header), ("words", order + "f4", (samples,))]))
    h = trace["header"]
    h["record"], h["channel"] = np.repeat(np.arange(shots) + 1, receivers), np.tile(np.arange(receivers) + 1, shots)
    h["kind"], h["scalar"], h["samples"], h["dt"] = 1, 1, samples, round(dt_s * 1e6)
    h["sx"] = np.repeat(np.asarray(OPENFWI.shot_x_m[:shots], int), receivers)
    h["gx"] = np.tile(np.arange(receivers) * 10, shots)
    trace["words"] = gather.transpose(0, 2, 1).reshape(-1, samples)
    if su:
        return trace.tobytes()
    binary = bytearray(400)
    for at, value in ((3217, round(dt_s * 1e6)), (3221, samples), (3225, 5), (3255, 1), (3501, 256), (3503, 1)):
        binary[at - 3201 : at - 3199] = int(value).to_bytes(2, "big")
    return b"".join(f"C{n:2d}".ljust(80).encode("cp037") for n in range(1, 41)) + bytes(binary) + trace.tobytes()


def seg2(gather: np.ndarray, dt_s: float) -> bytes:
    """A gather ``(shot, time, receiver)`` as SEG-2, of int32 in little-endian order."""
    shots, samples, receivers = gather.shape
    blocks, pointers, at = [], [], 36 + 4 * shots * receivers
    for shot, receiver in np.ndindex(shots, receivers):
        text = b""
        for string in (
            f"SAMPLE_INTERVAL {dt_s}",
            f"SHOT_SEQUENCE_NUMBER {shot + 1}",
            f"CHANNEL_NUMBER {receiver + 1}",
            f"SOURCE_LOCATION {OPENFWI.shot_x_m[shot]} 0 0",
            f"RECEIVER_LOCATION {10 * receiver} 0 0",
            "DESCALING_FACTOR 1E-6",
        ):
            text += struct.pack("<H", len(string) + 3) + string.encode() + b"\0"
        text += bytes(4 - len(text) % 4)
        words = np.rint(gather[shot, :, receiver] * 1e6).astype("<i4").tobytes()
        block = struct.pack("<HHIIB19x", 0x4422, 32 + len(text), len(words), samples, 2) + text + words
        pointers.append(at)
        blocks.append(block)
        at += len(block)
    start = struct.pack("<HHHHBBBBBB18x", 0x3A55, 1, 4 * len(pointers), len(pointers), 1, 0, 0, 1, 10, 0)
    return start + struct.pack(f"<{len(pointers)}I", *pointers) + bytes(4) + b"".join(blocks)


def good_files() -> list[bytes]:
    """One small upload of each kind."""
    gather = canary_gather()[0, :, ::4, :]  # (5, 250, 70) at 4 ms
    files = [npy(array) for array in (gather, gather.astype(">f8")[None], gather.astype(np.float16))]
    for save in (np.savez, np.savez_compressed):
        body = io.BytesIO()
        receivers = np.arange(70) * 10.0
        save(body, gathers=gather, dt_s=0.004, shot_x_m=np.asarray(OPENFWI.shot_x_m), receiver_x_m=receivers)
        files.append(body.getvalue())
    velocity = npy(np.full((70, 70), 2000, np.float32))
    return [*files, segy(gather, 0.004), segy(gather, 0.004, su=True), seg2(gather, 0.004), velocity]


def mutated(body: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(body)
    for _ in range(rng.integers(1, 4)):
        n = len(out)
        if n < 8:
            break
        near = int(rng.choice([130, 4000, n, n]))
        at = int(rng.integers(0, min(near, n - 4)))
        match rng.integers(0, 7):
            case 0 | 1:
                out[at] ^= 1 << int(rng.integers(0, 8))
            case 2:
                width = int(rng.choice([1, 2, 4]))
                value = int(rng.choice(EXTREMES)) & (256**width - 1)
                out[at : at + width] = value.to_bytes(width, str(rng.choice(["big", "little"])))
            case 3:
                del out[at:]
            case 4:
                length = int(rng.integers(1, 2000))
                out[at:at] = out[at : at + length]
            case 5:
                del out[at : at + int(rng.integers(1, 2000))]
            case 6:
                start = int(rng.integers(0, len(other)))
                out[at : at + 500] = other[start : start + 500]
    return bytes(out)


def upload(number: int, seed: int, files: list[bytes]) -> tuple[str, dict[str, Any]]:
    """The path of upload ``number``, and what to send there."""
    rng = np.random.default_rng([seed, number])
    body = files[rng.integers(0, len(files))]
    if rng.random() < 0.8:
        body = mutated(body, files[rng.integers(0, len(files))], rng)
    path = PATHS[rng.integers(0, len(PATHS))]
    fields = {"dt_s": "0.004"} if rng.random() < 0.9 else {}
    if path == "/v1/retrieve" and rng.random() < 0.3:
        fields["include"] = "physics,velocity,traces"
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        fields[str(rng.choice(FIELDS))] = str(rng.choice(NONSENSE))
    if rng.random() < 0.5:
        name = str(rng.choice(["g.npy", "g.sgy", "../g", "", "g\r\nX: 1"]))
        return path, {"files": {"file": (name, body)}, "data": fields}
    return path, {"content": body, "params": fields, "headers": {"Content-Type": str(rng.choice(KINDS, p=SHARES))}}


def fault(response: httpx.Response, spent_s: float, slowest_s: float = SLOWEST_S) -> str | None:
    """The promise that an answer breaks, or None."""
    if response.status_code >= 500:
        return f"status {response.status_code}"
    if spent_s > slowest_s:
        return f"{spent_s:.1f} s"
    if response.is_success:
        return untrue(response)
    if response.status_code >= 400:
        try:
            if not response.json()["code"] or "problem+json" not in response.headers["content-type"]:
                return "no problem+json"
        except (ValueError, KeyError):
            return "no problem+json"
    return None


def untrue(response: httpx.Response) -> str | None:
    """What no answer may hold (a number that is none arrives as null), or None."""
    bodies = response.text.splitlines() if response.request.url.path.endswith("/stream") else [response.text]
    for body in bodies:
        try:
            answer = json.loads(body, parse_constant=lambda name: None)
            for result in answer.get("results", [answer["result"]] if "result" in answer else []):
                matches = result["matches"]
                if [match["rank"] for match in matches] != list(range(1, len(matches) + 1)):
                    return "ranks"
                if not all(match["model_id"].startswith("v-") for match in matches):
                    return "a model that does not exist"
                numbers = [match["similarity"] for match in matches]
                numbers += [value for match in matches for value in (match.get("descriptors") or {}).values()]
                numbers += [each[part] for each in (result.get("physics") or {}).values() for part in PARTS]
                if not all(isinstance(number, float) for number in numbers):
                    return "a number that is none"
        except (ValueError, KeyError, AttributeError) as error:
            return f"not as described: {error!r}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        embedder = Embedder.load(args.weights)
        build_gallery(folder / "gallery", embedder, random_models(MODELS, 0, None))
        command = [
            sys.executable,
            "-m",
            "seisbind",
            "serve",
            "--port",
            "0",
        ]
        command += ["--gallery", str(folder / "gallery"), *(["--weights", str(args.weights)] if args.weights else [])]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            with httpx.Client(base_url=_url(folder / "log", server), timeout=60) as http:
                report = attack(http, args.count, args.seed)
                good = http.post("/v1/retrieve?dt_s=0.004", files={"file": good_files()[0]})
                report["answers_after"] = good.is_success and server.poll() is None
        finally:
            server.terminate()
            server.wait(30)
        with Gallery.open(folder / "gallery", fingerprint=embedder.fingerprint) as gallery:
            report["models_after"] = len(gallery)
    print(json.dumps(report, indent=1))
    sys.exit(bool(report["faults"]) or not report["answers_after"] or report["models_after"] != MODELS)


def attack(http: httpx.Client, count: int, seed: int, *, slowest_s: float = SLOWEST_S) -> dict[str, Any]:
    """Send uploads 0 to ``count - 1``; counts by status and code, and what broke a promise."""
    files = good_files()
    answers: Counter[str] = Counter()
    faults: list[str] = []
    slowest = 0.0
    for number in range(count):
        path, sent = upload(number, seed, files)
        start = time.monotonic()
        try:
            response = http.post(path, **sent)
        except httpx.HTTPError as error:
            faults.append(f"{number}: {error!r}")
            continue
        spent = time.monotonic() - start
        slowest = max(slowest, spent)
        broken = fault(response, spent, slowest_s)
        if broken:
            faults.append(f"{number}: {broken} {response.text[:200]}")
        else:
            answers[f"{response.status_code} {response.json()['code'] if response.is_error else 'answered'}"] += 1
        if sys.stderr.isatty() and number % 100 == 0:
            print(f"\r{number} of {count}", end="", file=sys.stderr)
    return {
        "uploads": count,
        "seed": seed,
        "answers": dict(answers.most_common()),
        "slowest_s": round(slowest, 2),
        "faults": faults,
    }


def _url(log: Path, server: subprocess.Popen[bytes]) -> str:
    for _ in range(600):
        text = log.read_text(errors="replace")
        if "http://" in text:
            return "http://" + text.split("http://", 1)[1].split()[0].rstrip("/.,")
        if server.poll() is not None:
            break
        time.sleep(0.1)
    sys.exit(f"The server did not start: {log.read_text(errors='replace')}")


if __name__ == "__main__":
    main()
