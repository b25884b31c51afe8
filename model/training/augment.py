"""Data augmentation of training batches: noise, delays, gains, filters, dead traces, lost shots, mirroring.

Everything acts on canonical, linear traces before `blocks.condition`, so that the encoder learns to read gathers
in spite of it. Pure functions of tensors and a `torch.Generator`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from seisbind.model.datasets.pairs import PairSet
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.survey.preparation import Prepared, place_prepared
from seisbind.model.survey.resampling import receiver_map

Chosen = Callable[[float], Tensor]  # probability -> (batch,) bool
Uniform = Callable[..., Tensor]  # shape -> U(0, 1)

CHUNK = 128  # gathers that `augmented` holds as a batch
PAD_S = 0.15  # a shift of up to this does not wrap into the record


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Probability and strength of each augmentation.

    Attributes:
        mirror: probability of reversing the line (exact: positions are mirrored with the traces).
        noise: probability of noise, half of it band-limited; ``noise_db`` the range of signal over noise.
        shift: probability of a common time shift, up to ``shift_s`` either way.
        phase: probability of a constant phase rotation, up to ``phase_rad``.
        tilt: probability of a spectral tilt ``(f / peak_hz)^a``, ``|a|`` up to ``tilt_power``.
        trace_gain: probability of independent trace gains; ``trace_gain_std`` is that of their logarithm.
        dead: probability of dead traces, up to ``dead_share`` of them.
        shots: probability of losing shots (one to all but one of them).
        sparse: probability of recording every 15, 20 or 30 m instead of every 10 m (in OpenFWI's frame).
        short: probability of a record that ends after 0.6 to 1 of its time.
        gap: probability that offsets below one of up to ``gap_share`` of the line are missing.
        far: probability that offsets above one of 0.35 to 1 of the line are missing.
        one_sided: probability that each shot has receivers on one side only, the same of all.
        low_cut: probability of a low-cut between 0.1 and 0.7 of the peak frequency, half of them minimum phase.
        ghost: probability of a reflection at the sea's surface, up to ``ghost_s`` later.
    """

    mirror: float = 0.5
    noise: float = 0.6
    noise_db: tuple[float, float] = (12.0, 75.0)
    shift: float = 0.5
    shift_s: float = 0.02
    phase: float = 0.1
    phase_rad: float = 0.5
    tilt: float = 0.1
    tilt_power: float = 0.6
    trace_gain: float = 0.15
    trace_gain_std: float = 0.2
    dead: float = 0.1
    dead_share: float = 0.35
    shots: float = 0.1
    sparse: float = 0.05
    short: float = 0.02
    gap: float = 0.0
    gap_share: float = 0.3
    far: float = 0.0
    one_sided: float = 0.0
    low_cut: float = 0.0
    ghost: float = 0.0
    ghost_s: float = 0.025


@dataclass(frozen=True, slots=True)
class Batch:
    """One training batch.

    Attributes:
        traces: ``(batch, shot, time, receiver)`` linear.
        live: ``(batch, shot, receiver)``; shot_x_m: ``(batch, shot)``.
        velocity: ``(batch, depth, x)`` m/s.
        frame: that they are of.
    """

    traces: Tensor
    live: Tensor
    shot_x_m: Tensor
    velocity: Tensor
    frame: Frame = OPENFWI_FRAME


def whole_batch(pairs: PairSet) -> Batch:
    """``pairs`` as a batch, without augmentation."""
    return Batch(pairs.traces, pairs.live_traces(), pairs.places(), pairs.velocity, pairs.frame)


def placed(pairs: PairSet) -> PairSet:
    """Pairs whose shots are moved as those of any record are (`preparation.place_prepared`), so that encoders are
    trained on what they will see. Those that are moved are changed in ``pairs`` itself, which may be gigabytes."""
    if pairs.shot_x_m is None:
        return pairs
    live, moved = pairs.live_traces(), False
    for start in range(0, len(pairs), CHUNK):
        rows = slice(start, min(start + CHUNK, len(pairs)))
        batch = whole_batch(pairs.select(range(rows.start, rows.stop)).to("cpu"))
        before = Prepared(batch.traces.numpy(), batch.live.numpy(), batch.shot_x_m.numpy(), frame=pairs.frame)
        after = place_prepared(before)
        if after is before:
            continue
        pairs.traces[rows] = torch.from_numpy(after.traces).to(pairs.traces)
        pairs.shot_x_m[rows] = torch.from_numpy(after.shot_x_m).to(pairs.shot_x_m)
        live[rows] = torch.from_numpy(after.live).to(live)
        moved = True
    return replace(pairs, live=live) if moved else pairs


def as_trained(pairs: PairSet, config: AugmentConfig | None, *, count: int, seed: int = 0) -> Prepared:
    """Up to ``count`` gathers of ``pairs``, drawn by ``seed``, as training sees them."""
    rows = np.random.default_rng(seed).permutation(len(pairs))[:count]
    return augmented(pairs.select(torch.from_numpy(rows)), config, seed=seed)


def augmented(pairs: PairSet, config: AugmentConfig | None, *, seed: int = 0) -> Prepared:
    """The gathers of ``pairs``, in their order, augmented by ``config`` (None: as they are)."""
    generator = torch.Generator().manual_seed(seed)
    count, shots, _, receivers = pairs.traces.shape
    out = Prepared(  # allocated once: thousands of gathers are gigabytes, and joining parts would take twice that
        traces=np.empty(pairs.traces.shape, np.float32),
        live=np.empty((count, shots, receivers), bool),
        shot_x_m=np.empty((count, shots), np.float32),
        frame=pairs.frame,
    )
    for start in range(0, count, CHUNK):
        rows = slice(start, min(start + CHUNK, count))
        batch = whole_batch(pairs.select(range(rows.start, rows.stop)).to("cpu"))
        if config is not None:
            batch = augment(batch, config, generator)
        out.traces[rows], out.live[rows], out.shot_x_m[rows] = batch.traces, batch.live, batch.shot_x_m
    return out


def mirror(batch: Batch, which: Tensor) -> Batch:
    """Reverse x of the models ``which`` (bool, batch): traces, positions and velocity together.

    OpenFWI's middle shot lies at 340 m of 690, so its mirror image lies at 350 m.
    """
    w = which[:, None, None]
    return Batch(
        traces=torch.where(w[..., None], batch.traces.flip(1, 3), batch.traces),
        live=torch.where(w, batch.live.flip(1, 2), batch.live),
        shot_x_m=torch.where(which[:, None], batch.frame.line_m - batch.shot_x_m.flip(1), batch.shot_x_m),
        velocity=torch.where(w, batch.velocity.flip(2), batch.velocity),
        frame=batch.frame,
    )


def augment(batch: Batch, config: AugmentConfig, generator: torch.Generator) -> Batch:
    """An augmented copy of the batch; the velocity models change only by mirroring."""
    device, count = batch.traces.device, len(batch.traces)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, device=device, generator=generator)

    def chosen(probability: float) -> Tensor:
        return uniform(count) < probability

    batch = mirror(batch, chosen(config.mirror))
    traces = batch.traces.float()
    rms = traces.square().mean(dim=(1, 2, 3)).sqrt()  # of the whole record
    traces = _filter_and_noise(traces, rms, batch.frame, config, chosen, uniform, generator)
    live = _spread(batch.live, batch, config, chosen, uniform)
    traces, live = _lose_traces(traces, live, batch, config, chosen, uniform)
    return Batch(traces * live[:, :, None, :], live, batch.shot_x_m, batch.velocity, batch.frame)


def _filter_and_noise(
    traces: Tensor,
    rms: Tensor,
    frame: Frame,
    config: AugmentConfig,
    chosen: Chosen,
    uniform: Uniform,
    generator: torch.Generator,
) -> Tensor:
    count, device, peak_hz = len(traces), traces.device, frame.peak_hz
    samples = next_fast_len(frame.samples + math.ceil(PAD_S / frame.dt_s))
    f = torch.fft.rfftfreq(samples, frame.dt_s, device=device)  # (frequency,)
    delay = chosen(config.shift) * (2 * uniform(count) - 1) * config.shift_s
    rotation = chosen(config.phase) * (2 * uniform(count) - 1) * config.phase_rad
    power = chosen(config.tilt) * (2 * uniform(count) - 1) * config.tilt_power
    angle = rotation[:, None] - 2 * torch.pi * f * delay[:, None]
    response = _source_filters(f, peak_hz, config, chosen, uniform) * torch.polar(
        (f.clamp(peak_hz / 5, 4 * peak_hz) / peak_hz) ** power[:, None], angle
    )
    spectrum = torch.fft.rfft(traces, n=samples, dim=2) * response[:, None, :, None]

    low, high = config.noise_db
    at = chosen(config.noise).nonzero()[:, 0]
    noisy = len(at)
    sigma = rms[at] * 10 ** (-(low + (high - low) * uniform(noisy)) / 20)
    limited = uniform(noisy) < 0.5
    corners = torch.stack([1 + 9 * uniform(noisy), 25 + 45 * uniform(noisy)]) * (peak_hz / 15)  # Hz
    inside = ((f > corners[0][:, None]) & (f < corners[1][:, None])) | ~limited[:, None]
    # white noise of variance 1 has a spectrum of variance N; a band keeps its share of it
    level = sigma * (samples / inside.float().mean(dim=1) / 2).sqrt()
    real = torch.randn((noisy, *spectrum.shape[1:], 2), device=device, generator=generator)
    spectrum[at] += torch.view_as_complex(real) * (inside * level[:, None])[:, None, :, None]
    filtered: Tensor = torch.fft.irfft(spectrum, n=samples, dim=2)
    return filtered[:, :, : frame.samples]


def _source_filters(
    f: Tensor, peak_hz: float, config: AugmentConfig, chosen: Chosen, uniform: Uniform
) -> Tensor | float:
    """``(batch, frequency)`` responses of low-cuts and ghosts; 1 where the configuration has none."""
    response: Tensor | float = 1.0
    if config.low_cut:
        which = chosen(config.low_cut)
        count = len(which)
        corner = peak_hz * 0.1 * 7 ** uniform(count)
        order = 1 + (4 * uniform(count)).long()
        ratio = f / corner[:, None]
        section = torch.complex(torch.zeros_like(ratio), ratio) / torch.complex(torch.ones_like(ratio), ratio)
        cut = section ** order[:, None]
        cut = torch.where((uniform(count) < 0.5)[:, None], cut, cut.abs().to(cut.dtype))
        response = torch.where(which[:, None], cut, torch.ones_like(cut))
    if config.ghost:
        which = chosen(config.ghost)
        strength = torch.where(which, 0.4 + 0.6 * uniform(len(which)), 0.0)
        delay = config.ghost_s * (0.1 + 0.9 * uniform(len(which)))
        angle = -2 * torch.pi * f * delay[:, None]
        response = response * (1 - torch.polar(strength[:, None].expand_as(angle).contiguous(), angle))
    return response


def _spread(live: Tensor, batch: Batch, config: AugmentConfig, chosen: Chosen, uniform: Uniform) -> Tensor:
    """``live`` without the offsets that a towed or one-sided spread does not have."""
    if not (config.gap or config.far or config.one_sided):
        return live
    line_m, count = batch.frame.line_m, len(live)
    nodes = torch.arange(batch.frame.receivers, device=live.device) * batch.frame.receiver_spacing_m
    offset = nodes - batch.shot_x_m[..., None]  # (batch, shot, receiver)
    nearest = torch.where(chosen(config.gap), config.gap_share * line_m * uniform(count), -1.0)
    farthest = torch.where(chosen(config.far), line_m * (0.35 + 0.65 * uniform(count)), 2 * line_m)
    kept = (offset.abs() >= nearest[:, None, None]) & (offset.abs() <= farthest[:, None, None])
    side = torch.where(chosen(config.one_sided), torch.where(uniform(count) < 0.5, 1.0, -1.0), 0.0)
    kept &= offset * side[:, None, None] >= 0
    enough = (live & kept).flatten(1).float().mean(dim=1) > 0.1
    return live & (kept | ~enough[:, None, None])


def _lose_traces(
    traces: Tensor, live: Tensor, batch: Batch, config: AugmentConfig, chosen: Chosen, uniform: Uniform
) -> tuple[Tensor, Tensor]:
    count, shots, samples, receivers = traces.shape
    at = chosen(config.trace_gain).nonzero()[:, 0]
    # uniform of standard deviation `trace_gain_std`
    gain = torch.exp(config.trace_gain_std * 3.4 * (uniform(len(at), shots, receivers) - 0.5))
    traces[at] *= gain[:, :, None, :]

    share = chosen(config.dead) * uniform(count) * config.dead_share
    live = live & (uniform(count, shots, receivers) >= share[:, None, None])

    kept = torch.where(chosen(config.shots), (1 + (shots - 1) * uniform(count)).long(), shots)
    order = uniform(count, shots).argsort(dim=1).argsort(dim=1)
    live = live & (order < kept[:, None])[:, :, None]

    sparse = chosen(config.sparse)
    if bool(sparse.any()):
        at = sparse.nonzero()[:, 0]
        matrices, covered = (t.to(traces.device) for t in _sparse_lines(batch.frame))
        kind = (uniform(len(at)) * len(matrices)).long()
        thin = torch.einsum("bstr,bnr->bstn", traces[at] * live[at][:, :, None, :], matrices[kind])
        needs = (matrices[kind].abs() > 0.05).float()
        whole = torch.einsum("bsr,bnr->bsn", (~live[at]).float(), needs) == 0
        traces = traces.index_copy(0, at, thin)
        live = live.index_copy(0, at, whole & covered[kind][:, None, :] & live[at].any(dim=2, keepdim=True))

    for row in chosen(config.short).nonzero()[:, 0].tolist():
        traces[row, :, int(samples * (0.6 + 0.4 * float(uniform(1)))) :] = 0
    empty = (~live.flatten(1).any(dim=1)).nonzero()[:, 0]  # keep one shot of a gather that lost everything
    first = batch.live[empty].any(dim=2).int().argmax(dim=1)
    live[empty, first] = batch.live[empty, first]
    return traces, live


@lru_cache(maxsize=4)
def _sparse_lines(frame: Frame) -> tuple[Tensor, Tensor]:
    """``(kind, receiver, receiver)`` maps of full traces to those left by sparser lines, and where these cover it."""
    spacing_m = frame.receiver_spacing_m
    nodes = np.arange(frame.receivers) * spacing_m
    matrices = []
    for step in (2 * spacing_m, 1.5 * spacing_m, 3 * spacing_m):
        x = np.arange(0, frame.line_m + frame.on_node_m, step)
        # the line at `step`, read from the canonical traces by a sinc of their own spacing
        taken = np.sinc((x[:, None] - nodes) / spacing_m)
        matrices.append(receiver_map(tuple(x), frame=frame) @ (taken / taken.sum(axis=1, keepdims=True)))
    stacked = torch.tensor(np.stack(matrices), dtype=torch.float32)
    return stacked, (stacked != 0).any(dim=2)
