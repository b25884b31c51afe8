"""Differentiable forward modelling of velocity models through the line of a record, at the record's own samples."""

from __future__ import annotations

import math
import warnings
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from seisbind.model.errors import InvalidConfig, MissingExtra
from seisbind.model.frame import Frame
from seisbind.model.waves.wavefield import ABSORBING, Boundary

Float64 = NDArray[np.float64]

PML_CELLS = 10  # what comes back is 0.24 % of the record's rms, less than two operators differ by
COURANT = 0.65  # as in `waves.wavefield`: OpenFWI's own step at its fastest velocity


def require_deepwave() -> None:
    """Raises MissingExtra where deepwave is not installed, without importing it."""
    if find_spec("deepwave") is None:
        raise MissingExtra("deepwave is not installed: pip install 'seisbind[inversion]'.")


class Forward:
    """Constant-density acoustic modelling by deepwave of the shots of one line, the same for all models.

    Rows are those of `Observed`. Shots and receivers lie a cell deep; between two cells they are shared by both.

    Args:
        shot_x_m: ``(shot,)`` from the line's first receiver; up to `Frame.shot_margin_m` beside the map.
        frame: cells, receivers, samples.
        boundary: `waves.wavefield.ABSORBING` or `FREE_SURFACE`; its width is that of the layer.
        device: of torch.

    Raises:
        InvalidConfig: a device that is not there.
        MissingExtra: deepwave is not installed.
    """

    def __init__(
        self, shot_x_m: ArrayLike, frame: Frame, *, boundary: Boundary = ABSORBING, device: str = "cpu"
    ) -> None:
        require_deepwave()
        import deepwave

        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise InvalidConfig(f"Device {device!r} was asked for, but torch sees no CUDA device; use device='cpu'.")
        self._scalar = deepwave.scalar
        self.frame, self.boundary, self.device = frame, boundary, torch.device(device)
        shots_m = np.asarray(shot_x_m, np.float64)
        receivers_m = np.asarray(frame.survey.receiver_x_m)
        every_m = np.concatenate([shots_m, receivers_m]) / frame.cell_m
        # a map that reaches the outermost positions: its edge goes on to there
        self._left = max(0, -math.floor(every_m.min()))
        self._right = max(0, math.ceil(every_m.max()) + 1 - frame.x_cells)
        self._top = 1 if boundary.free_surface else 0  # deepwave's free surface lies a cell above its first row
        cells, weights = self._between(shots_m)  # (shot, 2)
        self._source_at = self._locations(cells)  # (shot, 2, 2)
        self._source_at[torch.from_numpy(weights == 0)] = deepwave.IGNORE_LOCATION
        self._source_weight = torch.from_numpy(weights).float().to(self.device)
        cells, weights = self._between(receivers_m)  # (receiver, 2)
        recorded, where = np.unique(cells, return_inverse=True)
        spread = np.zeros((len(recorded), len(receivers_m)), np.float32)  # (cell, receiver)
        np.add.at(spread, (where.reshape(cells.shape), np.arange(len(cells))[:, None]), weights)
        heard = spread.any(axis=1)
        self._receiver_at = self._locations(recorded[heard])  # (cell, 2)
        self._spread = None if np.array_equal(spread[heard], np.eye(len(receivers_m))) else torch.from_numpy(
            spread[heard]
        ).to(self.device)  # fmt: skip

    def _between(self, x_m: Float64) -> tuple[NDArray[np.int64], Float64]:
        """``(position, 2)``: the two cells beside each position, and their shares of it."""
        x = np.round(x_m / self.frame.cell_m, 6)
        cell = np.floor(x).astype(np.int64)
        share = x - cell
        return np.stack([cell, cell + 1], axis=1), np.stack([1 - share, share], axis=1)

    def _locations(self, cells: NDArray[np.int64]) -> Tensor:
        """``(.., 2)`` depth and x in the map as deepwave is given it."""
        depth = np.full_like(cells, 1 - self._top)
        return torch.from_numpy(np.stack([depth, cells + self._left], axis=-1)).to(self.device)

    def __call__(self, velocity: Tensor, wavelet: Tensor) -> Tensor:
        """Records of velocity models; gradients flow to both arguments.

        Args:
            velocity: ``(model, depth, x)`` m/s of the frame, on any device.
            wavelet: ``(n,)`` source time function at ``frame.dt_s``, its first sample at time 0.

        Returns:
            ``(model, shot, time, receiver)`` float32 on the device of this object.
        """
        frame, shots = self.frame, len(self._source_at)
        models = velocity.to(self.device, torch.float32)
        fastest = max(frame.velocity_m_s[1], float(models.detach().max()))
        steps = math.ceil(frame.dt_s * math.sqrt(2) * fastest / (COURANT * frame.cell_m) - 1e-9)  # a row
        models = functional.pad(models[:, None], (self._left, self._right, 0, 0), mode="replicate")[:, 0, self._top :]
        source = -self._fine(wavelet.to(self.device, torch.float32), steps)
        amplitudes = self._source_weight[:, :, None] * source  # (shot, 2, step)
        width, top = self.boundary.width_cells or PML_CELLS, self._top
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="At least six grid cells")
            record: Tensor = self._scalar(
                models.repeat_interleave(shots, dim=0) if len(models) > 1 else models[0],  # (model * shot, depth, x)
                frame.cell_m,
                frame.dt_s / steps,
                source_amplitudes=amplitudes.repeat(len(models), 1, 1),
                source_locations=self._source_at.repeat(len(models), 1, 1),
                receiver_locations=self._receiver_at.expand(len(models) * shots, -1, -1),
                accuracy=4,
                pml_width=[0 if top else width, width, width, width],
                boundary=["free" if top else "pml", "pml", "pml", "pml"],
                pml_freq=frame.peak_hz,
                courant_number=COURANT,
                max_vel=fastest,
                model_gradient_sampling_interval=steps,
            ).receiver_amplitudes  # (model * shot, cell, step)
        record = record[:, :, ::steps].transpose(1, 2)  # (model * shot, time, cell)
        if self._spread is not None:
            record = record @ self._spread
        return record.reshape(len(models), shots, frame.samples, frame.receivers)

    def _fine(self, wavelet: Tensor, steps: int) -> Tensor:
        """``(step,)`` the wavelet at deepwave's steps, `Frame.record_dt_s` early, for that is how late row 0 is."""
        frame, length = self.frame, len(wavelet)
        size = 2 * max(length, frame.samples)
        frequency = torch.fft.rfftfreq(size, frame.dt_s, device=self.device)
        early = torch.exp(2j * math.pi * frequency * frame.record_dt_s)
        fine: Tensor = torch.fft.irfft(torch.fft.rfft(wavelet, size) * early, size * steps) * steps
        return fine[: frame.samples * steps].to(torch.float32)
