"""Encoders and a gallery that answer together: what the server, the command line and bulk retrieval all use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.index import Distribution, Filter, Gallery, GalleryInfo, Hit
from seisbind.model.confidence.novelty import Verdict
from seisbind.model.confidence.presence import coarse
from seisbind.model.confidence.ranking import CANDIDATES, Ranking, rank
from seisbind.model.encoders.embedder import NEIGHBOURS, Embedder, EncodedGathers
from seisbind.model.errors import InvalidGather, InvalidQuery, InvalidVelocityModel, UnknownModel, WeightsMismatch
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey
from seisbind.model.ground.descriptors import NAMES, check_descriptors, check_velocity, describe
from seisbind.model.survey.notes import Note
from seisbind.model.survey.preparation import OPENFWI
from seisbind.service.engine.answers import (
    Match,
    Retrieval,
    SearchResult,
    fewer_matches,
    in_distribution,
    placed,
    quantities,
    ranked,
)
from seisbind.service.engine.query import Query, encode, rows_of, stacked

Float32 = NDArray[np.float32]
T = TypeVar("T")


@dataclass(slots=True)
class Stopwatch:
    """Milliseconds for each stage; the times of a stage that runs twice are added."""

    timings_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        spent = (time.perf_counter() - start) * 1e3
        self.timings_ms[stage] = round(self.timings_ms.get(stage, 0.0) + spent, 3)


@dataclass(frozen=True, slots=True)
class Found:
    """What the gallery holds for gathers, in their order.

    Attributes:
        near: the most similar models of the whole gallery, whatever the filter.
        rankings: how the models within the filter are ordered.
        matches: these, ranked.
    """

    near: list[list[Hit]]
    rankings: list[Ranking]
    matches: list[tuple[Match, ...]]


class Engine:
    """Answers from an `Embedder` and a `Gallery` made with the same weights. It owns neither; the caller closes them.

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
        """Facts about the gallery, read again only after a change."""
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
            return found  # as it was: another thread counts already, and this one does not wait
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
        """The velocity models that match each gather, and the inferred physics of the subsurface.

        ``filter`` and ``top_k`` choose the matches; physics and `InDistribution` come from the whole gallery.

        Args:
            gathers: ``(batch, shot, time, receiver)`` or one ``(shot, time, receiver)``, pressure, any linear unit.
            survey: how they were recorded; with weights for another line, that line's is ``engine.frame.survey``.
            top_k: matches for each gather.
            notes: what reading the gathers had to assume; the first of each answer's warnings.

        Raises:
            InvalidGather, InvalidSurvey: see `seisbind.model.survey.preparation.prepare`.
            InvalidQuery: ``top_k`` out of range.
        """
        watch = Stopwatch()
        with watch("prepare"):
            query = Query.prepare(gathers, survey, frame=self.frame, top_k=top_k, filter=filter, notes=notes)
        return self.retrieve_batch([query], watch=watch)[0]

    def retrieve_batch(self, queries: Sequence[Query], *, watch: Stopwatch | None = None) -> list[list[Retrieval]]:
        """`retrieve` for several queries at once.

        Each answer is that of its query alone, but for rounding (see `query.encode`).

        Returns:
            For each query, for each of its gathers, the answer.

        Raises:
            SeisBindError: one of the queries cannot be answered; ask them one by one to find which.
        """
        watch = Stopwatch() if watch is None else watch
        encoded, verdicts = self._encode(queries, watch)
        try:
            found = self._search(encoded, queries, verdicts, watch)
        except UnknownModel:  # a model was removed between being found and being read
            with self.gallery.unchanging():
                found = self._search(encoded, queries, verdicts, watch)
        return self._answers(queries, encoded, verdicts, found, watch)

    def retrieve_and_read(
        self, query: Query, read: Callable[[list[tuple[Match, ...]]], T], *, watch: Stopwatch
    ) -> tuple[list[Retrieval], T]:
        """The answer to ``query``, and what ``read`` reads for the matches of its gathers from the gallery they are of.

        Nothing is changed in between, so others that read or change the gallery wait: for the search and for ``read``,
        not for the encoders.
        """
        encoded, verdicts = self._encode([query], watch)
        with self.gallery.unchanging():
            found = self._search(encoded, [query], verdicts, watch)
            was_read = read(found.matches)
        return self._answers([query], encoded, verdicts, found, watch)[0], was_read

    def _encode(self, queries: Sequence[Query], watch: Stopwatch) -> tuple[EncodedGathers, list[Verdict] | None]:
        """The gathers of ``queries`` one after another, encoded and judged. Raises InvalidGather."""
        with watch("encode"):
            encoded = encode(self.embedder, queries)
            if not np.isfinite(encoded.embedding).all():
                raise InvalidGather("The samples are too large or too small for float32 arithmetic; scale the gathers.")
            return encoded, self.embedder.judge_novelty(np.concatenate([query.measured for query in queries]), encoded)

    def _answers(
        self,
        queries: Sequence[Query],
        encoded: EncodedGathers,
        verdicts: Sequence[Verdict] | None,
        found: Found,
        watch: Stopwatch,
    ) -> list[list[Retrieval]]:
        """For each query, for each of its gathers, the answer that `_search` has ``found`` the models for."""
        with watch("infer"):
            neighbours = None if encoded.descriptors is not None else _neighbours(found.near)
            physics = quantities(self.embedder.infer_physics(encoded, neighbours))
            read = self.embedder.read_model(encoded)

        def answer(query: Query, number: int, row: int) -> Retrieval:
            """Of gather ``number`` of a query, which is ``row`` of the batch."""
            verdict, matches, ranking = verdicts[row] if verdicts else None, found.matches[row], found.rankings[row]
            fewer = fewer_matches(matches, query.top_k, query.filter)
            return Retrieval(
                matches=matches,
                physics=physics[row],
                in_distribution=in_distribution(verdict, found.near[row]),
                in_gallery=ranking.in_gallery,
                ranked_by="structure" if ranking.by_structure else "similarity",
                warnings=(*query.notes, *query.prepared.notes[number], *_withheld(ranking, verdict), *fewer),
                timings_ms=dict(watch.timings_ms),
                velocity=None if encoded.velocity is None else encoded.velocity[row],
                model=None if read is None else placed(read, row, cell_m=self.frame.cell_m, x0_m=query.x0_m),
            )

        return [
            [answer(query, number, row) for number, row in enumerate(rows)]
            for query, rows in zip(queries, rows_of(queries), strict=True)
        ]

    def _search(
        self, encoded: EncodedGathers, queries: Sequence[Query], verdicts: Sequence[Verdict] | None, watch: Stopwatch
    ) -> Found:
        """What the gallery holds for the gathers of ``queries``, which are ``encoded`` one after another."""
        own = rows_of(queries)
        top_k = np.repeat([query.top_k for query in queries], [len(query) for query in queries])
        wanted = np.maximum(top_k, CANDIDATES)
        near: list[list[Hit]] = [[] for _ in wanted]
        with watch("search"):
            for k in dict.fromkeys(wanted.tolist()):  # mostly one for all: then there is one search
                rows = np.flatnonzero(wanted == k)
                for row, hits in zip(rows, self.gallery.search_velocity(encoded.embedding[rows], k), strict=True):
                    near[row] = hits
            found = list(near)
            for query, rows in zip(queries, own, strict=True):
                if query.filter:
                    k = max(query.top_k, CANDIDATES)
                    allowed = self.gallery.search_velocity(encoded.embedding[rows], k, filter=query.filter)
                    found[rows[0] : rows[-1] + 1] = allowed
        with watch("rank"):
            rankings = self._rank(found, near, encoded, verdicts)
        with watch("search"):
            matches = [
                ranked([hits[at] for at in ranking.order[:k]])
                for hits, ranking, k in zip(found, rankings, top_k.tolist(), strict=True)
            ]
        return Found(near, rankings, matches)

    def search_velocity(
        self, velocity: ArrayLike, *, top_k: int = 5, filter: Filter | None = None
    ) -> list[SearchResult]:
        """The gallery's models most like each velocity model ``(batch, depth, x)``, m/s.

        Raises:
            InvalidVelocityModel: see `seisbind.model.encoders.embedder.Embedder.embed_velocity`.
            InvalidQuery: ``top_k`` out of range.
        """
        vectors = self.embedder.embed_velocity(velocity)
        return [_result(hits, top_k, filter) for hits in self.gallery.search_velocity(vectors, top_k, filter=filter)]

    def search_descriptors(
        self, descriptors: Mapping[str, float], *, top_k: int = 5, filter: Filter | None = None
    ) -> SearchResult:
        """The gallery's models whose physics is most like ``descriptors`` (name → value in its unit).

        Missing descriptors are filled with the mean of the training set, and a warning lists them.

        Raises:
            InvalidQuery: an unknown name, a value that no velocity model has, no descriptor at all.
        """
        if not descriptors:
            raise InvalidQuery(f"A search by descriptors needs at least one of {', '.join(NAMES)}.")
        check_descriptors(descriptors)
        mean = self.embedder.weights.encoders.descriptor_mean.cpu().numpy()
        filled = np.array([descriptors.get(name, mean[i]) for i, name in enumerate(NAMES)], dtype=np.float64)
        missing = [name for name in NAMES if name not in descriptors]
        text = f"Filled with the mean of the training set: {', '.join(missing)}."
        warnings = (Note("descriptors_filled", text),) if missing else ()
        (hits,) = self.gallery.search_physics(self.embedder.embed_descriptors(filled[None]), top_k, filter=filter)
        return _result(hits, top_k, filter, warnings)

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
        """Encode and search one synthetic gather, to show that every part works.

        Raises:
            SeisBindError: one of them did not.
        """
        self.retrieve(canary_gather(self.frame), self.frame.survey, top_k=1)

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

    def _coarse(self, model_ids: Sequence[str], cells: int) -> Float32:
        """``(n, depth, cells)`` coarse velocity models of the gallery, each read once."""
        row_of = {model_id: row for row, model_id in enumerate(dict.fromkeys(model_ids))}
        models = coarse(stacked([each[None] for each in self.gallery.velocities(list(row_of))]), cells)
        return np.asarray(models[[row_of[model_id] for model_id in model_ids]])


def _withheld(ranking: Ranking, verdict: Verdict | None) -> tuple[Note, ...]:
    if not ranking.withheld or verdict is None:
        return ()
    text = (
        "Whether the gallery holds this ground is unknown, for the record is unlike those of training: "
        f"{verdict.detail} Take the matches for a guess."
    )
    return (Note("in_gallery_unknown", text),)


def _result(hits: Sequence[Hit], top_k: int, filter: Filter | None, warnings: tuple[Note, ...] = ()) -> SearchResult:
    matches = ranked(hits)
    return SearchResult(matches, warnings + fewer_matches(matches, top_k, filter))


def _neighbours(near: Sequence[Sequence[Hit]]) -> Float32:
    """``(batch, k, 13)`` descriptors of the `NEIGHBOURS` nearest models of each gather."""
    count = min(min(map(len, near)), NEIGHBOURS)
    described = [[hit.descriptors for hit in hits[:count]] for hits in near]
    return np.array(described, dtype=np.float32).reshape(len(near), count, len(NAMES))


def canary_gather(frame: Frame = OPENFWI_FRAME) -> Float32:
    """A direct wave in a frame's own layout, ``(1, 5, 1000, 70)`` and 2000 m/s in OpenFWI's: no simulation, the same
    every time."""
    time_s = np.arange(frame.record_samples) * frame.record_dt_s
    offset_m = np.abs(np.subtract.outer(np.asarray(frame.shot_x_m), np.asarray(frame.survey.receiver_x_m)))
    arrival_s = 1.2 / frame.peak_hz + offset_m[:, None, :] / (frame.velocity_m_s[0] * 4 / 3)
    a2 = np.square(np.pi * frame.peak_hz * (time_s[None, :, None] - arrival_s))
    amplitude = 1 / np.sqrt(1 + offset_m / (5 * frame.receiver_spacing_m))[:, None, :]
    return np.asarray((amplitude * (1 - 2 * a2) * np.exp(-a2))[None], dtype=np.float32)
