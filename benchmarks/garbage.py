"""Whether records that are no records of any ground are said to be in the gallery.

    python benchmarks/garbage.py [--count 200] [--gallery 2000 20000] [--sound 60] [--cache runs/garbage] [--json]

``--count`` records of each kind (seed 0; those made from sound ones are of ground, seed 37, that no gallery holds) go
the whole way of an uploaded one, `Engine.retrieve`, over galleries of random models (seed 41). Columns: the share with
``in_gallery`` above .2 and above .9, before (by the law of `presence` alone) and after (as served, where a record
unlike those of training has none); the share called unlike training.

Then what that costs: sound records, and disturbed ones, over ground that the smallest gallery holds, and over ground
that it does not. Columns: the share whose ``in_gallery`` is unknown; the share whose own model comes first, as served
(before and after alike) and by similarity alone; over new ground, how far the first match is from the truth, m/s, as
served and by similarity alone.

Ends with 1 where a kind that training cannot have had (those marked !) is above .2 in a record, matches change, or more
than 3 % of the clean records have no ``in_gallery``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from robustness import KINDS, white
from scipy.signal import butter, chirp, fftconvolve, sosfiltfilt

from seisbind.index import Gallery
from seisbind.model.confidence.ranking import CANDIDATES
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.frame import Survey
from seisbind.model.ground.families import mixed
from seisbind.model.survey.preparation import OPENFWI, prepare
from seisbind.model.waves.wavefield import simulate
from seisbind.service.engine.answers import Retrieval
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.terminal.console import counting

Array = NDArray[np.float32]
Rng = np.random.Generator
Maker = Callable[[Array, Rng], Array]  # sound records (n, 5, 1000, 70) at 1 ms -> what is made of them, or beside them

SOUND_SEED, GALLERY_SEED = 37, 41
PART = 2_000  # models of a gallery drawn at a time
AT_A_TIME = 50  # records
CLEAN_UNKNOWN = 0.03
TIME_S = np.arange(1000) * OPENFWI.dt_s


def noise(p: Array, rng: Rng) -> Array:
    return rng.standard_normal(p.shape, dtype=np.float32)


def band_noise(p: Array, rng: Rng, *, band_hz: tuple[float, float] = (5, 40)) -> Array:
    sos = butter(4, band_hz, btype="band", fs=1000, output="sos")
    return np.asarray(sosfiltfilt(sos, noise(p, rng), axis=2), np.float32)


def walk(p: Array, rng: Rng) -> Array:
    return np.cumsum(noise(p, rng), axis=2)


def spikes(p: Array, rng: Rng, *, count: int) -> Array:
    """``count`` samples of each record, anywhere, the rest zero."""
    out = np.zeros(p.shape, np.float32)
    for record in out.reshape(len(p), -1):
        record[rng.choice(record.size, count, replace=False)] = rng.choice([-1.0, 1.0], count)
    return out


def spike_a_trace(p: Array, rng: Rng) -> Array:
    out = np.zeros(p.shape, np.float32)
    np.put_along_axis(out, rng.integers(0, p.shape[2], (*p.shape[:2], 1, p.shape[3])), 1.0, axis=2)
    return out


def live_traces(p: Array, rng: Rng, *, count: int) -> Array:
    """The same ``count`` receivers of each shot, the others dead."""
    out = np.zeros(p.shape, np.float32)
    for record, sound in zip(out, p, strict=True):
        at = rng.choice(p.shape[3], count, replace=False)
        record[:, :, at] = sound[:, :, at]
    return out


def constants(p: Array, rng: Rng) -> Array:
    """Each trace stuck at a value of its own, with a thousandth of noise."""
    level = rng.standard_normal((*p.shape[:2], 1, p.shape[3]), dtype=np.float32)
    return level + np.float32(1e-3) * noise(p, rng)


def sinusoid(p: Array, rng: Rng, *, phases: bool) -> Array:
    hz = rng.uniform(5, 40, (len(p), 1, 1, 1))
    phase = rng.uniform(0, 2 * np.pi, (*p.shape[:2], 1, p.shape[3])) if phases else 0.0
    return np.broadcast_to(np.sin(2 * np.pi * hz * TIME_S[:, None] + phase), p.shape).astype(np.float32)


def traces_shuffled(p: Array, rng: Rng) -> Array:
    return np.stack([[shot[:, rng.permutation(p.shape[3])] for shot in record] for record in p])


def shots_shuffled(p: Array, rng: Rng) -> Array:
    """No shot where it is said to be."""
    return np.stack([record[np.roll(np.arange(5), rng.integers(1, 5))] for record in p])


def mirrored_traces(p: Array, rng: Rng) -> Array:
    """Each shot's traces in reverse order, the shots as they are."""
    return p[..., ::-1]


def other_grounds(p: Array, rng: Rng) -> Array:
    """Each shot over another ground."""
    rows = np.stack([rng.permutation(len(p)) if len(p) > 1 else np.zeros(1, int) for _ in range(5)])
    return np.stack([p[rows[shot], shot] for shot in range(5)], axis=1)


def reversed_time(p: Array, rng: Rng) -> Array:
    return p[:, :, ::-1]


def polarities(p: Array, rng: Rng) -> Array:
    return p * rng.choice(np.float32([-1, 1]), (*p.shape[:2], 1, p.shape[3]))


def filtered(p: Array, rng: Rng, *, corner_hz: float, kind: str) -> Array:
    sos = butter(6, corner_hz, btype=kind, fs=1000, output="sos")
    return np.asarray(sosfiltfilt(sos, p, axis=2), np.float32)


def swept(p: Array, rng: Rng) -> Array:
    """As a vibrator's record is before correlation: convolved with a sweep of .4 s."""
    sweep = chirp(np.arange(400) * 1e-3, 6, 0.4, 60)[:, None].astype(np.float32)
    return np.asarray(fftconvolve(p, sweep[None, None], axes=2)[:, :, :1000], np.float32)


def twice_as_fast(p: Array, rng: Rng) -> Array:
    """A sampling interval that is wrong by a factor of two."""
    out = np.zeros(p.shape, np.float32)
    out[:, :, :500] = p[:, :, ::2]
    return out


GARBAGE: dict[str, Maker] = {
    "white noise !": noise,
    "noise of 5-40 Hz !": band_noise,
    "random walks !": walk,
    "one spike in one trace !": lambda p, rng: spikes(p, rng, count=1),
    "twenty spikes !": lambda p, rng: spikes(p, rng, count=20),
    "one spike in every trace !": spike_a_trace,
    "one live trace of 70 !": lambda p, rng: live_traces(p, rng, count=1),
    "two live traces of 70 !": lambda p, rng: live_traces(p, rng, count=2),
    "three live traces of 70 !": lambda p, rng: live_traces(p, rng, count=3),
    "constants and a little noise !": constants,
    "one sinusoid !": lambda p, rng: sinusoid(p, rng, phases=False),
    "sinusoids of any phase !": lambda p, rng: sinusoid(p, rng, phases=True),
    "traces shuffled !": traces_shuffled,
    "time reversed !": reversed_time,
    "uncorrelated sweep": swept,
    "only above 40 Hz !": lambda p, rng: filtered(p, rng, corner_hz=40, kind="highpass"),
    "only below 5 Hz !": lambda p, rng: filtered(p, rng, corner_hz=5, kind="lowpass"),
    "twice as fast": twice_as_fast,
    "shots shuffled !": shots_shuffled,
    "shots of five grounds": other_grounds,
    "receivers in reverse !": mirrored_traces,
    "polarity of each trace at random !": polarities,
    "sound, with 0 dB of noise !": lambda p, rng: white(p, rng, decibel=0)[0],
}
SOUND = (
    "clean",
    "white noise at 30 dB",
    "white noise at 20 dB",
    "white noise at 10 dB",
    "noise of 5-40 Hz at 20 dB",
    "20 % dead traces",
    "a single shot",
    "clipped at 4 rms *",
    "surface wave at 0.1 rms *",
    "surface wave at 1 rms *",
)


def without_gate(embedder: Embedder) -> Embedder:
    """The same weights, to which no record is unlike those of training."""
    description = embedder.weights.description
    if description.calibration is None:
        sys.exit("These weights are not calibrated: there is no in_gallery to measure.")
    ranges = replace(description.calibration.novelty, limit=float("inf"))
    calibration = replace(description.calibration, novelty=ranges)
    weights = replace(embedder.weights, description=replace(description, calibration=calibration))
    return Embedder(weights, device=str(embedder.device))


def asked(engine: Engine, records: Array, survey: Survey = OPENFWI) -> list[Retrieval]:
    parts = [records[at : at + AT_A_TIME] for at in range(0, len(records), AT_A_TIME)]
    return [one for part in parts for one in engine.retrieve(part, survey, top_k=CANDIDATES)]


def shares(answers: Sequence[Retrieval]) -> tuple[float, float]:
    """Of ``in_gallery``, how many above .2 and above .9; unknown is neither."""
    said = np.array([np.nan if one.in_gallery is None else one.in_gallery for one in answers])
    return float((said > 0.2).mean()), float((said > 0.9).mean())


def kept(path: Path, made: Callable[[], Array]) -> Array:
    if not path.exists():
        part = path.with_suffix(".part.npy")
        np.save(part, made())
        part.rename(path)
    return np.asarray(np.load(path, allow_pickle=False))


def simulated(velocity: Array) -> Array:
    out = []
    with counting("Simulating gathers", len(velocity)) as progress:
        for number, model in enumerate(velocity, start=1):
            out.append(simulate(model, engine="deepwave")[0])
            progress(number)
    return np.stack(out)


def gallery_of(count: int, embedder: Embedder, cache: Path, first: Array | None = None) -> Path:
    """A gallery of ``count`` random models, ``first`` among them where they are given."""
    path = cache / f"gallery-{count}-{embedder.fingerprint}{'' if first is None else '-sound'}"
    if path.exists():
        return path
    batches = [] if first is None else [(first, [None] * len(first))]
    with counting(f"Building a gallery of {count}", count) as progress:

        def models() -> Any:
            yield from batches
            for at in range(0, count, PART):
                velocity, family = mixed(min(PART, count - at), GALLERY_SEED + at)
                yield velocity, family.tolist()

        build_gallery(path, embedder, models(), source="benchmarks/garbage.py", progress=progress)
    return path


def firsts(answers: Sequence[Retrieval]) -> tuple[list[str], list[str]]:
    """Ids of the first matches as served, and of the most similar ones."""
    served = [one.matches[0].model_id for one in answers]
    return served, [max(one.matches, key=lambda match: match.similarity).model_id for one in answers]


def shares_of(found: Sequence[Sequence[str]], own: Sequence[str]) -> list[float]:
    return [float(np.mean([each == truth for each, truth in zip(ids, own, strict=True)])) for ids in found]


def off_m_s(found: Sequence[Sequence[str]], truth: Array, gallery: Gallery) -> list[float]:
    """Mean absolute differences of the models ``found`` from the truth."""
    return [float(np.mean([np.abs(one - own).mean() for one, own in zip(gallery.velocities(ids), truth, strict=True)]))
            for ids in found]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="records of each kind")
    parser.add_argument("--gallery", type=int, nargs="+", default=[2_000, 20_000], help="models in each gallery")
    parser.add_argument("--sound", type=int, default=60, help="records that are simulated")
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--cache", type=Path, default=Path("runs/garbage"), help="galleries and gathers are kept here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    after = Embedder.load(args.weights)
    before = without_gate(after)
    ground, _ = mixed(args.sound, SOUND_SEED)
    sound = kept(args.cache / f"sound-{args.sound}.npy", lambda: simulated(ground))
    broken, rows = False, []
    for size in args.gallery:
        with Gallery.open(gallery_of(size, after, args.cache), fingerprint=after.fingerprint) as gallery:
            engines = Engine(before, gallery), Engine(after, gallery)
            for kind, make in GARBAGE.items():
                records = make(np.resize(sound, (args.count, *sound.shape[1:])), np.random.default_rng(0))
                was, now = (asked(engine, records) for engine in engines)
                row = {"gallery": size, "kind": kind, "before": shares(was), "after": shares(now)}
                row["unlikely"] = float(np.mean([one.in_distribution.likely is False for one in now]))
                rows.append(row)
                broken |= kind.endswith("!") and row["after"][0] > 0
                broken |= [one.matches for one in was] != [one.matches for one in now]
    costs = []
    smallest = min(args.gallery)
    holds = gallery_of(smallest, after, args.cache, ground)
    lacks = gallery_of(smallest, after, args.cache)
    with (
        Gallery.open(holds, fingerprint=after.fingerprint) as held,
        Gallery.open(lacks, fingerprint=after.fingerprint) as new,
    ):
        ids = held.model_ids()[: len(ground)]
        for kind in SOUND:
            records, survey = KINDS[kind](prepare(sound).traces, np.random.default_rng(0))
            was, now = (asked(Engine(one, held), records, survey) for one in (before, after))
            broken |= [one.matches for one in was] != [one.matches for one in now]
            row = {"kind": kind, "unknown": float(np.mean([one.in_gallery is None for one in now]))}
            row["first"] = shares_of(firsts(now), ids)
            row["off"] = off_m_s(firsts(asked(Engine(after, new), records, survey)), ground, new)
            costs.append(row)
            broken |= kind == "clean" and row["unknown"] > CLEAN_UNKNOWN
    if args.json:
        print(json.dumps({"weights": after.fingerprint, "garbage": rows, "costs": costs}, indent=1))
        sys.exit(broken)
    print(f"weights {after.fingerprint}; {args.count} records a kind; seeds 0, {SOUND_SEED} and {GALLERY_SEED}")
    print("| models | records | above .2, before | above .9 | above .2, after | above .9 | unlike training |")
    print(7 * "|---" + "|")
    for row in rows:
        numbers = (*row["before"], *row["after"], row["unlikely"])
        print(f"| {row['gallery']} | {row['kind']} | " + " | ".join(f"{each:.3f}" for each in numbers) + " |")
    print(f"\n{len(ground)} sound records, gallery of {smallest} (and their ground)")
    print("| records | in_gallery unknown | own model first | by similarity | new ground, m/s off | by similarity |")
    print(6 * "|---" + "|")
    for row in costs:
        print(
            f"| {row['kind']} | {row['unknown']:.3f} | {row['first'][0]:.3f} | {row['first'][1]:.3f} | "
            f"{row['off'][0]:.0f} | {row['off'][1]:.0f} |"
        )
    sys.exit(broken)


if __name__ == "__main__":
    main()
