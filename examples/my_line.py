"""A line like one's own, to walk docs/my_line.md with: recorded over known ground, and compared with what was read.

    python examples/my_line.py record my-line     # my-line/line.sgy, and the ground under it: my-line/truth.npz
    python examples/my_line.py compare my-line    # my-line/section.npz beside the truth: my-line/section.png

With --source impulsive the first shoots dynamite of 3 to 15 Hz instead, as it is recorded.

The ground is `geology`'s of one kind and seed, 5 km long and 1.4 km deep in cells of 10 m. Receivers every 20 m stay
where they are, a shot every 100 m; 2.2 s every 4 ms of a zero-phase source of 4 to 15 Hz, as correlated sweeps have it,
noise 26 dB below the record. By deepwave with absorbing edges: no surface waves, no multiples of the surface.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import seisbind
from seisbind.model.ground.geology import MAKERS, draw_section
from seisbind.model.waves.wavelet import band_wavelet

CELL_M, DEPTH_CELLS = 10.0, 140
RECEIVER_M, SHOT_M = 20, 100
DT_S, KEPT, SAMPLES = 0.001, 4, 2200  # simulated; of them every fourth is recorded
BEFORE = 250  # samples from the source's first to its middle, which is time zero
NOISE_DB = 26.0


def record(out: Path, kind: str, seed: int, length_m: float, *, impulsive: bool) -> None:
    """Draw the ground, shoot the line over it, and write both."""
    cells = round(length_m / CELL_M)
    rng = np.random.default_rng(seed)
    velocity = draw_section(rng, kind, cells, depth_cells=DEPTH_CELLS).astype(np.float32)
    shots, receivers = np.arange(50, length_m, SHOT_M), np.arange(0, length_m, RECEIVER_M)
    gathers = []
    low_hz, before = (3.0, 0) if impulsive else (4.0, BEFORE)
    wavelet = band_wavelet(low_hz, 15.0, DT_S, slopes=(3, 4), impulsive=impulsive, delay_s=before * DT_S)
    for shot in shots:
        survey = seisbind.Survey((float(shot),), tuple(receivers), DT_S, 8.0, CELL_M, CELL_M)
        made = seisbind.simulate(velocity, survey=survey, samples=before + SAMPLES, cell_m=CELL_M, wavelet=wavelet)
        gathers.append(made[0, 0, before::KEPT])
        print(f"\rshot {len(gathers)} of {len(shots)}", end="", flush=True)
    traces = np.stack(gathers).transpose(0, 2, 1)  # (shot, receiver, time)
    level = np.sqrt(np.square(traces).mean()) * 10 ** (-NOISE_DB / 20)
    traces += level * rng.standard_normal(traces.shape, dtype=np.float32)
    (out / "line.sgy").write_bytes(segy(traces, shots, receivers))
    np.savez(out / "truth.npz", velocity=velocity, cell_m=CELL_M)
    print(f"\n{out / 'line.sgy'}: {len(shots)} shots into {len(receivers)} receivers over {length_m:g} m of {kind}")


def segy(traces: np.ndarray, shots: np.ndarray, receivers: np.ndarray) -> bytes:
    """SEG-Y of revision 1 with the few headers that matter: positions, sampling, and what the numbers mean."""
    count, each, samples = traces.shape
    header = np.zeros(count * each, {
        "names": ["file_trace", "field_record", "kind", "scalco", "source_x", "group_x", "units", "samples", "dt_us"],
        "formats": [">i4", ">i4", ">i2", ">i2", ">i4", ">i4", ">i2", ">u2", ">u2"],
        "offsets": [4, 8, 28, 70, 72, 80, 88, 114, 116], "itemsize": 240,
    })  # fmt: skip
    header["file_trace"], header["kind"], header["scalco"] = np.arange(count * each) + 1, 1, 1
    header["units"], header["samples"], header["dt_us"] = 1, samples, round(DT_S * KEPT * 1e6)
    header["field_record"], header["source_x"] = np.repeat(np.arange(count) + 1, each), np.repeat(shots, each)
    header["group_x"] = np.tile(receivers, count)
    file = bytearray(b"\x40" * 3200 + bytes(400))  # EBCDIC spaces; big-endian numbers from byte 3201 on
    for byte, value in ((3217, round(DT_S * KEPT * 1e6)), (3221, samples), (3225, 5), (3255, 1), (3501, 0x100)):
        file[byte - 1 : byte + 1] = value.to_bytes(2, "big")
    rows = traces.reshape(count * each, samples).astype(">f4")
    return bytes(file) + b"".join(h.tobytes() + row.tobytes() for h, row in zip(header, rows, strict=True))


def compare(out: Path) -> None:
    """Print what the section is off by, and draw it beside the truth."""
    with np.load(out / "truth.npz", allow_pickle=False) as found:
        truth, cell_m = found["velocity"], float(found["cell_m"])
    with np.load(out / "section.npz", allow_pickle=False) as found:
        read = {name: found[name] for name in found.files}
    rows = np.rint(read["depth_m"] / cell_m).astype(int)
    rows = rows[rows < len(truth)]
    for name in {"depth_m", "velocity", "low", "high", "disagreement"} & set(read):
        read[name] = read[name][: len(rows)]  # the truth ends there
    columns = np.rint(read["x_m"] / cell_m).astype(int)
    known = (read["weight"] > 0) & (columns >= 0) & (columns < truth.shape[1])
    true = np.full(read["velocity"].shape, np.nan)
    true[:, known] = truth[np.ix_(rows, columns[known])]
    off = np.abs(read["velocity"] - true)
    print(f"off the truth by {np.nanmean(off):.0f} m/s, {np.nanmean(off / true):.1%}; below half the depth "
          f"{np.nanmean(off[len(off) // 2 :]):.0f} m/s")  # fmt: skip
    depth = read["depth_m"]
    fits = [np.polyfit(np.tile(depth, stop - start), true[:, start:stop].T.ravel(), 1)
            for start, stop in windows(known)]  # fmt: skip
    straight = [np.abs(np.polyval(fit, depth)[:, None] - true[:, start:stop]).mean()
                for fit, (start, stop) in zip(fits, windows(known), strict=True)]  # fmt: skip
    print(f"the best straight lines v(z) of the truth, one for each 70 columns, are off by {np.mean(straight):.0f} m/s")
    doubt, name = read["disagreement"], "windows disagree, m/s"
    if "low" in read:
        doubt, name = (read["high"] - read["low"]) / 2, "half of 90 % interval, m/s"
        inside = (read["low"] <= true) & (true <= read["high"])
        print(f"{inside[:, known].mean():.0%} of the cells lie in their 90 % interval")

    figure, axes = plt.subplots(4, 1, figsize=(11, 10), sharex=True, layout="constrained", height_ratios=(3, 3, 3, 1))
    extent = (read["x_m"][0], read["x_m"][-1], depth[-1], depth[0])
    whole = (0, truth.shape[1] * cell_m, len(truth) * cell_m, 0)
    limits = {"vmin": float(truth.min()), "vmax": float(truth.max())}
    for axis, part, where, title, colours in (
        (axes[0], truth, whole, "the ground, m/s", limits),
        (axes[1], read["velocity"], extent, "read from the line, m/s", limits),
        (axes[2], doubt, extent, name, {}),
    ):
        drawn = axis.imshow(part, extent=where, aspect="auto", interpolation="nearest", **colours)
        axis.set(ylabel="depth (m)", ylim=(whole[2], 0))
        figure.colorbar(drawn, ax=axis, label=title)
    axes[3].fill_between(read["x_m"], read["weight"])
    axes[3].set(xlim=whole[:2], xlabel="x (m)", ylabel="data")
    figure.savefig(out / "section.png", dpi=80)
    print(f"picture: {out / 'section.png'}")


def windows(known: np.ndarray) -> list[tuple[int, int]]:
    """Stretches of a window's columns, in which the truth is known."""
    at, width = np.flatnonzero(known), 70
    return [(start, min(start + width, at[-1] + 1)) for start in range(at[0], at[-1] + 1, width)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("record", "compare"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=list(MAKERS), default="Thrust")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--length", type=float, default=5000.0, help="metres")
    parser.add_argument("--source", choices=("zero-phase", "impulsive"), default="zero-phase")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.step == "record":
        record(args.out, args.kind, args.seed, args.length, impulsive=args.source == "impulsive")
    else:
        compare(args.out)
