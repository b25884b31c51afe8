"""Encoders and a gallery as one callable: the in-process twin of the server.

The server, the command line, bulk jobs and the tests answer through `Engine`, so that they cannot disagree.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.index import Distribution, Filter, Gallery, GalleryInfo, Hit
from seisbind.model.confidence.novelty import Verdict
from seisbind.model.confidence.presence import coarse
from seisbind.model.confidence.ranking import CANDIDATES, Ranking, rank
from seisbind.model.encoders.embedder import NEIGHBOURS, Embedder, EncodedGathers, InferredPhysics
from seisbind.model.errors import InvalidGather, InvalidQuery, InvalidVelocityModel, UnknownModel, WeightsMismatch
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.ground.descriptors import DESCRIPTORS, NAMES, check_descriptors, check_velocity, describe
from seisbind.model.survey.preparation import OPENFWI, Note, Survey, prepare
from seisbind.service.engine.answers import InDistribution, Match, Quantity, Retrieval, SearchResult
from seisbind.service.engine.query import Query, encode, rows_of, stacked

Float32 = NDArray[np.float32]
T = TypeVar("T")


@dataclass(slots=True)
class Stopwatch:
    """Milliseconds by stage; a stage that comes twice is added up."""

    timings_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        spent = (time.perf_counter() - start) * 1e3
        self.timings_ms[stage] = round(self.timings_ms.get(stage, 0.0) + spent, 3)


class Engine:
    """Answers by an `Embedder` and a `Gallery` made with the same weights. It owns neither; the caller closes them.

    All methods may be called from any thread.

    Raises:
        WeightsMismatch: the gallery was made with other weights, or for another frame.
    """

    def __init__(self, embedder: Embedder, gallery: Gallery) -> None:
        if embedder.fingerprint != gallery.fingerprint:
            raise WeightsMismatch(
                f"The gallery at {gallery.path} was made with weights {gallery.fingerprint}; these are "
                f"{embedder.fingerprint}. Use those weights, or build the gallery again with these."
            )
        if embedder.frame != gallery.frame:
            raise WeightsMismatch(
                f"The gallery at {gallery.path} is of another frame than these weights: {gallery.frame} there, "
                f"{embedder.frame} here. Build the gallery again with these."
            )
        self.embedder = embedder
        self.gallery = gallery
        self.frame = embedder.frame
        self._info: GalleryInfo | None = None
        self._distribution: Distribution | None = None
        self._counting = threading.Lock()

    def info(self) -> GalleryInfo:
        """What the gallery is, put together again only after a change."""
        generation, info = self.gallery.generation, self._info
        if info is None or info.generation != generation:
            info = self.gallery.info()
            if self.gallery.generation == generation:  # nothing changed while it was counted
                self._info = info
        return info

    def distribution(self) -> Distribution:
        """How the gallery's descriptors are distributed, counted again only after a change."""
        found = self._distribution
        if found is not None and found.generation == self.gallery.generation:
            return found
        begun = self._counting.acquire(blocking=found is None)
        if found is not None and not begun:
            return found  # as it was: somebody counts already, and nobody waits for that
        try:
            found = self._distribution
            if found is None or found.generation != self.gallery.generation:
                found = self._distribution = self.gallery.distribution()
            return found
        finally:
            self._counting.release()

    def retrieve(
        self,
        gathers: ArrayLike,
        survey: Survey = OPENFWI,
        *,
        top_k: int = 5,
        filter: Filter | None = None,
        notes: tuple[Note, ...] = (),
    ) -> list[Retrieval]:
        """Velocity models that go with each gather, and the physics of the ground under it.

        ``filter`` and ``top_k`` choose the matches; physics and `InDistribution` come from the whole gallery.

        Args:
            gathers: ``(batch, shot, time, receiver)`` or one ``(shot, time, receiver)``, pressure, any linear unit.
            survey: how they were recorded; with weights for another line, that line's is ``engine.frame.survey``.
            top_k: matches a gather.
            notes: what reading the gathers had to assume; said first in each answer's warnings.

        Raises:
            InvalidGather, InvalidSurvey: see `seisbind.model.survey.preparation.prepare`.
            InvalidQuery: ``top_k`` out of range.
        """
        watch = Stopwatch()
        with watch("prepare"):
            prepared = prepare(gathers, survey, frame=self.frame)
        return self.retrieve_batch([Query(prepared, top_k, filter, notes)], watch=watch)[0]

    def retrieve_batch(self, queries: Sequence[Query], *, watch: Stopwatch | None = None) -> list[list[Retrieval]]:
        """`retrieve` for the gathers of several requests at once, which are on the canonical grid already.

        Each answer is what its query alone would get, but for rounding (see `query.encode`).

        Returns:
            For each query, for each of its gathers, the answer.

        Raises:
            SeisBindError: one of the queries cannot be answered; which one is found by asking them one by one.
        """
        watch = Stopwatch() if watch is None else watch
        with watch("encode"):
            encoded = encode(self.embedder, queries)
            if not np.isfinite(encoded.embedding).all():
                raise InvalidGather("The samples are too large or too small for float32 arithmetic; scale the gathers.")
        rows = rows_of(queries)
        by_k: dict[int, list[int]] = {}  # most requests ask for as many matches as the others: one search for all
        for number, query in enumerate(queries):
            by_k.setdefault(max(query.top_k, CANDIDATES), []).append(number)
        answers: list[list[Retrieval]] = [[] for _ in queries]
        for k, members in by_k.items():
            batch = [queries[number] for number in members]
            part = encoded.select(np.concatenate([rows[number] for number in members]))
            for number, found in zip(members, self._retrieve_encoded(part, batch, k, watch), strict=True):
                answers[number] = found
        return answers

    def _retrieve_encoded(
        self, encoded: EncodedGathers, queries: Sequence[Query], k: int, watch: Stopwatch
    ) -> Iterator[list[Retrieval]]:
        """The answers to ``queries``, whose gathers are ``encoded`` one after another, from ``k`` neighbours each."""
        rows = rows_of(queries)
        asked = [query for query, own in zip(queries, rows, strict=True) for _ in own]

        verdicts = self.embedder.judge_novelty(np.concatenate([query.measured for query in queries]), encoded)

        def look() -> tuple[list[list[Hit]], list[Ranking], list[tuple[Match, ...]]]:
            with watch("search"):
                near = self.gallery.search_velocity(encoded.embedding, k)
                found = list(near)
                for query, own in zip(queries, rows, strict=True):
                    if query.filter:
                        allowed = self.gallery.search_velocity(encoded.embedding[own], k, filter=query.filter)
                        found[own[0] : own[-1] + 1] = allowed
            with watch("rank"):
                rankings = self._rank(found, near, encoded, verdicts)
            with watch("search"):
                ordered = [
                    [hits[at] for at in ranking.order[: query.top_k]]
                    for hits, ranking, query in zip(found, rankings, asked, strict=True)
                ]
                return near, rankings, self._matches(ordered)

        near, rankings, matches = self._settled(look)
        with watch("infer"):
            neighbours = None if encoded.descriptors is not None else self._neighbours(near)
            physics = self._physics(self.embedder.infer_physics(encoded, neighbours))
        for query, own in zip(queries, rows, strict=True):
            yield [
                Retrieval(
                    matches=matches[row],
                    physics=physics[row],
                    in_distribution=self._in_distribution(near[row], verdicts[row] if verdicts else None),
                    in_gallery=rankings[row].in_gallery,
                    ranked_by="structure" if rankings[row].by_structure else "similarity",
                    warnings=(
                        *query.notes,
                        *query.prepared.notes[i],
                        *self._withheld(rankings[row], verdicts[row] if verdicts else None),
                        *self._fewer(matches[row], query.top_k, query.filter),
                    ),
                    timings_ms=watch.timings_ms,
                    velocity=None if encoded.velocity is None else encoded.velocity[row],
                )
                for i, row in enumerate(own.tolist())
            ]

    def search_velocity(
        self, velocity: ArrayLike, *, top_k: int = 5, filter: Filter | None = None
    ) -> list[SearchResult]:
        """The gallery's models most like each velocity model ``(batch, depth, x)``, m/s.

        Raises:
            InvalidVelocityModel: see `seisbind.model.encoders.embedder.Embedder.embed_velocity`.
            InvalidQuery: ``top_k`` out of range.
        """
        vectors = self.embedder.embed_velocity(velocity)
        matches = self._matches(self.gallery.search_velocity(vectors, top_k, filter=filter))
        return [SearchResult(row, self._fewer(row, top_k, filter)) for row in matches]

    def search_descriptors(
        self, descriptors: Mapping[str, float], *, top_k: int = 5, filter: Filter | None = None
    ) -> SearchResult:
        """The gallery's models whose physics is most like ``descriptors`` (name → value in its unit).

        What is left out is filled with the mean of the training set, and a warning says so.

        Raises:
            InvalidQuery: an unknown name, a value that no ground has, no descriptor at all.
        """
        if not descriptors:
            raise InvalidQuery(f"A search by descriptors needs at least one of {', '.join(NAMES)}.")
        check_descriptors(descriptors)
        mean = self.embedder.weights.encoders.descriptor_mean.cpu().numpy()
        filled = np.array([descriptors.get(name, mean[i]) for i, name in enumerate(NAMES)], dtype=np.float64)
        missing = [name for name in NAMES if name not in descriptors]
        warnings: tuple[Note, ...] = ()
        if missing:
            text = f"Filled with the mean of the training set: {', '.join(missing)}."
            warnings = (Note("descriptors_filled", text),)
        vector = self.embedder.embed_descriptors(filled[None])
        (row,) = self._matches(self.gallery.search_physics(vector, top_k, filter=filter))
        return SearchResult(row, warnings + self._fewer(row, top_k, filter))

    def add_models(
        self,
        velocity: ArrayLike,
        *,
        families: Sequence[str | None] | None = None,
        tags: Sequence[Sequence[str]] | None = None,
        model_ids: Sequence[str] | None = None,
        source: str | None = None,
        skip_existing: bool = False,
    ) -> list[str]:
        """Describe, embed and store velocity models ``(batch, depth, x)``, m/s; all of them or none.

        Returns:
            Their ids, given or made from their content.

        Raises:
            InvalidVelocityModel, InvalidQuery, GalleryWriteFailed: see `seisbind.index.Gallery.add`.
        """
        models = check_velocity(velocity)
        if models.shape[1:] != self.frame.velocity_shape:
            raise InvalidVelocityModel(
                f"The gallery takes velocity models of {self.frame.cells_text}; got "
                f"{models.shape[1]} x {models.shape[2]}."
            )
        descriptors = describe(models, cell_m=self.frame.cell_m)
        return self.gallery.add(
            models,
            descriptors,
            self.embedder.embed_velocity(models),
            self.embedder.embed_descriptors(descriptors),
            model_ids=model_ids,
            families=families,
            tags=tags,
            source=source,
            skip_existing=skip_existing,
        )

    def remove(self, model_ids: Sequence[str]) -> int:
        """See `seisbind.index.Gallery.remove`."""
        return self.gallery.remove(model_ids)

    def refresh(self) -> bool:
        """See `seisbind.index.Gallery.refresh`."""
        return self.gallery.refresh()

    def canary(self) -> None:
        """Encode and search one made-up gather, to show that every part answers.

        Raises:
            SeisBindError: one of them did not.
        """
        self.retrieve(canary_gather(self.frame), self.frame.survey, top_k=1)

    def _settled(self, look: Callable[[], T]) -> T:
        """What ``look`` finds; if a model goes before its map is read, it looks again at what is there at once."""
        with suppress(UnknownModel):
            return look()
        with self.gallery.unchanging():
            return look()

    @staticmethod
    def _matches(rows: Sequence[Sequence[Hit]]) -> list[tuple[Match, ...]]:
        """Hits as matches, by rank."""
        return [
            tuple(
                Match(
                    rank,
                    hit.model_id,
                    hit.family,
                    hit.similarity,
                    dict(zip(NAMES, hit.descriptors.tolist(), strict=True)),
                )
                for rank, hit in enumerate(row, start=1)
            )
            for row in rows
        ]

    def _neighbours(self, near: Sequence[Sequence[Hit]]) -> Float32:
        """``(batch, k, 13)`` descriptors of the `NEIGHBOURS` nearest models of each gather."""
        count = min(min(map(len, near)), NEIGHBOURS)
        described = [
            [list(match.descriptors.values()) for match in row] for row in self._matches([r[:count] for r in near])
        ]
        return np.array(described, dtype=np.float32).reshape(len(near), count, len(NAMES))

    @staticmethod
    def _in_distribution(near: Sequence[Hit], verdict: Verdict | None) -> InDistribution:
        similarity = near[0].similarity if near else None
        if verdict is None:
            return InDistribution(None, None, None, None, None, similarity)
        return InDistribution(verdict.likely, verdict.score, verdict.limit, verdict.reason, verdict.detail, similarity)

    def _rank(
        self,
        found: Sequence[Sequence[Hit]],
        near: Sequence[Sequence[Hit]],
        encoded: EncodedGathers,
        verdicts: Sequence[Verdict] | None,
    ) -> list[Ranking]:
        """How the hits of each gather are ordered; ``near`` are those of the whole gallery, without a filter."""
        calibration, read = self.embedder.weights.description.calibration, encoded.velocity
        cells = 0 if read is None else read.shape[-1]
        return rank(
            [[hit.model_id for hit in hits] for hits in found],
            best=[hits[0].model_id for hits in near if hits],
            similarity=np.array([[hit.similarity for hit in hits[:2]] for hits in near]),
            size=len(self.gallery),
            read=read,
            uncertainty=encoded.uncertainty(self.embedder.descriptor_spread),
            presence=None if calibration is None else calibration.presence,
            novelty=verdicts,
            models=lambda model_ids: self._coarse(model_ids, cells),
        )

    @staticmethod
    def _withheld(ranking: Ranking, verdict: Verdict | None) -> tuple[Note, ...]:
        if not ranking.withheld or verdict is None:
            return ()
        text = (
            "Whether the gallery holds this ground is unknown, for the record is unlike those of training: "
            f"{verdict.detail} Take the matches for a guess."
        )
        return (Note("in_gallery_unknown", text),)

    def _coarse(self, model_ids: Sequence[str], cells: int) -> Float32:
        """``(n, depth, cells)`` coarse velocity models of the gallery, each read once."""
        row_of = {model_id: row for row, model_id in enumerate(dict.fromkeys(model_ids))}
        models = coarse(stacked([each[None] for each in self.gallery.velocities(list(row_of))]), cells)
        return np.asarray(models[[row_of[model_id] for model_id in model_ids]])

    @staticmethod
    def _physics(inferred: InferredPhysics) -> list[dict[str, Quantity]]:
        return [
            {
                d.name: Quantity(float(value[i]), d.unit, float(low[i]), float(high[i]))
                for i, d in enumerate(DESCRIPTORS)
            }
            for value, low, high in zip(inferred.value, inferred.low, inferred.high, strict=True)
        ]

    @staticmethod
    def _fewer(matches: Sequence[Match], top_k: int, filter: Filter | None) -> tuple[Note, ...]:
        if len(matches) >= top_k:
            return ()
        what = "models pass the filter" if filter else "models are in the gallery"
        return (Note("fewer_matches", f"{top_k} matches were asked for; {len(matches)} {what}."),)


def canary_gather(frame: Frame = OPENFWI_FRAME) -> Float32:
    """A direct wave in a frame's own layout, ``(1, 5, 1000, 70)`` and 2000 m/s in OpenFWI's: no simulation, the same
    every time."""
    time_s = np.arange(frame.record_samples) * frame.record_dt_s
    offset_m = np.abs(np.subtract.outer(np.asarray(frame.shot_x_m), np.asarray(frame.survey.receiver_x_m)))
    arrival_s = 1.2 / frame.peak_hz + offset_m[:, None, :] / (frame.velocity_m_s[0] * 4 / 3)
    a2 = np.square(np.pi * frame.peak_hz * (time_s[None, :, None] - arrival_s))
    amplitude = 1 / np.sqrt(1 + offset_m / (5 * frame.receiver_spacing_m))[:, None, :]
    return np.asarray((amplitude * (1 - 2 * a2) * np.exp(-a2))[None], dtype=np.float32)
