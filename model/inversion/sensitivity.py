"""How a record answers to each block of the ground: the whole Jacobian, from the wavefields of shots and receivers.

The scattered wave of a cell is the wave that reaches it, differentiated twice, times the wave that would reach it from
the receiver (Born's approximation and reciprocity; Pratt, Gerhard, Shin and Hicks 1998, "Gauss-Newton and full Newton
methods in frequency-space seismic waveform inversion"). deepwave has products with this matrix only; but on cells of
twice the size, where a line of some ten shots needs no more than one wavefield a receiver, all of it costs as much as
ten gradients. It steers a step; what a step brings is measured by `forward.Forward` on the frame's own cells.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seisbind.model.frame import Frame
from seisbind.model.inversion.forward import COURANT, PML_CELLS
from seisbind.model.inversion.source import Source

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

BLOCK = 2  # cells to a block's side: a fifth of the shortest wavelength of the band that it is used for
RECEIVERS = 3  # every third one
BEYOND = 16  # blocks that the map goes on by, ever less: its edges are half-spaces, and a wave sees far into them
PULSE_S = (0.15, 0.6)  # width and middle of a receiver's pulse, periods of the frame's peak frequency
SAMPLED = 5.0  # samples of a Jacobian to a period of the frame's peak frequency
PER_CALL = 10  # wavefields


@dataclass(frozen=True, slots=True)
class Blocks:
    """The coarse cells that a frame's are grouped into.

    Attributes:
        shape: (depth, x) of the blocks.
    """

    shape: tuple[int, int]

    @classmethod
    def of(cls, frame: Frame) -> Blocks:
        """Those of a frame, whose cells are even in number."""
        depth, x = frame.velocity_shape
        return cls((depth // BLOCK, x // BLOCK))

    def gather(self, cells: Float64) -> Float64:
        """Means over blocks of ``(depth, x)``."""
        return np.asarray(cells.reshape(self.shape[0], BLOCK, self.shape[1], BLOCK).mean(axis=(1, 3)))

    def spread(self, blocks: Float64) -> Float64:
        """``(depth, x)`` cells, each its block's value: linear between centres, an interface would ring."""
        return np.asarray(blocks.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1))


class Sensitivity:
    """Jacobians of the records of one line.

    Args:
        shot_x_m: ``(shot,)``.
        frame: its cells, receivers and samples.
        wavelet: ``(n,)`` that `Forward` predicts with.
        device: of torch.
    """

    def __init__(self, shot_x_m: Float32, frame: Frame, wavelet: Float32, *, device: str = "cpu") -> None:
        self.frame, self.blocks, self._device = frame, Blocks.of(frame), torch.device(device)
        self.receivers = np.arange(0, frame.receivers, RECEIVERS)
        self.stride, self.rows, self.size = _times(frame)
        self.row_s = frame.dt_s * self.stride
        self._shots_m = np.asarray(shot_x_m, np.float64)
        self._receivers_m = np.asarray(frame.survey.receiver_x_m)[self.receivers]
        self._wavelet = torch.from_numpy(np.asarray(wavelet, np.float32))
        width, middle = (share / frame.peak_hz for share in PULSE_S)
        time_s = torch.arange(math.ceil(2 * middle / frame.dt_s)) * frame.dt_s
        self._pulse = torch.exp(-0.5 * ((time_s - middle) / width) ** 2).float()
        self._down = torch.from_numpy(_continued(self.blocks.shape[0])).to(self._device, torch.complex64)
        self._across = torch.from_numpy(_continued(self.blocks.shape[1])).to(self._device, torch.complex64)

    @property
    def frequency_hz(self) -> Tensor:
        """``(frequency,)`` of the transforms of its rows."""
        frequency: Tensor = torch.fft.rfftfreq(self.size, self.row_s)
        return frequency

    def jacobian(self, velocity: Float64, source: Source, response: Tensor) -> Tensor:
        """``(shot, receiver, time, block)``: how the filtered record changes per m/s of each block.

        Args:
            velocity: ``(depth, x)`` m/s.
            source: of the record.
            response: ``(frequency,)`` of the zero-phase filter that residuals are seen through.
        """
        outer, hz = (self.blocks.shape[0] + 2 * BEYOND, self.blocks.shape[1] + 2 * BEYOND), self.frequency_hz
        slowness2 = np.pad(self.blocks.gather(velocity**-2.0), BEYOND, mode="edge")
        ground = torch.from_numpy(slowness2**-0.5).to(self._device, torch.float32)
        kept = 1 + int((response > 1e-3 * response.max()).nonzero().max())
        kept = min(len(hz), math.ceil(1.3 * kept))  # what the end of a record cuts leaks to beside it
        from_shots, from_receivers = (
            torch.fft.rfft(self._fields(ground, x_m, wavelet), self.size, dim=1)[:, :kept]
            for x_m, wavelet in ((self._shots_m, self._wavelet), (self._receivers_m, self._pulse))
        )  # (position, frequency, block)
        pulse = torch.fft.rfft(self._pulse[:: self.stride], self.size)
        late = torch.exp(2j * math.pi * hz * self.frame.record_dt_s)  # row 0 is that late
        factor = (-((2 * math.pi * hz) ** 2) * late / pulse)[:kept].to(self._device, torch.complex64)
        area = BLOCK**2  # a wave of a source in a block of that many cells is that much stronger
        born = (2 / ground**3 / area).flatten()
        lag_s = torch.arange(-source.half, source.half + 1) * self.frame.dt_s
        taps = torch.from_numpy(source.filter).to(torch.complex64)
        seen = (torch.exp(-2j * math.pi * hz[:, None] * lag_s).to(torch.complex64) @ taps) * response
        filtered = torch.fft.rfft(torch.eye(self.rows), self.size, dim=0) * seen[:, None]
        seen_rows = torch.fft.irfft(filtered, self.size, dim=0)[: self.rows].to(self._device)  # (time, time)
        out = torch.empty(
            len(from_shots), len(self.receivers), self.rows, math.prod(self.blocks.shape), device=self._device
        )
        for wave, rows in zip(from_shots, out, strict=True):
            scattered = (wave * factor[:, None] * born) * from_receivers  # (receiver, frequency, block)
            scattered = scattered.reshape(len(self.receivers), kept, *outer)
            inner = (self._down.T @ scattered @ self._across).flatten(2)
            rows[:] = seen_rows @ torch.fft.irfft(inner, self.size, dim=1)[:, : self.rows]
        return out

    def _fields(self, ground: Tensor, x_m: Float64, wavelet: Tensor) -> Tensor:
        """``(position, time, block)`` the wave everywhere from each position, a cell of the frame deep."""
        import deepwave

        frame, (depth, x) = self.frame, ground.shape
        block_m = frame.cell_m * BLOCK
        fastest = max(frame.velocity_m_s[1], float(ground.max()))
        steps = math.ceil(frame.dt_s * math.sqrt(2) * fastest / (COURANT * block_m) - 1e-9)  # to a sample
        size = 4 * frame.samples
        fine = torch.fft.irfft(torch.fft.rfft(wavelet, size), size * steps) * steps
        source = -fine[: self.rows * self.stride * steps].to(self._device, torch.float32)
        off = (BLOCK - 1) / 2  # cells from a block's first to its centre
        down = BEYOND + (1 - off) / BLOCK
        across = BEYOND + (x_m / frame.cell_m - off) / BLOCK
        top, left = int(down), np.floor(across).astype(np.int64)
        at = torch.from_numpy(
            np.stack([np.stack([np.full_like(left, top + i), left + j], 1) for i in (0, 1) for j in (0, 1)], axis=1)
        )  # (position, 4, 2)
        shares = [
            (down - top if i else 1 - down + top) * (across - left if j else 1 - across + left)
            for i in (0, 1)
            for j in (0, 1)
        ]
        amplitude = torch.from_numpy(np.stack(shares, axis=1)).float().to(self._device)[:, :, None] * source
        everywhere = torch.cartesian_prod(torch.arange(depth), torch.arange(x)).to(self._device)
        out = []
        for start in range(0, len(x_m), PER_CALL):
            some = slice(start, start + PER_CALL)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="At least six grid cells")
                wave = deepwave.scalar(
                    ground,
                    block_m,
                    frame.dt_s / steps,
                    source_amplitudes=amplitude[some],
                    source_locations=at[some].to(self._device),
                    receiver_locations=everywhere.expand(len(at[some]), -1, -1),
                    accuracy=4,
                    pml_width=PML_CELLS,
                    pml_freq=frame.peak_hz,
                    courant_number=COURANT,
                    max_vel=fastest,
                ).receiver_amplitudes  # (position, block, step)
            out.append(wave[:, :, :: self.stride * steps].transpose(1, 2))
        return torch.cat(out)


def jacobian_bytes(frame: Frame, shots: int) -> int:
    """Of a Jacobian and of the wavefields that it is made of."""
    (depth, x), (_, rows, size) = Blocks.of(frame).shape, _times(frame)
    receivers = len(range(0, frame.receivers, RECEIVERS))
    spectra = 8 * (shots + receivers) * (size // 2 + 1) * (depth + 2 * BEYOND) * (x + 2 * BEYOND)
    return 4 * shots * receivers * rows * depth * x + spectra


def _times(frame: Frame) -> tuple[int, int, int]:
    """Samples to one of a Jacobian, how many it has of them, and the length of their transforms."""
    stride = max(1, int(1 / (SAMPLED * frame.peak_hz * frame.dt_s)))
    rows = math.ceil(frame.samples / stride)
    return stride, rows, 1 << math.ceil(math.log2(2.4 * rows))


def _continued(blocks: int) -> Float64:
    """``(block and beyond, block)``: beyond the map its edge goes on, ever less."""
    less = np.cos(np.pi / 2 * (np.arange(BEYOND) + 0.5) / BEYOND)[:, None] ** 2
    own = np.eye(blocks)
    return np.concatenate([less[::-1] * own[:1], own, less * own[-1:]])
