"""Encoders behind numpy: gathers, velocity models and descriptors in, embeddings and inferred physics out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import zoom

from seisbind.model.confidence.intervals import departures, interval_factor, shot_distance
from seisbind.model.confidence.novelty import Verdict, judge, measure, scores, with_uncertainty
from seisbind.model.encoders.runtimes import as_tensor, choose_runtime
from seisbind.model.encoders.weights_file import Weights, load_weights
from seisbind.model.errors import InvalidConfig, InvalidGather, InvalidQuery, InvalidVelocityModel
from seisbind.model.frame import OPENFWI_FRAME, VELOCITY_LIMITS_M_S, Frame
from seisbind.model.ground.descriptors import DESCRIPTORS, NAMES, check_velocity
from seisbind.model.scale import Scale
from seisbind.model.survey.preparation import Prepared

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

BATCH = {"cpu": 64, "cuda": 512}  # gathers or velocity models per forward pass; larger ones are no faster
NEIGHBOURS = 5  # the paper's k for physics inferred from retrieved models
LAPLACE_90 = float(np.log(10))  # half width, in scales, that holds 90 % of a Laplace law
NORMAL_90 = 1.645  # the same of a normal law, in standard deviations


@dataclass(frozen=True, slots=True)
class EncodedGathers:
    """Embeddings and predictions of gathers, before any gallery is searched.

    Attributes:
        embedding: ``(batch, 256)`` unit vectors.
        descriptors: ``(batch, 13)`` predicted by the head, in the units of `descriptors.DESCRIPTORS`; None without one.
        descriptor_scale: ``(batch, 13)`` scale of the error that the head predicts, same units; None without one.
        velocity: ``(batch, 35, 35)`` coarse velocity model, m/s; None without a head.
        velocity_scale: ``(batch, 35, 35)`` scale of each cell's error that the head predicts, m/s; None without.
        family: ``(batch, families)`` probability of each of the configuration's families; None without a head.
        kind: ``(batch, kinds)`` probability of each of the configuration's kinds of ground; None without a head.
        measured: `novelty.measure` of the gathers, where intervals depend on it.
        shot_distance: ``(batch,)`` of `intervals.shot_distance`.
    """

    embedding: Float32
    descriptors: Float32 | None
    descriptor_scale: Float32 | None
    velocity: Float32 | None
    family: Float32 | None = None
    velocity_scale: Float32 | None = None
    kind: Float32 | None = None
    measured: Float64 | None = None
    shot_distance: Float64 | None = None

    def select(self, rows: NDArray[np.intp]) -> EncodedGathers:
        """Some of the gathers, in the order of ``rows``."""
        parts: dict[str, Any] = {head.name: getattr(self, head.name) for head in fields(self)}
        return replace(self, **{name: part[rows] for name, part in parts.items() if part is not None})

    @classmethod
    def joined(cls, parts: Sequence[EncodedGathers]) -> EncodedGathers:
        """The gathers of one or more parts by the same encoders, one part after another."""
        whole: dict[str, Any] = {}
        for head in fields(cls):
            rows = [getattr(part, head.name) for part in parts]
            whole[head.name] = None if rows[0] is None else np.concatenate(rows)
        return cls(**whole)

    def uncertainty(self, spread: Float32) -> Float32:
        """``(batch,)`` mean logarithm of `descriptor_scale` in units of ``spread`` (13,); zero without a head."""
        if self.descriptor_scale is None:
            return np.zeros(len(self.embedding), dtype=np.float32)
        return np.asarray(np.log(self.descriptor_scale / spread).mean(axis=1))


@dataclass(frozen=True, slots=True)
class InferredPhysics:
    """``value``, ``low``, ``high``: ``(batch, 13)``; the interval covers 90 % where the weights are calibrated."""

    value: Float32
    low: Float32
    high: Float32


@dataclass(frozen=True, slots=True)
class ReadModel:
    """Velocity models read from gathers, without a gallery, on all cells of the frame.

    Attributes:
        value: ``(batch, depth, x)``, m/s.
        low, high: of the 90 % interval of each cell, same shape; None where the weights state no error for it.
    """

    value: Float32
    low: Float32 | None = None
    high: Float32 | None = None


def choose_device(device: str = "auto") -> torch.device:
    """``auto`` is the first GPU where there is one, else the CPU.

    Raises:
        InvalidConfig: a device that this machine or this torch build does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InvalidConfig(f"Unknown device {device!r}; use auto, cpu, cuda or cuda:0.") from error
    if chosen.type not in ("cpu", "cuda"):
        raise InvalidConfig(f"Device {device!r} is not supported; use auto, cpu, cuda or cuda:0.")
    gpus = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= gpus:
        raise InvalidConfig(f"Device {device!r} was asked for, but torch {torch.__version__} sees {gpus} GPUs here.")
    return chosen


class Embedder:
    """Encoders on a device, numpy in and out. Safe to call from several threads: it holds no mutable state."""

    def __init__(
        self, weights: Weights, *, device: str = "auto", runtime: str = "auto", precision: str = "auto"
    ) -> None:
        self.device = choose_device(device)
        self.weights = weights
        self._batch = BATCH.get(self.device.type, BATCH["cpu"])
        self._foreign = np.array(weights.encoders.config.foreign, dtype=bool)
        self._encoders = weights.encoders.to(self.device).eval()
        self._runtime = choose_runtime(runtime, self._encoders, self.device, precision=precision)

    @classmethod
    def load(
        cls, path: Path | None = None, *, device: str = "auto", runtime: str = "auto", precision: str = "auto"
    ) -> Embedder:
        """See `weights_file.load_weights`, `choose_device` and `runtimes.choose_runtime`."""
        return cls(load_weights(path), device=device, runtime=runtime, precision=precision)

    @property
    def fingerprint(self) -> str:
        """Of the weights; `seisbind.model.fingerprint` says which galleries it goes with."""
        return self.weights.fingerprint

    @property
    def frame(self) -> Frame:
        """The frame that the weights were trained for."""
        return self.weights.description.frame

    @property
    def runtime(self) -> str:
        """``torch`` or ``onnxruntime``: which of them embeds gathers."""
        return self._runtime.name

    @property
    def descriptor_spread(self) -> Float32:
        """``(13,)`` standard deviation of each descriptor over the training set."""
        return np.asarray(self._encoders.descriptor_std.cpu().numpy())

    def embed_gathers(self, prepared: Prepared, *, measured: Float64 | None = None) -> EncodedGathers:
        """Embeddings, descriptors and coarse models of prepared gathers.

        Args:
            prepared: the gathers.
            measured: their `novelty.measure`, where it is known already.

        Raises:
            InvalidGather: they were prepared for another frame.
            InvalidQuery: there are none.
        """
        if prepared.frame != self.frame:
            raise InvalidGather(
                f"The gathers were prepared for another frame than the weights are for: {prepared.frame} there, "
                f"{self.frame} here. Prepare them with the weights' frame."
            )
        parts: list[dict[str, Float32]] = []
        for start in range(0, len(prepared), self._batch):
            batch = slice(start, start + self._batch)
            parts.append(
                self._runtime.read_gathers(prepared.traces[batch], prepared.live[batch], prepared.shot_x_m[batch])
            )
        if not parts:
            raise InvalidQuery("There are no gathers to embed.")
        read: dict[str, Any] = dict.fromkeys(head.name for head in fields(EncodedGathers))
        calibration = self.weights.description.calibration
        if calibration is not None and calibration.log_excess:
            read["measured"] = measure(prepared) if measured is None else measured
            read["shot_distance"] = shot_distance(prepared)
        if len(parts) == 1:
            return EncodedGathers(**read | parts[0])
        return EncodedGathers(**read | {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    @torch.inference_mode()
    def embed_velocity(self, velocity: ArrayLike) -> Float32:
        """``(batch, 256)`` unit vectors of velocity models ``(batch, depth, x)``, m/s.

        Raises:
            InvalidVelocityModel: see `descriptors.check_velocity`; or not of the frame's cells.
        """
        models = check_velocity(velocity)
        if models.shape[1:] != self.frame.velocity_shape:
            raise InvalidVelocityModel(
                f"The encoders take velocity models of {self.frame.cells_text}; got "
                f"{models.shape[1]} x {models.shape[2]}. Resample the model first."
            )
        parts = [
            self._encoders.embed_velocity(as_tensor(models[i : i + self._batch], self.device)).cpu().numpy()
            for i in range(0, len(models), self._batch)
        ]
        return np.concatenate(parts) if parts else np.empty((0, 256), dtype=np.float32)

    @torch.inference_mode()
    def embed_descriptors(self, descriptors: ArrayLike) -> Float32:
        """``(batch, 256)`` unit vectors of descriptors ``(batch, 13)``.

        Raises:
            InvalidQuery: not 13 finite columns.
        """
        table = np.atleast_2d(np.asarray(descriptors, dtype=np.float32))
        if table.ndim != 2 or table.shape[1] != len(NAMES) or not np.isfinite(table).all():
            raise InvalidQuery(f"Descriptors are {len(NAMES)} finite numbers each; got shape {np.shape(descriptors)}.")
        return np.asarray(self._encoders.embed_descriptors(as_tensor(table, self.device)).cpu().numpy())

    def infer_physics(self, encoded: EncodedGathers, neighbours: Float32 | None) -> InferredPhysics:
        """Descriptors of the velocity model under each gather, with their 90 % intervals.

        With a descriptor head, values are its predictions, whatever the gallery holds; the interval is its scale times
        a factor calibrated on held-out pairs (`confidence.intervals`), clipped to what is possible. Without one, values
        are the mean of the `NEIGHBOURS` nearest models, as in the paper, and their spread (uncalibrated).

        Args:
            encoded: from `embed_gathers`.
            neighbours: ``(batch, k, 13)`` descriptors of the retrieved models; None or k = 0 where there are none.

        Raises:
            InvalidQuery: neither a head nor neighbours.
        """
        if encoded.descriptors is not None and encoded.descriptor_scale is not None:
            value, scale = encoded.descriptors, encoded.descriptor_scale
            calibration = self.weights.description.calibration
            if calibration is None:
                factor: float | Float32 = LAPLACE_90
            else:
                departed = self._departures(encoded)
                factor = interval_factor(_shares(encoded), calibration.log_factor, departed, calibration.log_excess)
        elif neighbours is not None and neighbours.shape[1] > 0:
            near = neighbours[:, :NEIGHBOURS]
            value, scale, factor = near.mean(axis=1), near.std(axis=1), NORMAL_90
        else:
            raise InvalidQuery("These weights have no descriptor head, and no model was retrieved to infer from.")
        half = factor * scale
        possible = [d.lower for d in DESCRIPTORS], [d.upper for d in DESCRIPTORS]
        return InferredPhysics(*(np.clip(a, *possible).astype(np.float32) for a in (value, value - half, value + half)))

    def read_model(self, encoded: EncodedGathers) -> ReadModel | None:
        """The velocity models read from gathers, at full size; None where the weights have no head for them."""
        if encoded.velocity is None:
            return None
        value = self._full_size(encoded.velocity)
        calibration = self.weights.description.calibration
        if encoded.velocity_scale is None or calibration is None or not calibration.log_cell_factor:
            return ReadModel(value)
        departed = self._departures(encoded)
        factor = interval_factor(_shares(encoded), calibration.log_cell_factor, departed, calibration.log_cell_excess)
        half = factor[:, None, None] * self._full_size(encoded.velocity_scale)
        low, high = (np.clip(each, *VELOCITY_LIMITS_M_S).astype(np.float32) for each in (value - half, value + half))
        return ReadModel(value, low, high)

    def _full_size(self, coarse: Float32) -> Float32:
        return np.stack([full_size(each, frame=self.frame) for each in coarse])

    def judge_novelty(
        self, measured: Float64, encoded: EncodedGathers, *, scales: Sequence[Scale] | None = None
    ) -> list[Verdict] | None:
        """Whether each gather is like those of training; None where the weights are not calibrated.

        Args:
            measured: from `novelty.measure`, of the gathers that were ``encoded``.
            encoded: from `embed_gathers`.
            scales: of each gather, in whose true units its verdict is worded.
        """
        calibration = self.weights.description.calibration
        if calibration is None:
            return None
        return judge(self.measures(measured, encoded), calibration.novelty, frame=self.frame, scales=scales)

    def measures(self, measured: Float64, encoded: EncodedGathers) -> Float64:
        """``(batch, measures)``: `novelty.measure` of gathers, and what their encoding says about them."""
        known = encoded.kind is not None and self._foreign.any()
        foreign = encoded.kind[:, self._foreign].sum(axis=1) if encoded.kind is not None and known else None
        return with_uncertainty(measured, encoded.uncertainty(self.descriptor_spread), foreign)

    def _departures(self, encoded: EncodedGathers) -> Float64 | None:
        calibration = self.weights.description.calibration
        if calibration is None or encoded.measured is None or encoded.shot_distance is None:
            return None
        values = self.measures(encoded.measured, encoded)
        return departures(scores(values, calibration.novelty), encoded.shot_distance)


def _shares(encoded: EncodedGathers) -> Float32:
    """``(batch, families)``, or one column of ones without a family head."""
    return np.ones((len(encoded.embedding), 1), np.float32) if encoded.family is None else encoded.family


def full_size(coarse: Float32, *, frame: Frame = OPENFWI_FRAME) -> Float32:
    """A coarse model, ``(35, 35)`` for example, interpolated linearly to the gallery's ``(70, 70)``, m/s."""
    return np.asarray(
        zoom(coarse, frame.depth_cells / len(coarse), order=1, grid_mode=True, mode="nearest"), np.float32
    )
