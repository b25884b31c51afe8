"""Smooth random fields, for the texture families and whatever else varies without edges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter

PERIOD = 96  # cells of the periodic field that a map is cut from: far enough that its ends do not meet
TEXTURE_CELLS = {"Style-A": 3.5, "Style-B": 2.0}  # correlation lengths others fitted to the published maps

Float = NDArray[np.float64]


def random_field(rng: np.random.Generator, count: int, cells: int, *, length: Float, slope: Float) -> Float:
    """Gaussian fields (map, cells, cells) of mean 0 and sd 1 over the period.

    Args:
        length: (map, 2) correlation lengths along depth and x, cells: power falls as exp(-(k l)^2 / 2) past it.
        slope: (map,) exponent of the power spectrum k^-slope below that; 0 is a squared-exponential field.
    """
    k = 2 * np.pi * fft.fftfreq(PERIOD)
    kx = 2 * np.pi * fft.rfftfreq(PERIOD)
    squared = (k[None, :, None] * length[:, 0, None, None]) ** 2 + (kx * length[:, 1, None, None]) ** 2
    flat = k[:, None] ** 2 + kx**2
    flat[0, 0] = 1.0
    log_amplitude = -0.25 * slope[:, None, None] * np.log(flat) - 0.25 * squared
    amplitude = np.exp(log_amplitude).astype(np.float32)
    amplitude[:, 0, 0] = 0.0
    noise = rng.standard_normal((count, PERIOD, PERIOD), dtype=np.float32)
    field = fft.irfft2(fft.rfft2(noise) * amplitude, s=(PERIOD, PERIOD))
    field /= field.std(axis=(1, 2), keepdims=True)
    return np.asarray(field[:, :cells, :cells], dtype=np.float64)


def smooth(field: Float, cells: float) -> Float:
    """Gaussian blur of maps (map, depth, x) with sd ``cells``."""
    return np.asarray(gaussian_filter(field, (0, cells, cells), mode="nearest"))


def posterise(rng: np.random.Generator, field: Float) -> Float:
    """Shapes with edges, as objects in a photograph have: each map's field mapped through random steps."""
    levels = 6
    heights = rng.standard_normal((len(field), levels))
    index = np.clip(np.floor((field + 2.0) * levels / 4.0), 0, levels - 1).astype(np.intp)
    return np.take_along_axis(heights, index.reshape(len(field), -1), axis=1).reshape(field.shape)


def style(rng: np.random.Generator, count: int, *, family: str, cells: int) -> Float:
    """Maps (map, depth, x) in m/s like a photograph painted in the manner of a velocity section.

    Large shapes with edges and a power-law background, blurred to the family's correlation length, on a depth
    trend; Style-B adds white noise.
    """
    length = TEXTURE_CELLS[family]
    ones = np.ones((count, 2))
    slope = rng.uniform(1.5, 3.0, count)
    texture = random_field(rng, count, cells, length=length * ones, slope=slope)
    anisotropic = ones * np.stack([rng.uniform(6, 14, count), rng.uniform(8, 30, count)], axis=1)
    shapes = smooth(posterise(rng, random_field(rng, count, cells, length=anisotropic, slope=0 * slope)), length / 2)
    mix = rng.uniform(0.3, 0.8, count)[:, None, None]
    pattern = mix * texture + (1 - mix) * shapes
    depth = np.linspace(-1.0, 1.0, cells)[:, None]
    trend = rng.uniform(300, 1000, count)[:, None, None] * depth
    middle = rng.uniform(2400, 3300, count)[:, None, None]
    result = middle + trend + rng.uniform(200, 550, count)[:, None, None] * pattern
    if family == "Style-B":
        white = rng.uniform(20, 80, count)[:, None, None]
        result = result + white * rng.standard_normal(result.shape)
    return result
