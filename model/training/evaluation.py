"""Retrieval and inference measured on pairs that training never saw.

Every figure is over (gather, velocity model) pairs whose velocity models form the gallery. "In the gallery" keeps each
gather's own model in it (its recall is what the paper reports); "novel" leaves it out, as in real use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.model.confidence.presence import coarse
from seisbind.model.confidence.ranking import CANDIDATES, rank
from seisbind.model.datasets.pairs import PairSet
from seisbind.model.encoders.embedder import NEIGHBOURS, Embedder, EncodedGathers, InferredPhysics
from seisbind.model.errors import DatasetError, InvalidConfig
from seisbind.model.ground.descriptors import DESCRIPTORS, NAMES, describe
from seisbind.model.survey.preparation import Prepared, place_prepared
from seisbind.model.training.augment import augmented

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
RECALL_AT = (1, 5, 10)
CHUNK = 500  # queries whose similarities are in memory at once


@dataclass(frozen=True, slots=True)
class Embedded:
    """Held-out pairs and their embeddings, row by row.

    Attributes:
        gathers: the seismic encoder's output.
        velocity, physics: ``(n, 256)`` unit vectors.
        models: ``(n, 70, 70)``, m/s; descriptors: ``(n, 13)``; family: ``(n,)`` names.
    """

    gathers: EncodedGathers
    velocity: Float32
    physics: Float32
    models: Float32
    descriptors: Float32
    family: NDArray[np.str_]

    def select(self, rows: NDArray[np.intp]) -> Embedded:
        return Embedded(
            gathers=self.gathers.select(rows),
            velocity=self.velocity[rows],
            physics=self.physics[rows],
            models=self.models[rows],
            descriptors=self.descriptors[rows],
            family=self.family[rows],
        )

    def __len__(self) -> int:
        return len(self.velocity)


def as_prepared(pairs: PairSet) -> Prepared:
    """The gathers of ``pairs`` as complete records, without augmentation, their shots moved as those of any record."""
    return place_prepared(augmented(pairs, None))


def check_frame(embedder: Embedder, pairs: PairSet) -> None:
    """Raises DatasetError if the pairs are of another frame than the weights."""
    if pairs.frame != embedder.frame:
        raise DatasetError(f"The pairs are of another frame than the weights: {pairs.frame}, not {embedder.frame}.")


def embed(embedder: Embedder, pairs: PairSet) -> Embedded:
    """Run the three encoders over ``pairs``.

    Raises:
        DatasetError: see `check_frame`.
    """
    check_frame(embedder, pairs)
    models, descriptors = pairs.velocity.cpu().numpy(), pairs.descriptors.cpu().numpy()
    return Embedded(
        gathers=embedder.embed_gathers(as_prepared(pairs)),
        velocity=embedder.embed_velocity(models),
        physics=embedder.embed_descriptors(descriptors),
        models=models,
        descriptors=descriptors,
        family=pairs.family_names(),
    )


def ranks(queries: Float32, gallery: Float32, own: NDArray[np.intp]) -> NDArray[np.intp]:
    """``(n,)`` rank, from 1, of row ``own[i]`` of ``gallery`` for query i; a tie counts against it."""
    out = np.empty(len(queries), dtype=np.intp)
    for start in range(0, len(queries), CHUNK):
        part = slice(start, start + CHUNK)
        similarity = queries[part] @ gallery.T
        mine = np.take_along_axis(similarity, own[part, None], axis=1)
        out[part] = (similarity >= mine).sum(axis=1)
    return out


def recall(queries: Float32, gallery: Float32) -> dict[str, float]:
    """``r_at_1``, ``r_at_5``, ``r_at_10`` of matching rows, and their mean positive and negative similarity."""
    own = np.arange(len(queries))
    found = ranks(queries, gallery, own)
    positive = float((queries * gallery).sum(axis=1).mean())
    negative = np.nan
    if len(queries) > 1:
        everything = float((queries.sum(axis=0) @ gallery.sum(axis=0)) / len(queries))
        negative = (everything - positive) / (len(queries) - 1)
    report = {f"r_at_{k}": float((found <= k).mean()) for k in RECALL_AT}
    return report | {"positive_similarity": positive, "negative_similarity": float(negative)}


def nearest(queries: Float32, gallery: Float32, k: int, *, leave_out: bool) -> NDArray[np.intp]:
    """``(n, k)`` rows of ``gallery`` most similar to each query; ``leave_out`` skips row i for query i."""
    rows = []
    for start in range(0, len(queries), CHUNK):
        similarity = queries[start : start + CHUNK] @ gallery.T
        if leave_out:
            at = np.arange(len(similarity))
            similarity[at, start + at] = -np.inf
        top = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(similarity, top, axis=1), axis=1, kind="stable")
        rows.append(np.take_along_axis(top, order, axis=1))
    return np.concatenate(rows)


def descriptor_errors(value: Float32, truth: Float32, spread: Float32) -> dict[str, float]:
    """Mean error of each descriptor: per cent where `Descriptor.relative`, else in units of ``spread`` (13,)."""
    error = np.abs(value - truth)
    out = {}
    for i, descriptor in enumerate(DESCRIPTORS):
        scaled = 100 * error[:, i] / truth[:, i] if descriptor.relative else error[:, i] / spread[i]
        out[descriptor.name] = float(scaled.mean())
    return out


def coverage(inferred: InferredPhysics, truth: Float32) -> Float64:
    """``(13,)`` shares of ``truth`` (n, 13) that lie in the intervals."""
    return np.asarray(((inferred.low <= truth) & (truth <= inferred.high)).mean(axis=0))


def spread_of(embedder: Embedder, pairs: Embedded) -> Float32:
    """``(13,)`` standard deviations of the descriptors; those of training where they do not vary (only flat models)."""
    own = pairs.descriptors.std(axis=0)
    return np.where(own > 0, own, embedder.descriptor_spread)


def structure(pairs: Embedded, gallery_models: Float32, rows: NDArray[np.intp], *, leave_out: bool) -> dict[str, float]:
    """Mean absolute difference, m/s, of the retrieved model ``rows`` (n,) and of the gallery's best."""
    truth = torch.from_numpy(pairs.models).flatten(1)
    gallery = torch.from_numpy(gallery_models).flatten(1)
    best = np.empty(len(truth), dtype=np.float32)
    for start in range(0, len(truth), CHUNK):
        distance = torch.cdist(truth[start : start + CHUNK], gallery, p=1) / truth.shape[1]
        if leave_out:
            at = torch.arange(len(distance))
            distance[at, start + at] = torch.inf
        best[start : start + CHUNK] = distance.min(dim=1).values.numpy()
    top = np.abs(gallery_models[rows] - pairs.models).mean(axis=(1, 2))
    return {
        "top1_mae_m_s": float(top.mean()),
        "best_mae_m_s": float(best.mean()),
        "ratio": float(top.mean() / best.mean()),
    }


def report(
    embedder: Embedder, pairs: Embedded, distractors: Float32 | None = None, spread: Float32 | None = None
) -> dict[str, Any]:
    """One object of ``evaluate --json``.

    Args:
        embedder: for the inference of physics.
        pairs: the queries; their models are the gallery.
        distractors: ``(m, 70, 70)`` further velocity models in the gallery.
        spread: ``(13,)`` that errors are measured by; None for that of ``pairs``.
    """
    gallery, models, described = pairs.velocity, pairs.models, pairs.descriptors
    if distractors is not None and len(distractors):
        gallery = np.concatenate([gallery, embedder.embed_velocity(distractors)])
        models = np.concatenate([models, distractors])
        described = np.concatenate([described, describe(distractors, cell_m=embedder.frame.cell_m)])
    queries = pairs.gathers.embedding
    k = min(NEIGHBOURS, len(gallery) - 1)
    spread = spread_of(embedder, pairs) if spread is None else spread
    out: dict[str, Any] = {
        "pairs": len(pairs),
        "gallery_size": len(gallery),
        "weights": embedder.fingerprint,
        "seismic_to_velocity": recall_among(queries, gallery),
        "velocity_to_physics": recall(pairs.velocity, pairs.physics),
        "descriptors": {},
    }
    for name, leave_out in (("in_gallery", False), ("novel", True)):
        rows = nearest(queries, gallery, k, leave_out=leave_out)
        inferred = embedder.infer_physics(pairs.gathers, described[rows])
        out["descriptors"][name] = {
            "inferred": descriptor_errors(inferred.value, pairs.descriptors, spread),
            "neighbours": descriptor_errors(described[rows].mean(axis=1), pairs.descriptors, spread),
            "interval_coverage": dict(zip(NAMES, coverage(inferred, pairs.descriptors).tolist(), strict=True)),
        }
        first, moved = served(embedder, pairs, gallery, models, leave_out=leave_out)
        out["descriptors"][name]["ranked_by_structure"] = float(moved.mean())
        if leave_out:
            out["structure"] = structure(pairs, models, first, leave_out=True)
            by_similarity = structure(pairs, models, rows[:, 0], leave_out=True)
            out["structure"] |= {"by_similarity_ratio": by_similarity["ratio"]}
        else:
            out["served"] = {"r_at_1": float((first == np.arange(len(pairs))).mean())}
    return out


def served(
    embedder: Embedder, pairs: Embedded, gallery: Float32, models: Float32, *, leave_out: bool
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """``(n,)`` rows of ``gallery`` that the service puts first, and which of them it ranked by structure."""
    k = min(CANDIDATES, len(gallery) - 1)
    near = nearest(pairs.gathers.embedding, gallery, k, leave_out=leave_out)
    calibration, read = embedder.weights.description.calibration, pairs.gathers.velocity
    cells = 0 if read is None else read.shape[-1]
    uncertainty = pairs.gathers.uncertainty(embedder.descriptor_spread)
    ranked = []
    for start in range(0, len(near), CHUNK):
        part = slice(start, start + CHUNK)
        ranked += rank(
            near[part].tolist(),
            best=near[part, 0].tolist(),
            similarity=np.einsum("nd,nkd->nk", pairs.gathers.embedding[part], gallery[near[part, :2]]),
            size=len(gallery) - leave_out,
            read=None if read is None else read[part],
            uncertainty=uncertainty[part],
            presence=None if calibration is None else calibration.presence,
            novelty=None,
            models=lambda rows: coarse(models[rows], cells),
        )
    first = near[np.arange(len(near)), [one.order[0] for one in ranked]]
    return first, np.array([one.by_structure for one in ranked])


def recall_among(queries: Float32, gallery: Float32) -> dict[str, float]:
    """`recall` where the gallery's first rows match the queries and the rest are distractors."""
    found = ranks(queries, gallery, np.arange(len(queries)))
    own = recall(queries, gallery[: len(queries)])
    return own | {f"r_at_{k}": float((found <= k).mean()) for k in RECALL_AT}


def evaluate(
    embedder: Embedder,
    pairs: PairSet,
    *,
    gallery_size: int | None = None,
    seed: int = 0,
    distractors: Float32 | None = None,
) -> Mapping[str, Any]:
    """The report of ``seisbind evaluate``: ``overall`` (a mixed gallery) and one object a family (its own gallery).

    A family's errors, too, are in units of the spread of the mixed gallery: flat models have none in x.

    Args:
        embedder: the weights under test.
        pairs: held-out pairs.
        gallery_size: pairs drawn from them for the mixed gallery; None for all.
        seed: of that draw.
        distractors: further models in the mixed gallery.

    Raises:
        InvalidConfig: more pairs asked for than there are.
    """
    size = len(pairs) if gallery_size is None else gallery_size
    if not 2 <= size <= len(pairs):
        raise InvalidConfig(f"A gallery of {size} was asked for; the data hold {len(pairs)} pairs (at least 2 needed).")
    embedded = embed(embedder, pairs)
    rows = np.random.default_rng(seed).permutation(len(pairs))[:size]
    whole = embedded.select(rows)
    spread = spread_of(embedder, whole)
    out: dict[str, Any] = {"overall": report(embedder, whole, distractors, spread), "families": {}}
    for family in sorted(set(embedded.family.tolist())):
        members = np.flatnonzero(embedded.family == family)
        if len(members) >= 2:
            out["families"][family] = report(embedder, embedded.select(members), spread=spread)
    return out
