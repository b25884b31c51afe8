"""Full-waveform inversion of one gather from several starts, an iteration at a time.

Gauss-Newton on blocks of cells, from low frequencies up, with total variation (`sensitivity`, `regularise`); what a
step brings is measured on the frame's own cells (`Forward`). The source is estimated anew from every prediction.
Nothing reads a clock but for `RefineStep.step_s`, and nothing is random: an inversion that is taken up from its state
gives the numbers of one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seisbind.model.errors import InvalidConfig, InvalidVelocityModel
from seisbind.model.frame import VELOCITY_LIMITS_M_S, Frame
from seisbind.model.inversion.forward import Forward
from seisbind.model.inversion.observed import Observed, noise_rms
from seisbind.model.inversion.refined import RefineConfig, Refined, RefineStep
from seisbind.model.inversion.regularise import Roughness
from seisbind.model.inversion.sensitivity import Blocks, Sensitivity, jacobian_bytes
from seisbind.model.inversion.source import Source, estimate_source, probing_wavelet

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]

FLANK = 0.15  # width of a band's upper flank, over its corner
WHITE = 1.0  # of the record's largest amplitude: added to its spectrum before that is divided by
INTERFACE_M_S = 60.0  # mean difference of neighbouring blocks that the prior expects

MISFIT = 0.006  # of a record, rms, that one wave equation misses of another at the peak frequency; below it more,
# by the ratio of the two, as boundaries absorb less (OpenFWI's against deepwave's: .018 at 0.4 peak frequencies)
DOUBT = (0.5, 0.15, 4.0)  # first, least and largest share of the residual that a linear step is not asked to explain
TRUST_M_S = 200.0  # of a block in a step; where waves hardly go, nothing else bounds it
STALLED = 0.01  # a step that lowers the misfit by less than this share was the band's last
TRIAL_STEPS = 2  # at most, that each start is given before they are compared
MATRICES = 7  # of blocks by blocks, float64, that a step holds at once
MOST_BYTES = 4 << 30  # of the arrays of a step
NOISE = 1.05  # of the noise before the first arrival: a residual below that has nothing left to say
TIMELY = 0.12  # misfit of a band, rms: none of it can be half a period off, and lower bands are not needed
INTERVAL = 1.645  # standard deviations of a 90 % interval
WIDENED = 6.1  # half-widths of the Gaussian of the curvature that nine tenths of the cells are off by at most: of
# ten drawn models (benchmarks/refine.py --drawn 10 --seed 950 --iterations 12, which prints their number over this one)
PRIOR = 0.25  # weight of a block's prior: neighbours are wrong together, and four weigh as one. Of five drawn models
# (`mixed(10, 901)`, 12 iterations) the mean error is 84 m/s without, 69 with this, 68 with 1, which made two worse


@dataclass(slots=True)
class _State:
    """All that an iteration changes; arrays and numbers only."""

    models: Float64  # (start, depth, x); once one is chosen, it alone
    misfits: Float64  # (start,) in the first band, after its trial
    began: Float64  # (start,) residual before its first step; NaN where there was none yet
    chosen: int  # -1 while starts are tried
    iteration: int
    stage: int  # of the trial: the start; then the band
    in_stage: int
    doubt: float
    residual: Float64  # (iteration,)
    stopped: str
    prior: Float64  # (2, depth, x) mean and deviation; (0, depth, x) without


class Refinement:
    """One inversion, stepped from outside. `begin` or `resume` make it."""

    def __init__(self, observed: Observed, config: RefineConfig, state: _State) -> None:
        frame = observed.frame
        self._observed, self.config, self._state = observed, config, state
        wavelet = probing_wavelet(observed)
        self._forward = Forward(observed.shot_x_m, frame, device=config.device)
        self._sensitivity = Sensitivity(observed.shot_x_m, frame, wavelet, device=config.device)
        self._roughness = Roughness(self._sensitivity.blocks.shape)
        self._wavelet = torch.from_numpy(np.asarray(wavelet, np.float32))
        self._record = torch.from_numpy(observed.traces)
        self._live = torch.from_numpy(observed.live)[:, None]
        self._rms = _rms(self._record)
        self._size = 1 << (2 * frame.samples - 1).bit_length()
        hz = np.fft.rfftfreq(self._size, frame.dt_s)
        power = np.square(np.abs(np.fft.rfft(observed.traces, self._size, axis=1))).mean(axis=(0, 2))
        width = max(1, round(1.5 * frame.peak_hz / 15 / hz[1]))
        amplitude = np.sqrt(np.convolve(power, np.ones(2 * width + 1) / (2 * width + 1), mode="same"))
        self._hz: Float64 = hz.astype(np.float64)
        self._amplitude = amplitude / max(amplitude.max(), 1e-30)
        self._noise = noise_rms(observed) / self._rms
        self._believed = [self._sensitivity.blocks.gather(each).ravel() for each in state.prior]
        self._predicted: tuple[Float64, Source, Tensor] | None = None  # of the last model, not to predict it twice

    @classmethod
    def begin(cls, observed: Observed, starts: Float32, config: RefineConfig, *, prior: Float32 | None = None) -> Self:
        """A refinement from models ``(start, depth, x)`` in m/s of the frame; the best after a trial is gone on from.

        Args:
            observed: the record.
            starts: see above.
            config: how it is done.
            prior: ``(2, depth, x)`` m/s: what each cell is without the record's word, and the standard deviation of
                that, above 0. It holds where the record says little.

        Raises:
            InvalidVelocityModel: no start, or models of another shape or without finite numbers.
            InvalidConfig, MissingExtra: see `check_memory` and `Forward`.
        """
        check_memory(observed)
        models = np.asarray(starts, np.float64)
        if models.ndim != 3 or not len(models) or models.shape[1:] != observed.frame.velocity_shape:
            raise InvalidVelocityModel(
                f"Starts of shape {models.shape}; (start, {', '.join(map(str, observed.frame.velocity_shape))}) "
                f"is that of the frame."
            )
        if not np.isfinite(models).all():
            raise InvalidVelocityModel("A start has numbers that are not finite.")
        shape = observed.frame.velocity_shape
        believed = np.zeros((0, *shape)) if prior is None else np.asarray(prior, np.float64)
        if prior is not None and not (
            believed.shape == (2, *shape) and np.isfinite(believed).all() and believed[1].min() > 0
        ):
            raise InvalidVelocityModel("A prior is the mean and the deviation, above 0, of each cell of the frame.")
        state = _State(
            models=_within(models, np.clip(models, *VELOCITY_LIMITS_M_S), observed.frame, config),
            misfits=np.full(len(models), np.inf),
            began=np.full(len(models), np.nan),
            chosen=-1 if len(models) > 1 else 0,
            iteration=0, stage=0, in_stage=0, doubt=DOUBT[0],
            residual=np.zeros(0), stopped="", prior=believed,
        )  # fmt: skip
        return cls(observed, config, state)

    @classmethod
    def resume(cls, observed: Observed, config: RefineConfig, state: Arrays) -> Self:
        """The refinement whose `state` it was, with the same record and configuration."""
        values: dict[str, Any] = {}
        for name, kind in _State.__annotations__.items():
            value = state[name]
            values[name] = {"int": int, "float": float, "str": str}.get(kind, np.array)(value)
        return cls(observed, config, _State(**values))

    def state(self) -> dict[str, NDArray[Any]]:
        """What `resume` takes: plain arrays."""
        return {name: np.array(getattr(self._state, name)) for name in _State.__annotations__}

    @property
    def done(self) -> bool:
        """Whether there is nothing more to do."""
        return bool(self._state.stopped) or self._state.iteration >= self.config.iterations

    @property
    def stopped(self) -> str | None:
        """Why it ended by itself, as a sentence."""
        return self._state.stopped or None

    @property
    def velocity(self) -> Float32:
        """``(depth, x)`` m/s: the model so far."""
        return np.asarray(self._state.models[self.start if self._state.chosen < 0 else 0], np.float32)

    @property
    def start(self) -> int:
        """The number of the start that `velocity` comes from."""
        state = self._state
        return state.chosen if state.chosen >= 0 else int(np.argmin(state.misfits))

    def step(self) -> RefineStep:
        """One iteration. Raises InvalidConfig when there is none left."""
        if self.done:
            raise InvalidConfig("This refinement is done; there is no iteration left.")
        started, state = time.perf_counter(), self._state
        if state.chosen < 0 and not self._trial_steps:
            for number, model in enumerate(state.models):
                state.misfits[number], state.began[number] = self._misfit(model, self.config.bands[0]), self._residual
            self._choose()
        number = state.stage if state.chosen < 0 else state.chosen
        if np.isnan(state.began[number]):
            self._predict(state.models[number if len(state.models) > 1 else 0])
            state.began[number] = self._residual
        if state.chosen < 0:
            stage = f"start {state.stage + 1}"
            self._try()
        else:
            stage = self._climb()
        state.iteration += 1
        state.residual = np.append(state.residual, self._residual)
        if state.chosen >= 0 and self._residual <= NOISE * self._noise:
            state.stopped = f"The residual, {self._residual:.3g} of the record, is that of its noise."
        return RefineStep(
            state.iteration, self.config.iterations, stage, self._residual, time.perf_counter() - started
        )  # fmt: skip

    @property
    def _trial_steps(self) -> int:
        """Steps of each start that fit into the iterations; without one, starts are compared as they are."""
        return min(TRIAL_STEPS, self.config.iterations // len(self._state.models))

    def _choose(self) -> None:
        state = self._state
        state.chosen, state.stage = int(np.argmin(state.misfits)), 0
        state.models = state.models[state.chosen][None].copy()

    def _try(self) -> None:
        """A step of the trial of a start."""
        state = self._state
        number = state.stage
        state.models[number], state.misfits[number], _ = self._gauss_newton(state.models[number], self.config.bands[0])
        state.in_stage += 1
        if state.in_stage < self._trial_steps:
            return
        state.stage, state.in_stage, state.doubt = number + 1, 0, DOUBT[0]
        if state.stage == len(state.models):
            self._choose()

    def _climb(self) -> str:
        """A Gauss-Newton step, and to the next band after the last of this one."""
        state, bands = self._state, self.config.bands
        while state.stage + 1 < len(bands) and not state.in_stage:
            if self._misfit(state.models[0], bands[state.stage + 1]) >= TIMELY:
                break
            state.stage += 1
        band = bands[state.stage]
        state.models[0], misfit, gain = self._gauss_newton(state.models[0], band)
        state.in_stage += 1
        explained = misfit <= MISFIT / band
        last = state.stage + 1 == len(bands)
        share = max(1, self.config.iterations // len(bands))
        if gain < STALLED or explained or (state.in_stage >= share and not last):
            if last:
                state.stopped = (
                    f"All bands are explained to {misfit:.2g}, which two wave equations differ by."
                    if explained
                    else "No band of frequencies lowers the residual any further."
                )
            else:
                state.stage, state.in_stage, state.doubt = state.stage + 1, 0, DOUBT[0]
        return f"up to {band:g} of the peak frequency"

    def _misfit(self, model: Float64, band: float) -> float:
        """Of a model in a band, over the record there."""
        left = self._record - self._predict(model)[1]
        return _rms(self._through(left, band)) / _rms(self._through(self._record, band))

    def _gauss_newton(self, model: Float64, band: float) -> tuple[Float64, float, float]:
        """A better model, its misfit in the band over the record's there, and by which share that has fallen."""
        state, blocks = self._state, self._sensitivity.blocks
        source, predicted = self._predict(model)
        seen = self._through(self._record, band)
        scale, left = _rms(seen), self._through(self._record - predicted, band)
        misfit = _rms(left)
        curvature, slope = self._normal(model, source, band, left)
        sigma2 = ((MISFIT / band * scale) ** 2 + (state.doubt * misfit) ** 2) * self._correlated(band)
        cells = blocks.gather(model).ravel()
        mean, sure = self._belief(cells)
        change = self._roughness.solve(
            curvature / sigma2 + np.diag(sure + 1 / TRUST_M_S**2),
            slope / sigma2 + sure * (mean - cells),
            cells,
            1 / INTERFACE_M_S,
        )
        spread = blocks.spread(change.reshape(blocks.shape))
        for part in (1.0, 0.5, 0.25):
            tried = _within(model + part * spread, model, self._observed.frame, self.config)
            again = _rms(self._through(self._record - self._predict(tried)[1], band))
            if again < misfit:
                state.doubt = max(DOUBT[1], state.doubt * (0.7 if part == 1 else 1.4))
                return tried, again / scale, 1 - again / misfit
        self._predict(model)
        state.doubt = min(DOUBT[2], 2 * state.doubt)
        return model, misfit / scale, 1.0 if state.doubt < DOUBT[2] else 0.0

    def _belief(self, cells: Float64) -> tuple[Float64, Float64]:
        """The prior's mean and curvature of each block; ``cells`` and 0 without one."""
        if not self._believed:
            return cells, np.zeros_like(cells)
        mean, deviation = self._believed
        return mean, PRIOR / deviation**2

    def _normal(self, model: Float64, source: Source, band: float, left: Tensor) -> tuple[Float64, Float64]:
        """J'J and J'r of a band: ``(block, block)`` and ``(block,)``."""
        sensitivity = self._sensitivity
        response = torch.from_numpy(self._response(sensitivity.frequency_hz.double().numpy(), band)).float()
        jacobian = sensitivity.jacobian(model, source, response)
        live = self._live[:, 0, sensitivity.receivers].to(jacobian.device)
        jacobian *= live[:, :, None, None]
        flat = jacobian.flatten(0, 2)
        rows = left[:, :: sensitivity.stride, sensitivity.receivers].transpose(1, 2).to(flat)
        return (flat.T @ flat).double().cpu().numpy(), (flat.T @ rows.flatten()).double().cpu().numpy()

    def _correlated(self, band: float) -> float:
        """Samples of a Jacobian's rows to one that is independent."""
        return 1 / min(1.0, 2 * band * self._observed.frame.peak_hz * self._sensitivity.row_s)

    def _predict(self, model: Float64) -> tuple[Source, Tensor]:
        """The source, and ``(shot, time, receiver)`` predicted with it; zero where the record is not live."""
        if self._predicted is None or not np.array_equal(self._predicted[0], model):
            with torch.no_grad():
                made = self._forward(torch.from_numpy(model).float()[None], self._wavelet)[0].cpu()
            source, predicted = estimate_source(self._observed, made.numpy())
            self._predicted = model.copy(), source, torch.from_numpy(predicted)
        return self._predicted[1], self._predicted[2]

    @property
    def _residual(self) -> float:
        """Of the model that was predicted last: the one that the iteration ended with."""
        left = self._record if self._predicted is None else self._record - self._predicted[2]
        return _rms(left * self._live) / self._rms

    def _through(self, traces: Tensor, band: float) -> Tensor:
        """Traces ``(shot, time, receiver)`` through a band's filter, dead ones zero."""
        response = torch.from_numpy(self._response(self._hz, band)).float()[None, :, None]
        spectrum = torch.fft.rfft(traces * self._live, self._size, dim=1)
        filtered: Tensor = torch.fft.irfft(spectrum * response, self._size, dim=1)
        return filtered[:, : traces.shape[1]]

    def _response(self, hz: Float64, band: float) -> Float64:
        """Of zero phase: up to a corner (``band`` peak frequencies), the record's spectrum made flatter."""
        corner = band * self._observed.frame.peak_hz
        flat = 1 / (np.interp(hz, self._hz, self._amplitude) + WHITE)
        return np.asarray(flat * np.exp(-0.5 * (np.maximum(hz - corner, 0) / (FLANK * corner)) ** 2))

    def result(self) -> Refined:
        """The model, what is left of uncertainty, and where waves have been; costs a step."""
        state, blocks = self._state, self._sensitivity.blocks
        model = np.asarray(self.velocity, np.float64)
        source, predicted = self._predict(model)
        band = self.config.bands[-1]
        left, scale = self._through(self._record - predicted, band), _rms(self._through(self._record, band))
        curvature, _ = self._normal(model, source, band, left)
        illumination = np.sqrt(np.diag(curvature)).reshape(blocks.shape)
        sigma2 = ((MISFIT / band * scale) ** 2 + _rms(left) ** 2) * self._correlated(band)
        cells = blocks.gather(model).ravel()
        prior = self._roughness.form(cells) / INTERFACE_M_S + np.diag(self._belief(cells)[1])
        spread_m_s = (self._observed.frame.velocity_m_s[1] - self._observed.frame.velocity_m_s[0]) / np.sqrt(12)
        known = curvature / sigma2 + prior + np.eye(len(prior)) / spread_m_s**2
        deviation = np.sqrt(np.diag(np.linalg.inv(known))).reshape(blocks.shape)
        off = WIDENED * INTERVAL * blocks.spread(deviation)
        low, high = self._observed.frame.velocity_m_s
        return Refined(
            velocity=self.velocity,
            low=np.minimum(np.clip(model - off, low, high), model).astype(np.float32),  # what is kept may lie outside
            high=np.maximum(np.clip(model + off, low, high), model).astype(np.float32),
            illumination=blocks.spread(illumination / max(illumination.max(), 1e-30)).astype(np.float32),
            residual=state.residual.astype(np.float32),
            residual_before=float(state.began[self.start]),
            residual_after=self._residual,
            source=self._source(source),
            start=self.start,
            stopped=self.stopped,
        )

    def _source(self, source: Source) -> Float32:
        """The wavelet with which `Forward` would predict the record itself."""
        wavelet = torch.zeros(len(self._wavelet) + source.half, 1)
        wavelet[: len(self._wavelet), 0] = self._wavelet
        return np.asarray(source.apply(wavelet)[:, 0].numpy(), np.float32)


def check_memory(observed: Observed) -> None:
    """Whether a refinement's arrays, which the frame bounds, are of a size that a machine has. Raises InvalidConfig."""
    frame, blocks = observed.frame, math.prod(Blocks.of(observed.frame).shape)
    size = jacobian_bytes(frame, len(observed.shot_x_m)) + MATRICES * 8 * blocks**2
    if size > MOST_BYTES:
        raise InvalidConfig(
            f"A refinement in the frame {frame.name} ({frame.depth_cells} x {frame.x_cells} cells, "
            f"{len(observed.shot_x_m)} shots) takes {size / 2**30:.1f} GiB of memory; {MOST_BYTES >> 30} GiB is "
            "the most. Use weights of a frame with fewer cells."
        )


def _within(model: Float64, before: Float64, frame: Frame, config: RefineConfig) -> Float64:
    """``(.., depth, x)`` within the frame's velocities, and as ``before`` where it is kept."""
    kept = np.arange(frame.depth_cells) * frame.cell_m < config.keep_m - 1e-9
    return np.where(kept[:, None], before, np.clip(model, *frame.velocity_m_s))


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
