"""Exact search of vectors that lie on a GPU in sixteen bits: the same answers as on the CPU, to the bit.

A segment's vectors are rounded to fp16 and multiplied there in blocks. How far that moves a product is bounded: by the
lengths of what rounding leaves out, measured for the segment and for each query, and by `accumulation` for the sums.
What could be among the best comes back, little of it, and its similarities are taken again in float64 on the host from
the float32 vectors, as everywhere (`shortlist`). The same code runs on torch's CPU device, for tests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.index.scanning.codes import LENGTH, Float64
from seisbind.index.scanning.shortlist import SLACK, Bool, Shortlist
from seisbind.index.storage.record import Float32
from seisbind.model.errors import SeisBindError

log = logging.getLogger(__name__)

# A segment with fewer vectors, such as what was added last, or fewer that a filter allows, is searched on the CPU.
DEVICE_VECTORS = 2048
UPLOADED = 16_384  # vectors rounded and copied at a time: 8 MB of 256-d ones in fp16
PRODUCTS = {"cuda": 1 << 24, "cpu": 1 << 20}  # of a block, float32: 64 MB on a GPU
BLOCK_VECTORS = {"cuda": 1 << 20, "cpu": 1 << 14}  # in a block, at most
SPARE_BYTES = 1 << 30  # of a GPU's free memory, left to the encoders and to the products of a block
MARGIN = 1e-6  # what comparisons in float32 on the device are off by, several times over
REFUSED_S = 60.0  # until vectors that did not fit are tried again

MEMORY, LOST = "memory", "lost"  # why the CPU searched instead


class DeviceFailed(Exception):
    """The device did not finish a search; the CPU can."""


class Held(Protocol):
    """Consecutive vectors that never change."""

    def __len__(self) -> int: ...

    def at(self, rows: slice | NDArray[np.int64]) -> Float32: ...


@dataclass(slots=True, eq=False)
class DeviceVectors:
    """The vectors of one segment on a device.

    Attributes:
        vectors: ``(count, dimension)`` fp16.
        error: the largest length of what rounding left out of a vector.
        mask: the host's last mask, and which vectors it allows, on the device.
    """

    vectors: torch.Tensor
    error: float
    mask: tuple[Bool, torch.Tensor] | None = None


def accumulation(dimension: int) -> float:
    """How far the sum of a product of unit vectors may be off, in whatever order and however it is rounded.

    Products of two fp16 numbers are exact in float32. Each is aligned and added with an error of at most one unit in
    the last place, cut off and not rounded on tensor cores; half of this bound is left over.
    """
    return (dimension + 2) * 2.0**-22


class Spaces(Protocol):
    """A view: its two indices."""

    @property
    def velocity(self) -> Holdable: ...

    @property
    def physics(self) -> Holdable: ...


class Holdable(Protocol):
    """A `VectorIndex`."""

    dimension: int

    def __len__(self) -> int: ...

    def hold(self, device: DeviceSearch) -> None: ...


def place(
    view: Spaces, device: torch.device, *, on_fall_back: Callable[[str], object]
) -> tuple[DeviceSearch | None, str]:
    """A search on ``device`` with the vectors of ``view`` there; else None, and a sentence that says why.

    Raises:
        GalleryDamaged: the vectors are not what was written.
    """
    search, index = DeviceSearch(device, on_fall_back=on_fall_back), view.velocity
    needed = 2 * 2 * len(index) * index.dimension
    try:
        free = search.free_bytes()
        if free is not None and needed > free:
            on_fall_back(MEMORY)
            return None, (
                f"The CPU searches: the vectors take {needed / 1e9:.2f} GB in fp16 and {device} has "
                f"{max(free, 0) / 1e9:.2f} GB free for them."
            )
        if not search.sound(index.dimension):
            on_fall_back(LOST)
            return None, f"The CPU searches: sums of products on {device} are less precise than is relied on."
        for each in (view.velocity, view.physics):
            each.hold(search)
    except DeviceFailed:
        return None, f"The CPU searches: {device} could not take the vectors; the log says why."
    return search, ""


class DeviceSearch:
    """Searches segments on a torch device. Safe to call from several threads.

    Vectors are copied there when they are first searched, or by `hold`. Where they do not fit, or the device fails, the
    CPU searches: `DeviceFailed` tells the caller so, a log line the operator, and ``on_fall_back`` a counter.

    Args:
        on_fall_back: called with `MEMORY` or `LOST`.
    """

    def __init__(self, device: torch.device, *, on_fall_back: Callable[[str], object] = lambda reason: None) -> None:
        self.device = device
        self._on_fall_back = on_fall_back
        self._held: WeakKeyDictionary[Held, DeviceVectors] = WeakKeyDictionary()
        self._refused: WeakKeyDictionary[Held, float] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._lost = False

    @property
    def bytes(self) -> int:
        """Of the vectors that lie on the device."""
        with self._lock:
            return sum(2 * held.vectors.numel() for held in self._held.values())

    @property
    def lost(self) -> bool:
        """Whether the device has failed, after which the CPU searches for good."""
        return self._lost

    def free_bytes(self) -> int | None:
        """Of the device's memory, beyond `SPARE_BYTES`; None where that is the host's."""
        if self.device.type != "cuda":
            return None
        with self._guarded(None):
            # what torch keeps for itself and does not use is free, too
            reusable = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return int(torch.cuda.mem_get_info(self.device)[0] + reusable - SPARE_BYTES)

    def sound(self, dimension: int) -> bool:
        """Whether products on the device keep within `accumulation`: of vectors whose sums cancel and do not.

        Raises:
            DeviceFailed: it cannot multiply.
        """
        generator = np.random.default_rng(0)
        vectors = generator.standard_normal((4096, dimension))
        vectors[::2] = np.abs(vectors[::2])
        vectors[::3] *= np.exp(4 * generator.standard_normal((len(vectors[::3]), dimension)))
        halves = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
        with self._guarded(None):
            held = torch.from_numpy(halves).to(self.device)
            found = _products(held[:64], held).cpu().numpy().astype(np.float64)
        exact = halves[:64].astype(np.float64) @ halves.astype(np.float64).T
        return bool(np.abs(found - exact).max() <= accumulation(dimension))

    def hold(self, segment: Held) -> DeviceVectors | None:
        """The vectors of ``segment`` on the device, copied if they are not there; None if they are few.

        Raises:
            DeviceFailed: they do not fit, or the device is lost.
            GalleryDamaged: the vectors are not what was written.
        """
        if len(segment) < DEVICE_VECTORS:
            return None
        with self._lock:
            if self._lost:
                raise DeviceFailed
            held = self._held.get(segment)
            if held is None:
                if time.monotonic() < self._refused.get(segment, 0.0):
                    self._on_fall_back(MEMORY)
                    raise DeviceFailed
                with self._guarded(segment):
                    held = self._held[segment] = self._copied(segment)
            return held

    def _copied(self, segment: Held) -> DeviceVectors:
        count, dimension = len(segment), segment.at(slice(0, 1)).shape[1]
        free = self.free_bytes()
        if free is not None and 2 * count * dimension > free:
            raise torch.OutOfMemoryError(f"{2 * count * dimension} bytes of vectors, {max(free, 0)} are free")
        vectors = torch.empty((count, dimension), dtype=torch.float16, device=self.device)
        longest = 0.0
        for start in range(0, count, UPLOADED):
            part = segment.at(slice(start, start + UPLOADED))
            halves = part.astype(np.float16)
            rest = part - halves.astype(np.float32)  # exact: the two are near each other
            longest = max(longest, float(np.einsum("ij,ij->i", rest, rest, dtype=np.float64).max()))
            vectors[start : start + len(part)] = torch.from_numpy(halves)
        return DeviceVectors(vectors, longest**0.5 * (1 + 1e-9))

    def scan(self, segment: Held, queries: Float32, shortlist: Shortlist, start: int, allowed: Bool | None) -> bool:
        """Give ``shortlist`` what may be among the best of each query; false if ``segment`` is one for the CPU.

        Args:
            queries: ``(query, dimension)`` of unit length.
            start: the position of its first vector.
            allowed: of all positions; None if all are.

        Raises:
            DeviceFailed: the device did not finish; the shortlist is to be made anew.
            GalleryDamaged: the vectors are not what was written.
        """
        held = self.hold(segment)
        if held is None:
            return False
        if allowed is not None and np.count_nonzero(allowed[start : start + len(segment)]) < DEVICE_VECTORS:
            return False
        with self._guarded(segment):
            self._scan(held, queries, shortlist, start, allowed)
        return True

    def _scan(
        self, held: DeviceVectors, queries: Float32, shortlist: Shortlist, start: int, allowed: Bool | None
    ) -> None:
        halves = queries.astype(np.float16)
        left_out = np.linalg.norm(queries.astype(np.float64) - halves.astype(np.float64), axis=1)
        error = error_bound(held.error, left_out, queries.shape[1])
        turned = torch.from_numpy(halves).to(self.device)
        mask = None if allowed is None else self._mask(held, allowed, start)
        best: torch.Tensor | None = None
        size = max(1, min(BLOCK_VECTORS[self.device.type], PRODUCTS[self.device.type] // len(queries)))
        for first in range(0, len(held.vectors), size):
            products = _products(turned, held.vectors[first : first + size])
            if mask is not None:
                products.masked_fill_(~mask[first : first + size], -torch.inf)
            best = _best(best, products, shortlist.k)
            # what is above the k-th best so far, or above what the shortlist knows of other segments
            limit = torch.from_numpy(shortlist.floor - error - SLACK - MARGIN).to(self.device, torch.float32)
            if best.shape[1] == shortlist.k:
                apart = torch.from_numpy(2 * error + SLACK + MARGIN).to(self.device, torch.float32)
                limit = torch.maximum(limit, best[:, -1] - apart)
            found = torch.nonzero((products >= limit[:, None]) & (products > -torch.inf), as_tuple=True)
            query, at = (part.cpu().numpy() for part in found)
            middle = products[found].cpu().numpy().astype(np.float64)
            shortlist.keep(query, at + (start + first), middle - error[query], middle + error[query])

    def _mask(self, held: DeviceVectors, allowed: Bool, start: int) -> torch.Tensor:
        """The part of ``allowed`` that is of these vectors; that of removed models is the same again and again."""
        mask = held.mask  # another thread may put its own there at any time
        if mask is None or mask[0] is not allowed:
            part = np.ascontiguousarray(allowed[start : start + len(held.vectors)])
            held.mask = mask = (allowed, torch.from_numpy(part).to(self.device))
        return mask[1]

    @contextmanager
    def _guarded(self, segment: Held | None) -> Iterator[None]:
        """Errors of the device are `DeviceFailed`, logged and counted; those of a gallery are raised as they are."""
        try:
            yield
        except (SeisBindError, DeviceFailed):
            raise
        except torch.OutOfMemoryError as error:
            if segment is not None:
                self._refused[segment] = time.monotonic() + REFUSED_S
                self._held.pop(segment, None)
            log.warning("The vectors do not fit on %s; the CPU searches them: %s", self.device, _line(error))
            self._on_fall_back(MEMORY)
            raise DeviceFailed from error
        except RuntimeError as error:
            self._lost = True
            with suppress(RuntimeError):
                self._held.clear()
            log.error("%s failed; the CPU searches from now on: %s", self.device, _line(error))
            self._on_fall_back(LOST)
            raise DeviceFailed from error


def error_bound(vectors: float, queries: Float64, dimension: int) -> Float64:
    """How far a product on the device may be from the inner product, ``(query,)``.

    Args:
        vectors: the largest length of what rounding left out of a vector.
        queries: that of each query, ``(query,)``.
    """
    # <q, v> - <q', v'> = <q, v - v'> + <q - q', v'>, and the sum itself
    rounded = LENGTH + vectors
    return np.asarray(
        LENGTH * vectors + queries * rounded + accumulation(dimension) * rounded * (LENGTH + queries) + 1e-9
    )


def _products(queries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Of ``(query, dimension)`` with ``(vector, dimension)``, both fp16: ``(query, vector)`` float32, summed in it."""
    if queries.device.type == "cuda":
        multiply: Any = torch.mm
        with suppress(TypeError):  # torch before 2.8 rounds the sums to fp16
            found: torch.Tensor = multiply(queries, vectors.T, out_dtype=torch.float32)
            return found
    return torch.mm(queries.float(), vectors.float().T)


def _best(best: torch.Tensor | None, products: torch.Tensor, k: int) -> torch.Tensor:
    """The ``k`` largest products of each query so far, or all if they are fewer, largest first: ``(query, k)``."""
    found = torch.topk(products, min(k, products.shape[1]), dim=1).values
    if best is None:
        return found
    found = torch.cat([best, found], dim=1)
    return torch.topk(found, min(k, found.shape[1]), dim=1).values


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
