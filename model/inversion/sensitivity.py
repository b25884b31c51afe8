"""How a record answers to each block of the ground: the whole Jacobian, from the wavefields of shots and receivers.

The scattered wave of a cell is the wave that reaches it, differentiated twice, times the wave that would reach it from
the receiver (Born's approximation and reciprocity; Pratt, Gerhard, Shin and Hicks 1998, "Gauss-Newton and full Newton
methods in frequency-space seismic waveform inversion"). deepwave has products with this matrix only; but on cells of
twice the size, where a line of some ten shots needs no more than one wavefield a receiver, all of it costs as much as
ten gradients. It steers a step; what a step brings is measured by `forward.Forward` on the frame's own cells.

Below a free surface deepwave's rows lie whole squares deep, and the centres of blocks between them: the ground of a row
is interpolated between blocks, and waves between rows.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from scipy.linalg.blas import ssyrk
from torch import Tensor
from torch.nn import functional

from seisbind.model.frame import Frame
from seisbind.model.inversion.forward import COURANT, PML_CELLS
from seisbind.model.inversion.source import Source
from seisbind.model.waves.wavefield import ABSORBING, Boundary

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

COARSE, FINE = (2, 2), (1, 2)  # cells of a block, (depth, x): coarse ones are a fifth of the shortest wavelength of the
# bands that they are used for; an interface lies between two cells, and a coarse block would smear each second one
RECEIVERS = {COARSE: 3, FINE: 4}  # every so many
BEYOND_CELLS = {COARSE: 32, FINE: 8}  # that the map goes on by, ever less: its edges are half-spaces, and a wave sees
# far into them; the fine blocks of a frame are inverted when little is left to move
PULSE_S = (0.15, 0.6)  # width and middle of a receiver's pulse, periods of the frame's peak frequency
SAMPLED = 5.0  # samples of a Jacobian to a period of the frame's peak frequency
PER_CALL = 10  # wavefields
A_CELL_DEEP = {1: (1.0, 0.0), 2: (0.625, -0.0625)}  # by cells to a row: what a source a cell below a free surface gives
# to the first two rows. At half a row that is cubic interpolation, rows above the surface being those below, negative
# And of what four rows a square's centre has: cubic, too, a quarter of a row below the second
CENTRE = {1: (0, 1, 0, 0), 2: (-0.0546875, 0.8203125, 0.2734375, -0.0390625)}
MATRICES = 7  # of blocks by blocks, float64, that a step holds at once


@dataclass(frozen=True, slots=True)
class Blocks:
    """The cells that a frame's are grouped into.

    Attributes:
        shape: (depth, x) of the blocks.
        cells: (depth, x) of a block, in cells.
    """

    shape: tuple[int, int]
    cells: tuple[int, int] = COARSE

    @classmethod
    def of(cls, frame: Frame, cells: tuple[int, int] = COARSE) -> Blocks:
        """Those of a frame, whose cells are even in number."""
        depth, x = frame.velocity_shape
        return cls((depth // cells[0], x // cells[1]), cells)

    @property
    def share(self) -> float:
        """Of a coarse block that one of these is."""
        return math.prod(self.cells) / math.prod(COARSE)

    def gather(self, cells: Float64) -> Float64:
        """Means over blocks of ``(depth, x)``."""
        (depth, x), (down, across) = self.shape, self.cells
        return np.asarray(cells.reshape(depth, down, x, across).mean(axis=(1, 3)))

    def spread(self, blocks: Float64) -> Float64:
        """``(depth, x)`` cells, each its block's value: linear between centres, an interface would ring."""
        return np.asarray(blocks.repeat(self.cells[0], axis=0).repeat(self.cells[1], axis=1))


class Sensitivity:
    """Jacobians of the records of one line.

    Args:
        shot_x_m: ``(shot,)``.
        frame: its cells, receivers and samples.
        cells: of a block, `COARSE` or `FINE`. Waves are modelled on squares of its height.
        boundary: whether there is a free surface, as deep as `Forward` has it.
        device: of torch.
    """

    def __init__(
        self,
        shot_x_m: Float32,
        frame: Frame,
        *,
        cells: tuple[int, int] = COARSE,
        boundary: Boundary = ABSORBING,
        device: str = "cpu",
    ) -> None:
        self.frame, self.blocks, self._device = frame, Blocks.of(frame, cells), torch.device(device)
        self.receivers = np.arange(0, frame.receivers, RECEIVERS[cells])
        self.stride, self.rows, self.size = _times(frame)
        self.row_s = frame.dt_s * self.stride
        self._square = Blocks.of(frame, (cells[0], cells[0]))
        self._beyond = BEYOND_CELLS[cells] // cells[0]
        self._free = boundary.free_surface
        self._off = (cells[0] - 1) / 2 / cells[0]  # squares from a square's first cell to its centre
        self._shots_m = np.asarray(shot_x_m, np.float64)
        self._receivers_m = np.asarray(frame.survey.receiver_x_m)[self.receivers]
        width, middle = (share / frame.peak_hz for share in PULSE_S)
        time_s = torch.arange(math.ceil(2 * middle / frame.dt_s)) * frame.dt_s
        self._pulse = torch.exp(-0.5 * ((time_s - middle) / width) ** 2).float()
        less = np.cos(np.pi / 2 * (np.arange(self._beyond) + 0.5) / self._beyond) ** 2
        self._less = torch.from_numpy(less).to(self._device, torch.complex64)

    @property
    def frequency_hz(self) -> Tensor:
        """``(frequency,)`` of the transforms of its rows."""
        frequency: Tensor = torch.fft.rfftfreq(self.size, self.row_s)
        return frequency

    def jacobian(self, velocity: Float64, wavelet: Float32, source: Source, response: Tensor) -> Tensor:
        """``(shot, receiver, time, block)``: how the filtered record changes per m/s of each block.

        Args:
            velocity: ``(depth, x)`` m/s.
            wavelet: ``(n,)`` that `Forward` predicts with.
            source: of the record.
            response: ``(frequency,)`` of the zero-phase filter that residuals are seen through.
        """
        hz = self.frequency_hz
        above, below = (0, self._beyond + 2) if self._free else (self._beyond, self._beyond)
        beside = self._beyond, self._beyond
        slowness2 = np.pad(self._square.gather(velocity**-2.0), [(above, below), beside], mode="edge")
        ground = torch.from_numpy(slowness2**-0.5).to(self._device, torch.float32)
        rows = ground
        if self._free:
            slowness2 = (1 - self._off) * slowness2[1:] + self._off * slowness2[:-1]
            ground, rows = ground[:-2], torch.from_numpy(slowness2**-0.5).to(ground)
        kept = 1 + int((response > 1e-3 * response.max()).nonzero().max())
        kept = min(len(hz), math.ceil(1.3 * kept))  # what the end of a record cuts leaks to beside it
        from_shots, from_receivers = (
            self._fields(rows, x_m, sent, kept)
            for x_m, sent in (
                (self._shots_m, torch.from_numpy(np.asarray(wavelet, np.float32))),
                (self._receivers_m, self._pulse),
            )
        )  # (position, frequency, depth, x)
        pulse = torch.fft.rfft(self._pulse[:: self.stride], self.size)
        late = torch.exp(2j * math.pi * hz * self.frame.record_dt_s)  # row 0 is that late
        factor = (-((2 * math.pi * hz) ** 2) * late / pulse)[:kept].to(self._device, torch.complex64)
        area = math.prod(self._square.cells)  # a wave of a source in a square of that many cells is that much stronger
        from_receivers *= factor[:, None, None] * (2 / ground**3 / area)
        lag_s = torch.arange(-source.half, source.half + 1) * self.frame.dt_s
        taps = torch.from_numpy(source.filter).to(torch.complex64)
        seen = (torch.exp(-2j * math.pi * hz[:, None] * lag_s).to(torch.complex64) @ taps) * response
        filtered = torch.fft.rfft(torch.eye(self.rows), self.size, dim=0) * seen[:, None]
        seen_rows = torch.fft.irfft(filtered, self.size, dim=0)[: self.rows].to(self._device)  # (time, time)
        out = torch.empty(
            len(from_shots), len(self.receivers), self.rows, math.prod(self.blocks.shape), device=self._device
        )
        for wave, answers in zip(from_shots, out, strict=True):
            inner = self._within_map(wave * from_receivers).flatten(2)  # (receiver, frequency, block)
            answers[:] = seen_rows @ torch.fft.irfft(inner, self.size, dim=1)[:, : self.rows]
        return out

    def correlated(self, band: float) -> float:
        """Rows to one that is independent, up to so many peak frequencies."""
        return 1 / min(1.0, 2 * band * self.frame.peak_hz * self.row_s)

    def normal(self, jacobian: Tensor, weights: Tensor, left: Tensor) -> tuple[Float64, Float64]:
        """J'J ``(block, block)``, of which the upper half is given, and J'r ``(block,)``.

        Args:
            jacobian: see above; weighed in place.
            weights: ``(shot, time, receiver)``; 0 where a trace is dead.
            left: ``(shot, time, receiver)`` what is left of the record.
        """
        rows = (slice(None), slice(None, None, self.stride), self.receivers)
        jacobian *= weights[rows].transpose(1, 2)[..., None].to(jacobian)
        flat = jacobian.flatten(0, 2)
        slope = flat.T @ left[rows].transpose(1, 2).to(flat).flatten()
        curvature = ssyrk(1.0, flat.numpy().T) if flat.device.type == "cpu" else (flat.T @ flat).cpu().numpy()
        return curvature.astype(np.float64), slope.double().cpu().numpy()

    def _within_map(self, scattered: Tensor) -> Tensor:
        """``(.., depth, x)`` of blocks, of squares: beyond the map its edge goes on, ever less."""
        beyond, less = self._beyond, self._less
        if self._free:
            inner = scattered[..., :-beyond, :].clone()
        else:
            inner = scattered[..., beyond:-beyond, :].clone()
            inner[..., 0, :] += less.flip(0) @ scattered[..., :beyond, :]
        inner[..., -1, :] += less @ scattered[..., -beyond:, :]
        across = inner[..., beyond:-beyond].clone()
        across[..., 0] += inner[..., :beyond] @ less.flip(0)
        across[..., -1] += inner[..., -beyond:] @ less
        wide = self.blocks.cells[1] // self.blocks.cells[0]
        return across if wide == 1 else across[..., ::2] + across[..., 1::2]

    def _centred(self, wave: Tensor) -> Tensor:
        """Waves in squares' centres, of rows ``(.., depth, x)`` below a free surface; the first square lies on it."""
        odd = functional.pad(wave, (0, 0, 2, 0))
        odd[..., 0, :] = -wave[..., 0, :]
        centred = torch.zeros_like(wave[..., :-1, :])
        for n, share in enumerate(CENTRE[self.blocks.cells[0]]):
            centred += share * odd[..., n : n + centred.shape[-2], :]
        return centred

    def _fields(self, ground: Tensor, x_m: Float64, wavelet: Tensor, kept: int) -> Tensor:
        """``(position, frequency, depth, x)`` the wave everywhere from each position, a cell of the frame deep."""
        import deepwave

        frame, side = self.frame, self._square.cells[0]
        square_m = frame.cell_m * side
        fastest = max(frame.velocity_m_s[1], float(ground.max()))
        steps = math.ceil(frame.dt_s * math.sqrt(2) * fastest / (COURANT * square_m) - 1e-9)  # to a sample
        size = 4 * frame.samples
        finer = torch.fft.irfft(torch.fft.rfft(wavelet, size), size * steps) * steps
        source = -finer[: self.rows * self.stride * steps].to(self._device, torch.float32)
        down = self._beyond + (1 / side - self._off)
        across = self._beyond + (x_m / frame.cell_m / side - self._off)
        top, left = 0 if self._free else int(down), np.floor(across).astype(np.int64)
        deep = A_CELL_DEEP[side] if self._free else (1 - down + top, down - top)
        at = torch.from_numpy(
            np.stack([np.stack([np.full_like(left, top + i), left + j], 1) for i in (0, 1) for j in (0, 1)], axis=1)
        )  # (position, 4, 2)
        shares = [share * (across - left if j else 1 - across + left) for share in deep for j in (0, 1)]
        amplitude = torch.from_numpy(np.stack(shares, axis=1)).float().to(self._device)[:, :, None] * source
        out = []
        for start in range(0, len(x_m), PER_CALL):
            some, seen = slice(start, start + PER_CALL), list[Tensor]()
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="At least six grid cells")
                deepwave.scalar(
                    ground,
                    square_m,
                    frame.dt_s / steps,
                    source_amplitudes=amplitude[some],
                    source_locations=at[some].to(self._device),
                    accuracy=4,
                    pml_width=[0 if self._free else PML_CELLS, *3 * [PML_CELLS]],
                    boundary=["free" if self._free else "pml", *3 * ["pml"]],
                    pml_freq=frame.peak_hz,
                    courant_number=COURANT,
                    max_vel=fastest,
                    forward_callback=lambda state, seen=seen: seen.append(
                        state.get_wavefield("wavefield_0", view="inner").clone()
                    ),
                    callback_frequency=self.stride * steps,
                )
            wave = torch.stack(seen, dim=1)  # (position, time, depth, x)
            out.append(torch.fft.rfft(self._centred(wave) if self._free else wave, self.size, dim=1)[:, :kept])
        return torch.cat(out)


def step_bytes(frame: Frame, shots: int, cells: tuple[int, int]) -> int:
    """Of the arrays of a step on blocks of so many cells: a Jacobian, the spectra that it is made of, the matrices."""
    blocks, (_, rows, size) = math.prod(Blocks.of(frame, cells).shape), _times(frame)
    receivers = len(range(0, frame.receivers, RECEIVERS[cells]))
    squares = math.prod(cells_ // cells[0] + 2 * (BEYOND_CELLS[cells] // cells[0]) for cells_ in frame.velocity_shape)
    spectra = 8 * (shots + 2 * receivers) * (size // 2 + 1) * squares
    return 4 * shots * receivers * rows * blocks + spectra + MATRICES * 8 * blocks**2


def _times(frame: Frame) -> tuple[int, int, int]:
    """Samples to one of a Jacobian, how many it has of them, and the length of their transforms."""
    stride = max(1, int(1 / (SAMPLED * frame.peak_hz * frame.dt_s)))
    rows = math.ceil(frame.samples / stride)
    return stride, rows, next_fast_len(math.ceil(2.4 * rows), real=True)
