"""Encoders and a gallery as one callable: the in-process twin of the server.

The server, the command line, bulk jobs and the tests answer through `Engine`, so that they cannot disagree.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.index import Distribution, Filter, Gallery, GalleryInfo, Hit
from seisbind.model.descriptors import DESCRIPTORS, NAMES, check_velocity, describe
from seisbind.model.errors import InvalidGather, InvalidQuery, InvalidVelocityModel, UnknownModel, WeightsMismatch
from seisbind.model.familiarity import Verdict
from seisbind.model.inference import MODEL_CELLS, NEIGHBOURS, Embedder, EncodedGathers, InferredPhysics
from seisbind.model.presence import CANDIDATES, by_structure, coarse
from seisbind.model.survey import OPENFWI, Note, Survey, prepare
from seisbind.service.answers import InDistribution, Match, Quantity, Retrieval, SearchResult
from seisbind.service.query import Query, encode, rows_of

Float32 = NDArray[np.float32]

ATTEMPTS = 3  # a model found, and removed elsewhere before its record is read: look again at what there is


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
        WeightsMismatch: the gallery was made with other weights.
    """

    def __init__(self, embedder: Embedder, gallery: Gallery) -> None:
        if embedder.fingerprint != gallery.fingerprint:
            raise WeightsMismatch(
                f"The gallery at {gallery.path} was made with weights {gallery.fingerprint}; these are "
                f"{embedder.fingerprint}. Use those weights, or build the gallery again with these."
            )
        self.embedder = embedder
        self.gallery = gallery
        self._info: GalleryInfo | None = None
        self._distribution: Distribution | None = None
        self._counting = threading.Lock()

    def info(self) -> GalleryInfo:
        """What the gallery is, computed again only after a change: it reads every record's descriptors."""
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
            survey: how they were recorded.
            top_k: matches a gather.
            notes: what reading the gathers had to assume; said first in each answer's warnings.

        Raises:
            InvalidGather, InvalidSurvey: see `seisbind.model.survey.prepare`.
            InvalidQuery: ``top_k`` out of range.
        """
        watch = Stopwatch()
        with watch("prepare"):
            prepared = prepare(gathers, survey)
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
            by_k.setdefault(max(query.top_k, NEIGHBOURS), []).append(number)
        answers: list[list[Retrieval]] = [[] for _ in queries]
        for k, members in by_k.items():
            batch = [queries[number] for number in members]
            part = encoded.take(np.concatenate([rows[number] for number in members]))
            for number, found in zip(members, self._retrieve_encoded(part, batch, k, watch), strict=True):
                answers[number] = found
        return answers

    def _retrieve_encoded(
        self, encoded: EncodedGathers, queries: Sequence[Query], k: int, watch: Stopwatch
    ) -> Iterator[list[Retrieval]]:
        """The answers to ``queries``, whose gathers are ``encoded`` one after another, from ``k`` neighbours each."""
        rows = rows_of(queries)
        with watch("search"):
            search = self.gallery.search_velocity
            near, near_matches = self._search(search, encoded.embedding, k)
            matches = list(near_matches)
            for query, own in zip(queries, rows, strict=True):
                if query.filter:
                    _, allowed = self._search(search, encoded.embedding[own], query.top_k, query.filter)
                    matches[own[0] : own[-1] + 1] = allowed
        with watch("infer"):
            count = min(min(map(len, near)), NEIGHBOURS)
            neighbours = np.array(
                [[list(match.descriptors.values()) for match in row[:count]] for row in near_matches], dtype=np.float32
            ).reshape(len(near), count, len(NAMES))
            physics = self._physics(self.embedder.infer_physics(encoded, neighbours))
            verdicts = [
                self.embedder.familiar(query.prepared, encoded.take(own))
                for query, own in zip(queries, rows, strict=True)
            ]
        presence = [self._in_gallery(row) for row in near]
        calibration = self.embedder.weights.description.calibration
        moved: set[int] = set()
        read = encoded.velocity
        if calibration is not None and read is not None:
            moved = {row for row, p in enumerate(presence) if p is not None and p < calibration.presence.limit}
        with watch("rank"):
            by_filter: dict[Filter | None, list[int]] = {}
            for query, own in zip(queries, rows, strict=True):
                by_filter.setdefault(query.filter, []).extend(row for row in own.tolist() if row in moved)
            for filter, chosen_rows in by_filter.items():
                if chosen_rows and read is not None:
                    found = self._by_structure(encoded.embedding[chosen_rows], read[chosen_rows], k, filter)
                    for row, ordered in zip(chosen_rows, found, strict=True):
                        matches[row] = ordered
        for query, own, likely in zip(queries, rows, verdicts, strict=True):
            yield [
                Retrieval(
                    matches=(chosen := matches[row][: query.top_k]),
                    physics=physics[row],
                    in_distribution=self._in_distribution(near[row], None if likely is None else likely[i]),
                    in_gallery=presence[row],
                    ranked_by="structure" if row in moved else "similarity",
                    warnings=(*query.notes, *query.prepared.notes[i], *self._fewer(chosen, query.top_k, query.filter)),
                    timings_ms=watch.timings_ms,
                    velocity=None if encoded.velocity is None else encoded.velocity[row],
                )
                for i, row in enumerate(own.tolist())
            ]

    def search_velocity(
        self, velocity: ArrayLike, *, top_k: int = 5, filter: Filter | None = None
    ) -> list[SearchResult]:
        """The gallery's models most like each velocity model ``(batch, 70, 70)``, m/s.

        Raises:
            InvalidVelocityModel: see `seisbind.model.inference.Embedder.embed_velocity`.
            InvalidQuery: ``top_k`` out of range.
        """
        _, matches = self._search(self.gallery.search_velocity, self.embedder.embed_velocity(velocity), top_k, filter)
        return [SearchResult(row, self._fewer(row, top_k, filter)) for row in matches]

    def search_descriptors(
        self, descriptors: Mapping[str, float], *, top_k: int = 5, filter: Filter | None = None
    ) -> SearchResult:
        """The gallery's models whose physics is most like ``descriptors`` (name → value in its unit).

        What is left out is filled with the mean of the training set, and a warning says so.

        Raises:
            InvalidQuery: an unknown name, a value that is not finite, no descriptor at all.
        """
        unknown = [name for name in descriptors if name not in NAMES]
        if unknown or not descriptors:
            known = ", ".join(NAMES)
            raise InvalidQuery(f"No descriptor is called {unknown[0]!r}; known: {known}." if unknown else
                               f"A search by descriptors needs at least one of {known}.")  # fmt: skip
        mean = self.embedder.weights.encoders.descriptor_mean.cpu().numpy()
        filled = np.array([descriptors.get(name, mean[i]) for i, name in enumerate(NAMES)], dtype=np.float64)
        if not (np.abs(filled) < 1e9).all():  # also false for NaN
            raise InvalidQuery("Descriptors are finite numbers in the units that GET /v1/gallery lists.")
        missing = [name for name in NAMES if name not in descriptors]
        warnings: tuple[Note, ...] = ()
        if missing:
            text = f"Filled with the mean of the training set: {', '.join(missing)}."
            warnings = (Note("descriptors_filled", text),)
        vector = self.embedder.embed_descriptors(filled[None])
        _, (row,) = self._search(self.gallery.search_physics, vector, top_k, filter)
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
        """Describe, embed and store velocity models ``(batch, 70, 70)``, m/s; all of them or none.

        Returns:
            Their ids, given or made from their content.

        Raises:
            InvalidVelocityModel, InvalidQuery, GalleryWriteFailed: see `seisbind.index.Gallery.add`.
        """
        models = check_velocity(velocity)
        if models.shape[1:] != (MODEL_CELLS, MODEL_CELLS):
            raise InvalidVelocityModel(
                f"The gallery takes velocity models of {MODEL_CELLS} x {MODEL_CELLS} cells of 10 m; got "
                f"{models.shape[1]} x {models.shape[2]}."
            )
        descriptors = describe(models)
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
        self.retrieve(canary_gather(), top_k=1)

    def _search(
        self,
        search: Callable[..., list[list[Hit]]],
        vectors: Float32,
        k: int,
        filter: Filter | None = None,
    ) -> tuple[list[list[Hit]], list[tuple[Match, ...]]]:
        """Hits and the same as matches; each model's record is read once."""
        for attempt in range(ATTEMPTS):
            hits = search(vectors, k, filter=filter)
            ids = list(dict.fromkeys(hit.model_id for row in hits for hit in row))
            try:
                records = dict(zip(ids, self.gallery.records(ids), strict=True))
                break
            except UnknownModel:
                if attempt == ATTEMPTS - 1:
                    raise
                self.refresh()  # another process removed it
        matches = [
            tuple(
                Match(
                    rank,
                    hit.model_id,
                    (record := records[hit.model_id]).family,
                    hit.similarity,
                    dict(zip(NAMES, record.descriptors.tolist(), strict=True)),
                )
                for rank, hit in enumerate(row, start=1)
            )
            for row in hits
        ]
        return hits, matches

    @staticmethod
    def _in_distribution(near: Sequence[Hit], verdict: Verdict | None) -> InDistribution:
        similarity = near[0].similarity if near else None
        if verdict is None:
            return InDistribution(None, None, None, None, None, similarity)
        return InDistribution(verdict.likely, verdict.score, verdict.limit, verdict.reason, verdict.detail, similarity)

    def _by_structure(
        self, embedding: Float32, read: Float32, k: int, filter: Filter | None
    ) -> list[tuple[Match, ...]]:
        """At least ``k`` matches of each gather, where there are as many: the `CANDIDATES` most similar in the order of
        `presence.by_structure`, then the rest by similarity, so that the first do not depend on ``k``."""
        for attempt in range(ATTEMPTS):
            _, rows = self._search(self.gallery.search_velocity, embedding, max(k, CANDIDATES), filter)
            ids = {match.model_id for row in rows for match in row[:CANDIDATES]}
            try:
                models = {each: coarse(self.gallery.velocity(each), read.shape[1]) for each in ids}
                break
            except UnknownModel:
                if attempt == ATTEMPTS - 1:
                    raise
                self.refresh()  # another process removed it
        ordered = []
        for predicted, row in zip(read, rows, strict=True):
            near = row[:CANDIDATES]
            order = [near[i] for i in by_structure(predicted, [models[match.model_id] for match in near])]
            order += row[CANDIDATES:]
            ordered.append(tuple(replace(match, rank=rank) for rank, match in enumerate(order, start=1)))
        return ordered

    def _in_gallery(self, near: Sequence[Hit]) -> float | None:
        calibration = self.embedder.weights.description.calibration
        if calibration is None or len(near) < 2:
            return None
        return calibration.presence.probability(near[0].similarity, near[1].similarity, len(self.gallery))

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


def canary_gather() -> Float32:
    """A direct wave at 2000 m/s in OpenFWI's geometry, ``(1, 5, 1000, 70)``: no simulation, the same every time."""
    time_s = np.arange(1000) * OPENFWI.dt_s
    offset_m = np.abs(np.subtract.outer(np.asarray(OPENFWI.shot_x_m), np.asarray(OPENFWI.receiver_x_m)))
    a2 = np.square(np.pi * 15.0 * (time_s[None, :, None] - 0.08 - offset_m[:, None, :] / 2000.0))
    amplitude = 1 / np.sqrt(1 + offset_m / 50)[:, None, :]
    return np.asarray((amplitude * (1 - 2 * a2) * np.exp(-a2))[None], dtype=np.float32)
