"""Velocity models as pictures, with axes in metres and a colour bar in m/s."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from seisbind.model.frame import OPENFWI_FRAME

CACHED = 512  # pictures of about 20 KB
CACHED_BYTES = 32 << 20  # of them together: one of noise has 60 KB
COLOURS = "viridis"  # uniform, and readable for the colour-blind and in grey
DRAWING = threading.Lock()  # matplotlib shares font and text caches between figures


def velocity_png(velocity: NDArray[np.float32], *, title: str, cell_m: float = OPENFWI_FRAME.cell_m) -> bytes:
    """One velocity model ``(depth, x)``, m/s, in cells of ``cell_m``, as a PNG of 480 x 400 pixels.

    Safe to call from several threads.
    """
    depth_m, width_m = (n * cell_m for n in velocity.shape)
    with DRAWING:
        figure = Figure(figsize=(4.8, 4.0), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        image = axes.imshow(velocity, cmap=COLOURS, extent=(0, width_m, depth_m, 0), interpolation="nearest")
        axes.set_title(title, fontsize=9, parse_math=False)
        axes.set_xlabel("x (m)")
        axes.set_ylabel("depth (m)")
        figure.colorbar(image, ax=axes, label="velocity (m/s)")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


class PictureCache:
    """The last pictures, by the checksum and the title of what they show. Safe to use from several threads.

    Args:
        max_pictures: kept at once.
        max_bytes: of them together.
    """

    def __init__(self, *, max_pictures: int = CACHED, max_bytes: int = CACHED_BYTES) -> None:
        self._max_pictures, self._max_bytes = max_pictures, max_bytes
        self._bytes = 0
        self._pictures: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, str]) -> bytes | None:
        """The picture, if it is at hand."""
        with self._lock:
            picture = self._pictures.get(key)
            if picture is not None:
                self._pictures.move_to_end(key)
            return picture

    def put(self, key: tuple[str, str], picture: bytes) -> None:
        """Keep a picture, and drop those that were used longest ago."""
        with self._lock:
            self._bytes += len(picture) - len(self._pictures.pop(key, b""))
            self._pictures[key] = picture
            while len(self._pictures) > self._max_pictures or self._bytes > self._max_bytes:
                _, dropped = self._pictures.popitem(last=False)
                self._bytes -= len(dropped)
