"""Encoders and a gallery that answer together: what the server, the command line and bulk retrieval all use.

One module because every call needs both, and none is long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.index import Added, CoarseModels, Distribution, Filter, GalleryInfo, Hit, Store
from seisbind.model.confidence.distinct import distinct as different_ground
from seisbind.model.confidence.novelty import Verdict
from seisbind.model.confidence.presence import coarse
from seisbind.model.confidence.ranking import CANDIDATES, Ranking, rank
from seisbind.model.encoders.embedder import Embedder, EncodedGathers
from seisbind.model.errors import InvalidGather, InvalidQuery, UnknownModel, WeightsMismatch
from seisbind.model.fingerprint import embeds_alike
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey
from seisbind.model.ground.descriptors import DESCRIPTORS, NAMES, check_descriptors, check_velocity
from seisbind.model.inversion.check import check_models
from seisbind.model.scale import UNSCALED, AskedScale, Scale, parse_model_scale
from seisbind.model.survey.notes import Note
from seisbind.model.survey.preparation import OPENFWI
from seisbind.model.survey.scaling import ChosenScale
from seisbind.service.building.encoding import describe_models
from seisbind.service.check_schemas import BEST
from seisbind.service.engine.answers import (
    Found,
    Match,
    Reading,
    Retrieval,
    SearchResult,
    approximate_note,
    fewer_matches,
    in_distribution,
    neighbours_of,
    quantities,
    ranked,
    scaled,
    search_result,
    withheld,
)
from seisbind.service.engine.check import Checked, candidates, check_candidates, check_name, check_query, given_model
from seisbind.service.engine.query import Query, check_distinct, encode, looked_at, rows_of, scales_of, stacked

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


class Engine:
    """Answers from an `Embedder` and a gallery (`Store`) of the same embeddings. It owns neither, and closes neither.

    All methods may be called from any thread.

    Raises:
        WeightsMismatch: the gallery was made with weights of other embeddings, or for another frame.
    """

    def __init__(self, embedder: Embedder, gallery: Store) -> None:
        if not embeds_alike(embedder.fingerprint, gallery.fingerprint, gallery.embeddings_fingerprint):
            raise WeightsMismatch(
                f"The gallery at {gallery.path} was made with weights {gallery.fingerprint}; these are "
                f"{embedder.fingerprint}, whose embeddings are others. Use those weights, or build the gallery again "
                "with these."
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
        self._coarse = CoarseModels(gallery, partial(coarse, cells=embedder.frame.map_shape[1]))

    def info(self) -> GalleryInfo:
        """Facts about the gallery, read again only after a change."""
        generation, info = self.gallery.generation, self._info
        if info is None or info.generation != generation or info.notes != self.gallery.notes:
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
        scale: ChosenScale | AskedScale = None,
        distinct: float | None = None,
    ) -> list[Retrieval]:
        """The velocity models that match each gather, and the inferred physics of the subsurface.

        ``filter`` and ``top_k`` choose the matches; physics and `InDistribution` come from the whole gallery.

        Args:
            gathers: ``(batch, shot, time, receiver)`` or one ``(shot, time, receiver)``, pressure, any linear unit.
            survey: how they were recorded; with weights for another line, that line's is ``engine.frame.survey``.
            top_k: matches for each gather.
            notes: what reading the gathers had to assume; the first of each answer's warnings.
            scale: of a line of another size than the weights' frame, as `Query.prepare` takes it; ``filter`` and the
                answer are in its true units.
            distinct: m/s; of matches whose maps differ by no more in the mean over all cells, only the best is given.
                They are chosen from the best ``LOOKED_AT`` times ``top_k`` models (`model.confidence.distinct`).

        Raises:
            InvalidGather, InvalidSurvey: see `Query.prepare`.
            InvalidQuery: ``top_k`` or ``distinct`` out of range.
        """
        watch = Stopwatch()
        with watch("prepare"):
            query = Query.prepare(
                gathers, survey, frame=self.frame, top_k=top_k, filter=filter, notes=notes, scale=scale,
                distinct=distinct,
            )  # fmt: skip
        return self.retrieve_batch([query], watch=watch)[0]

    def check(
        self,
        gather: ArrayLike,
        survey: Survey = OPENFWI,
        *,
        top_k: int = 5,
        filter: Filter | None = None,
        notes: tuple[Note, ...] = (),
        scale: ChosenScale | AskedScale = None,
        model: ArrayLike | None = None,
        named: str = BEST,
        device: str = "cpu",
        distinct: float | None = None,
    ) -> Checked:
        """`retrieve` for one gather, with each match, their mean and the read model checked by the wave equation.

        Args:
            gather: ``(shot, time, receiver)``, also as a batch of one.
            survey, filter, notes, scale, distinct: as those of `retrieve`.
            top_k: matches, at most `engine.check.MAX_MATCHES`.
            model: one of one's own to check beside them: ``(depth, x)``, m/s in true units.
            named: a candidate that there has to be, before waves are modelled.
            device: where waves are modelled.

        Raises:
            InvalidGather, InvalidSurvey, InvalidQuery: as `retrieve`, for several gathers, and without
                a candidate that is ``named`` so.
            InvalidVelocityModel: see `engine.check.given_model`.
            MissingExtra: deepwave is not installed.
        """
        query = Query.prepare(
            gather,
            survey,
            frame=self.frame,
            top_k=top_k,
            filter=filter,
            notes=notes,
            scale=scale,
            distinct=distinct,
            keep_recorded=True,
        )
        check_query(query)
        given = None if model is None else given_model(model, query)

        def read(matches: list[tuple[Match, ...]]) -> Float32:
            return self._velocities([match.model_id for match in matches[0]])

        (retrieval,), velocity = self.retrieve_and_read(query, read, watch=Stopwatch())
        found = candidates(query, retrieval, velocity, given)
        check_name(found, named)
        return check_candidates(query, retrieval, found, models=partial(check_models, device=device))

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
            measured, scales = np.concatenate([query.measured for query in queries]), scales_of(queries)
            return encoded, self.embedder.judge_novelty(measured, encoded, scales=scales)

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
            neighbours = None if encoded.descriptors is not None else neighbours_of(found.near)
            physics = quantities(self.embedder.infer_physics(encoded, neighbours))

        def answer(query: Query, number: int, row: int) -> Retrieval:
            """Of gather ``number`` of a query, which is ``row`` of the batch."""
            verdict, matches, ranking = verdicts[row] if verdicts else None, found.matches[row], found.rankings[row]
            coarse_read, scale = None if encoded.velocity is None else encoded.velocity[row], query.scale
            fewer = fewer_matches(matches, query.top_k, query.filter, query.distinct, found.looked_at[row])
            return Retrieval(
                matches=matches,
                physics=scaled(physics[row], scale),
                in_distribution=in_distribution(verdict, found.near[row]),
                in_gallery=ranking.in_gallery,
                ranked_by="structure" if ranking.by_structure else "similarity",
                warnings=(
                    *query.notes,
                    *query.prepared.notes[number],
                    *found.approximate[row],
                    *withheld(ranking, verdict),
                    *fewer,
                ),
                timings_ms=dict(watch.timings_ms),
                velocity=coarse_read if coarse_read is None or scale.k == 1 else coarse_read * np.float32(scale.k),
                reading=Reading(self.embedder, encoded, row, query.x0_m, scale),
                chosen=query.chosen,
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
        by_row = [query for query in queries for _ in range(len(query))]
        wanted = np.maximum([query.looked_at for query in by_row], CANDIDATES)
        near: list[list[Hit]] = [[] for _ in wanted]
        notes: list[tuple[Note, ...]] = [() for _ in wanted]
        with watch("search"):
            for k in dict.fromkeys(wanted.tolist()):  # mostly one for all: then there is one search
                rows = np.flatnonzero(wanted == k)
                nearest = self.gallery.search_velocity(encoded.embedding[rows], k)
                for row, hits in zip(rows, nearest, strict=True):
                    near[row], notes[row] = hits, approximate_note(nearest)
            found = list(near)
            for query, rows in zip(queries, own, strict=True):
                if query.filter:
                    k = max(query.looked_at, CANDIDATES)
                    allowed = self.gallery.search_velocity(
                        encoded.embedding[rows], k, filter=query.filter.in_frame(query.scale)
                    )
                    found[rows[0] : rows[-1] + 1] = allowed
        with watch("rank"):
            rankings = self._rank(found, near, encoded, verdicts)
        with watch("search"):
            best = [
                [hits[at] for at in ranking.order[: query.looked_at]]
                for hits, ranking, query in zip(found, rankings, by_row, strict=True)
            ]
            matches = [
                ranked(self._different(hits, query.top_k, query.distinct, query.scale), query.scale)
                for hits, query in zip(best, by_row, strict=True)
            ]
        return Found(near, rankings, matches, [len(hits) for hits in best], notes)

    def _different(self, hits: Sequence[Hit], top_k: int, distinct: float | None, scale: Scale) -> list[Hit]:
        """The first ``top_k`` hits, with ``distinct`` of those that are different ground. Raises UnknownModel."""
        if distinct is None:
            return list(hits[:top_k])

        def maps(some: Sequence[Hit]) -> Float32:
            return self._velocities([hit.model_id for hit in some])

        return [hits[at] for at in different_ground(hits, distinct / scale.k, top_k, maps)]

    def _search_distinct(
        self, space: str, vectors: Float32, top_k: int, filter: Filter | None, distinct: float | None, scale: Scale
    ) -> tuple[list[tuple[list[Hit], int]], tuple[Note, ...]]:
        """For each vector its hits, and how many they were chosen from; and a note where that was approximate."""
        check_distinct(distinct)
        search = self.gallery.search_velocity if space == "velocity" else self.gallery.search_physics
        allowed = None if filter is None else filter.in_frame(scale)

        def find() -> tuple[list[tuple[list[Hit], int]], tuple[Note, ...]]:
            k = top_k if distinct is None else looked_at(top_k, distinct)
            found = search(vectors, k, filter=allowed)
            different = [(self._different(hits, top_k, distinct, scale), len(hits)) for hits in found]
            return different, approximate_note(found)

        try:
            return find()
        except UnknownModel:  # a model was removed between being found and being read
            with self.gallery.unchanging():
                return find()

    def search_velocity(
        self,
        velocity: ArrayLike,
        *,
        top_k: int = 5,
        filter: Filter | None = None,
        scale: AskedScale = None,
        distinct: float | None = None,
    ) -> list[SearchResult]:
        """The gallery's models most like each velocity model ``(batch, depth, x)``, m/s.

        Models, ``filter`` and answer are in the true units of ``scale``: cells of ``s`` times the frame's size.
        ``distinct`` as `retrieve`'s.

        Raises:
            InvalidVelocityModel: see `seisbind.model.encoders.embedder.Embedder.embed_velocity`.
            InvalidQuery: ``top_k`` or ``distinct`` out of range.
        """
        true = parse_model_scale(scale)
        vectors = self.embedder.embed_velocity(velocity if true.k == 1 else check_velocity(velocity, k=true.k))
        found, notes = self._search_distinct("velocity", vectors, top_k, filter, distinct, true)
        return [search_result(hits, top_k, filter, true, notes, distinct, looked) for hits, looked in found]

    def search_descriptors(
        self,
        descriptors: Mapping[str, float],
        *,
        top_k: int = 5,
        filter: Filter | None = None,
        scale: AskedScale = None,
        distinct: float | None = None,
    ) -> SearchResult:
        """The gallery's models whose physics is most like ``descriptors`` (name → value in its unit).

        Missing descriptors are filled with the mean of the training set, and a warning lists them. Descriptors,
        ``filter`` and answer are in the true units of ``scale``. ``distinct`` as `retrieve`'s.

        Raises:
            InvalidQuery: an unknown name, a value that no velocity model has, no descriptor at all.
        """
        if not descriptors:
            raise InvalidQuery(f"A search by descriptors needs at least one of {', '.join(NAMES)}.")
        true = parse_model_scale(scale)
        check_descriptors(descriptors, scale=true)
        if true != UNSCALED:
            descriptors = {d.name: descriptors[d.name] / true.of(d.unit) for d in DESCRIPTORS if d.name in descriptors}
        mean = self.embedder.weights.encoders.descriptor_mean.cpu().numpy()
        filled = np.array([descriptors.get(name, mean[i]) for i, name in enumerate(NAMES)], dtype=np.float64)
        missing = [name for name in NAMES if name not in descriptors]
        text = f"Filled with the mean of the training set: {', '.join(missing)}."
        warnings = (Note("descriptors_filled", text),) if missing else ()
        vectors = self.embedder.embed_descriptors(filled[None])
        ((hits, looked),), _ = self._search_distinct("physics", vectors, top_k, filter, distinct, true)
        return search_result(hits, top_k, filter, true, warnings, distinct, looked)

    def add_models(
        self,
        velocity: ArrayLike,
        *,
        families: Sequence[str | None] | None = None,
        tags: Sequence[Sequence[str]] | None = None,
        model_ids: Sequence[str] | None = None,
        source: str | None = None,
        skip_existing: bool = False,
        scale: AskedScale = None,
    ) -> Added:
        """Describe, embed and store velocity models ``(batch, depth, x)``, m/s; all of them or none.

        Models of a true size, in cells of ``s`` times the frame's, are stored in the frame's units.

        Returns:
            Their ids, given or made from their content, and which have the map of another model: see
            `seisbind.index.Gallery.add`.

        Raises:
            InvalidVelocityModel, InvalidQuery, GalleryWriteFailed: see `seisbind.index.Gallery.add`.
        """
        true = parse_model_scale(scale)
        described = describe_models(velocity, self.frame, true, self.gallery.precision_m_s)
        return self.gallery.add(
            described.velocity,
            described.descriptors,
            self.embedder.embed_velocity(described.velocity),
            self.embedder.embed_descriptors(described.descriptors),
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

    def _velocities(self, model_ids: Sequence[str]) -> Float32:
        """``(model, depth, x)`` m/s of the frame: models of the gallery. Raises UnknownModel."""
        if not model_ids:
            return np.zeros((0, *self.frame.velocity_shape), np.float32)
        return stacked([each[None] for each in self.gallery.velocities(model_ids)])

    def _rank(
        self,
        found: Sequence[Sequence[Hit]],
        near: Sequence[Sequence[Hit]],
        encoded: EncodedGathers,
        verdicts: Sequence[Verdict] | None,
    ) -> list[Ranking]:
        """How the hits of each gather are ordered; ``near`` are those of the whole gallery, without a filter."""
        calibration = self.embedder.weights.description.calibration
        return rank(
            found,
            best=[hits[0] for hits in near if hits],
            similarity=np.array([[hit.similarity for hit in hits[:2]] for hits in near]),
            size=len(self.gallery),
            read=encoded.velocity,
            uncertainty=encoded.uncertainty(self.embedder.descriptor_spread),
            presence=None if calibration is None else calibration.presence,
            novelty=verdicts,
            models=self._coarse.of,
        )


def canary_gather(frame: Frame = OPENFWI_FRAME) -> Float32:
    """A direct wave in a frame's own layout, ``(1, 5, 1000, 70)`` and 2000 m/s in OpenFWI's: no simulation, the same
    every time."""
    time_s = np.arange(frame.record_samples) * frame.record_dt_s
    offset_m = np.abs(np.subtract.outer(np.asarray(frame.shot_x_m), np.asarray(frame.survey.receiver_x_m)))
    arrival_s = 1.2 / frame.peak_hz + offset_m[:, None, :] / (frame.velocity_m_s[0] * 4 / 3)
    a2 = np.square(np.pi * frame.peak_hz * (time_s[None, :, None] - arrival_s))
    amplitude = 1 / np.sqrt(1 + offset_m / (5 * frame.receiver_spacing_m))[:, None, :]
    return np.asarray((amplitude * (1 - 2 * a2) * np.exp(-a2))[None], dtype=np.float32)
