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
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seisbind.model.errors import InvalidConfig, InvalidVelocityModel
from seisbind.model.frame import VELOCITY_LIMITS_M_S, Frame
from seisbind.model.inversion.check import has_free_surface
from seisbind.model.inversion.forward import Forward
from seisbind.model.inversion.interval import Remaining, half_width_m_s
from seisbind.model.inversion.observed import Observed, noise_rms
from seisbind.model.inversion.refined import RefineConfig, Refined, RefineStep
from seisbind.model.inversion.regularise import Roughness
from seisbind.model.inversion.seen import Seen
from seisbind.model.inversion.sensitivity import COARSE, FINE, Blocks, Sensitivity, step_bytes
from seisbind.model.inversion.source import Source, estimate_source, filtered_wavelet, folded_wavelet, probing_wavelet
from seisbind.model.waves.wavefield import ABSORBING

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]

INTERFACE_M_S = 60.0  # mean difference of neighbouring blocks that the prior expects
BOUNDARY = replace(ABSORBING, width_cells=20)  # 10 send back so much that predictions are up to twice as far off
MISFIT = 0.003  # of a record, rms, that one wave equation misses of another at the peak frequency; below it more, by
# the ratio of the two
DOUBT = (0.5, 0.15, 4.0)  # first, least and largest share of the residual that a linear step is not asked to explain
ATTEMPTS = 4  # at a step from a model, each twice as doubtful as the one before
PARTS = (1.0, 0.5, 0.25)  # of a step's change, tried in turn
TRUST_M_S = 100.0  # of a block in a step, in lower bands than the peak frequency less: nothing else bounds the deep
STALLED, SLOW = 0.02, 0.01  # a step that gains less was the band's last; SLOW in the last one on coarse blocks
TRIAL_STEPS = 2  # at most, that each start is given before they are compared
MOST_BYTES = 4 << 30  # of the arrays of a step
NOISE = 1.05  # of the noise before the first arrival: a residual below that has nothing left to say
TIMELY = 0.12  # misfit of a band, rms: none of it can be half a period off, and lower bands are not needed
PRIOR = 0.25  # weight of a coarse block's prior: neighbours are wrong together, and four weigh as one. Of five drawn
# models (`mixed(10, 901)`) an earlier version left 84 m/s without, 69 with this, 68 with 1, which made two worse


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
    best: Float64  # (start, depth, x) of each of `models` as it began and as steps left it, what explains the last band
    least: Float64  # (start,) its misfit there; NaN where it was not predicted yet
    wavelet: Float32  # (n,) that is predicted with
    free_surface: bool


class Refinement:
    """One inversion, stepped from outside. `begin` or `resume` make it."""

    def __init__(self, observed: Observed, config: RefineConfig, state: _State) -> None:
        frame, shots = observed.frame, observed.shot_x_m
        self._observed, self.config, self._state = observed, config, state
        edges = replace(BOUNDARY, free_surface=state.free_surface)
        self._forward = Forward(shots, frame, boundary=edges, device=config.device)
        self._sensitivities = {
            each: Sensitivity(shots, frame, cells=each, boundary=edges, device=config.device) for each in (COARSE, FINE)
        }
        self._fine = step_bytes(frame, len(shots), FINE) <= MOST_BYTES
        self._seen = Seen(observed)
        self._rms = _rms(self._seen.record)
        self._noise = noise_rms(observed) * math.sqrt(observed.live.mean()) / self._rms  # dead traces have none
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
        models = _within(models, np.clip(models, *VELOCITY_LIMITS_M_S), observed.frame, config)
        if (surface := config.free_surface) is None:
            surface = has_free_surface(observed, models.astype(np.float32), device=config.device)
        state = _State(
            models=models, misfits=np.full(len(models), np.inf), began=np.full(len(models), np.nan),
            chosen=-1 if len(models) > 1 else 0, iteration=0, stage=0, in_stage=0, doubt=DOUBT[0],
            residual=np.zeros(0), stopped="", prior=believed, free_surface=surface,
            best=models.copy(), least=np.full(len(models), np.nan), wavelet=probing_wavelet(observed),
        )  # fmt: skip
        return cls(observed, config, state)

    @classmethod
    def resume(cls, observed: Observed, config: RefineConfig, state: Arrays) -> Self:
        """The refinement whose `state` it was, with the same record and configuration."""
        values: dict[str, Any] = {}
        state = {"free_surface": np.array(False)} | dict(state)  # versions before had none
        if "best" not in state:  # of a version that kept none
            unknown = np.full(len(state["models"]), np.nan)
            state = {**state, "best": state["models"], "least": unknown, "wavelet": probing_wavelet(observed)}
        for name, kind in _State.__annotations__.items():
            values[name] = {"int": int, "float": float, "str": str, "bool": bool}.get(kind, np.array)(state[name])
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
        at = number if state.chosen < 0 else 0
        if not state.in_stage and (state.chosen >= 0 or not state.stage):
            self._fold(state.models[at])
        if np.isnan(state.least[at]):
            state.least[at] = self._misfit(state.best[at], self.config.bands[-1])
            if np.isnan(state.began[number]):
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
        if self.done and state.chosen >= 0 and state.least[0] < self._misfit(state.models[0], self.config.bands[-1]):
            state.models = state.best.copy()
            self._predict(state.models[0])
            state.residual[-1] = self._residual
        took_s = time.perf_counter() - started
        return RefineStep(state.iteration, self.config.iterations, stage, self._residual, took_s)

    @property
    def _trial_steps(self) -> int:
        """Steps of each start that fit into the iterations; without one, starts are compared as they are."""
        return min(TRIAL_STEPS, self.config.iterations // len(self._state.models))

    def _choose(self) -> None:
        state = self._state
        state.chosen, state.stage = int(np.argmin(state.misfits)), 0
        state.models = state.models[state.chosen][None].copy()
        state.best, state.least = state.best[state.chosen][None].copy(), state.least[state.chosen][None].copy()

    def _try(self) -> None:
        """A step of the trial of a start."""
        state = self._state
        number = state.stage
        state.misfits[number], _ = self._improve(number, self.config.bands[0])
        state.in_stage += 1
        if state.in_stage < self._trial_steps:
            return
        state.stage, state.in_stage, state.doubt = number + 1, 0, DOUBT[0]
        if state.stage == len(state.models):
            self._choose()

    def _climb(self) -> str:
        """A Gauss-Newton step, and to the next band after the last of this one."""
        state, bands = self._state, self.config.bands
        while state.stage + 2 < len(bands) and not state.in_stage:
            if self._misfit(state.models[0], bands[state.stage + 1]) >= TIMELY:
                break
            state.stage += 1
        band = bands[state.stage]
        misfit, gain = self._improve(0, band)
        state.in_stage += 1
        explained = misfit <= MISFIT / band
        last, last_coarse = state.stage + 1 == len(bands), state.stage + 2 == len(bands)
        share = max(1, self.config.iterations // len(bands))
        if gain < (SLOW if last_coarse else STALLED) or explained or (state.in_stage >= share and not last):
            if last:
                state.stopped = (
                    f"All bands are explained to {misfit:.2g}, which two wave equations differ by."
                    if explained
                    else "No band of frequencies lowers the residual any further."
                )
            else:
                state.stage, state.in_stage, state.doubt = state.stage + 1, 0, DOUBT[0]
        return f"up to {band:g} of the peak frequency"

    def _improve(self, at: int, band: float) -> tuple[float, float]:
        """A step of a model: the misfit in the band that it leaves, and by which share that has fallen."""
        state = self._state
        state.models[at], misfit, gain = self._gauss_newton(state.models[at], band)
        least = self._misfit(state.models[at], self.config.bands[-1])
        if least < state.least[at]:
            state.best[at], state.least[at] = state.models[at], least
        return misfit, gain

    def _misfit(self, model: Float64, band: float) -> float:
        """Of a model in a band, over the record there."""
        left = self._seen.record - self._predict(model)[1]
        return _rms(self._seen.through(left, band)) / _rms(self._seen.through(self._seen.record, band))

    def _blocks(self, band: float) -> tuple[int, int]:
        """Cells of the blocks that a band is inverted on."""
        return FINE if self._fine and band == self.config.bands[-1] else COARSE

    def _gauss_newton(self, model: Float64, band: float) -> tuple[Float64, float, float]:
        """A better model, its misfit in the band over the record's there, and by which share that has fallen."""
        state, sensitivity = self._state, self._sensitivities[self._blocks(band)]
        blocks = sensitivity.blocks
        roughness = Roughness(blocks.shape, lateral=blocks.cells[0] / blocks.cells[1])
        source, predicted = self._predict(model)
        seen = self._seen.through(self._seen.record, band)
        scale, left = _rms(seen), self._seen.through(self._seen.record - predicted, band)
        misfit = _rms(left)
        curvature, slope = self._normal(sensitivity, model, source, band, left)
        cells = blocks.gather(model).ravel()
        mean, sure = self._belief(blocks, cells)
        for _ in range(ATTEMPTS):
            sigma2 = ((MISFIT / band * scale) ** 2 + (state.doubt * misfit) ** 2) * sensitivity.correlated(band)
            change = roughness.solve(
                curvature / sigma2,
                slope / sigma2 + sure * (mean - cells),
                cells,
                1 / INTERFACE_M_S,
                sure + blocks.share / (TRUST_M_S * min(1.0, band)) ** 2,
            )
            spread = blocks.spread(change.reshape(blocks.shape))
            for part in PARTS:
                tried = _within(model + part * spread, model, self._observed.frame, self.config)
                again = _rms(self._seen.through(self._seen.record - self._predict(tried)[1], band))
                if again < misfit:
                    state.doubt = max(DOUBT[1], state.doubt * (0.7 if part == 1 else 1.4))
                    return tried, again / scale, 1 - again / misfit
            state.doubt = min(DOUBT[2], 2 * state.doubt)
        self._predict(model)
        return model, misfit / scale, 0.0

    def _belief(self, blocks: Blocks, cells: Float64) -> tuple[Float64, Float64]:
        """The prior's mean and curvature of each block; ``cells`` and 0 without one."""
        if not len(self._state.prior):
            return cells, np.zeros_like(cells)
        mean, deviation = (blocks.gather(each).ravel() for each in self._state.prior)
        return mean, PRIOR * blocks.share / deviation**2

    def _normal(
        self, sensitivity: Sensitivity, model: Float64, source: Source, band: float, left: Tensor
    ) -> tuple[Float64, Float64]:
        """J'J and J'r of a band: ``(block, block)``, of which the upper half is given, and ``(block,)``."""
        response = torch.from_numpy(self._seen.response(sensitivity.frequency_hz.double().numpy(), band)).float()
        jacobian = sensitivity.jacobian(model, self._state.wavelet, source, response)
        return sensitivity.normal(jacobian, self._seen.live * self._seen.late, left)

    def _fold(self, model: Float64) -> None:
        """Predict from now on with the source of a model."""
        source, _ = self._predict(model)
        self._state.wavelet = folded_wavelet(source, self._state.wavelet, self._observed.frame)
        self._predicted = None

    def _predict(self, model: Float64) -> tuple[Source, Tensor]:
        """The source, and ``(shot, time, receiver)`` predicted with it; zero where the record is not live."""
        if self._predicted is None or not np.array_equal(self._predicted[0], model):
            with torch.no_grad():
                made = self._forward(torch.from_numpy(model).float()[None], torch.from_numpy(self._state.wavelet))
                made = made[0].cpu()
            source, predicted = estimate_source(self._observed, made.numpy())
            self._predicted = model.copy(), source, torch.from_numpy(predicted)
        return self._predicted[1], self._predicted[2]

    @property
    def _residual(self) -> float:
        """Of the model that was predicted last: the one that the iteration ended with."""
        left = self._seen.record if self._predicted is None else self._seen.record - self._predicted[2]
        return _rms(left * self._seen.live) / self._rms

    def remaining(self) -> Remaining:
        """What is left to doubt; costs a step on coarse blocks."""
        sensitivity, model = self._sensitivities[COARSE], np.asarray(self.velocity, np.float64)
        blocks, frame, band = sensitivity.blocks, self._observed.frame, self.config.bands[-1]
        source, predicted = self._predict(model)
        left = self._seen.through(self._seen.record - predicted, band)
        scale = _rms(self._seen.through(self._seen.record, band))
        curvature, _ = self._normal(sensitivity, model, source, band, left)
        misfit, illumination = _rms(left), np.sqrt(np.diag(curvature)).reshape(blocks.shape)
        sigma2 = ((MISFIT / band * scale) ** 2 + misfit**2) * sensitivity.correlated(band)
        cells = blocks.gather(model).ravel()
        unknown_m_s = (frame.velocity_m_s[1] - frame.velocity_m_s[0]) / math.sqrt(12)
        known = np.triu(curvature / sigma2, 1)
        known += known.T + Roughness(blocks.shape).form(cells) / INTERFACE_M_S
        known += np.diag(np.diag(curvature) / sigma2 + self._belief(blocks, cells)[1] + 1 / unknown_m_s**2)
        deviation = np.sqrt(np.diag(np.linalg.inv(known))).reshape(blocks.shape)
        return Remaining(
            deviation=blocks.spread(deviation),
            misfit=misfit / scale,
            illumination=blocks.spread(illumination / max(illumination.max(), 1e-30)),
        )

    def result(self) -> Refined:
        """The model, what is left of uncertainty, and where waves have been; costs a step."""
        state, model, remaining = self._state, np.asarray(self.velocity, np.float64), self.remaining()
        off, (low, high) = half_width_m_s(remaining), self._observed.frame.velocity_m_s
        source, _ = self._predict(model)
        return Refined(
            velocity=self.velocity,
            low=np.minimum(np.clip(model - off, low, high), model).astype(np.float32),  # what is kept may lie outside
            high=np.maximum(np.clip(model + off, low, high), model).astype(np.float32),
            illumination=remaining.illumination.astype(np.float32),
            residual=state.residual.astype(np.float32),
            residual_before=float(state.began[self.start]),
            residual_after=self._residual,
            misfit=remaining.misfit,
            source=filtered_wavelet(source, state.wavelet),
            start=self.start,
            stopped=self.stopped,
            free_surface=state.free_surface,
        )


def check_memory(observed: Observed) -> None:
    """Whether a refinement's arrays, which the frame bounds, are of a size that a machine has. Raises InvalidConfig."""
    frame, size = observed.frame, step_bytes(observed.frame, len(observed.shot_x_m), COARSE)
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
