"""Copying a gallery into Milvus: every model with its id, family, tags, source and date, and its embeddings as they
are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from seisbind.index.milvus_store import MilvusStore
from seisbind.index.storage.record import NewModel, Record
from seisbind.index.store import Store
from seisbind.model.errors import GalleryNotFound, InvalidConfig, UnknownModel
from seisbind.model.files import is_milvus
from seisbind.model.fingerprint import Fingerprint

PAGE = 256  # models in memory at a time: 10 MB


def copy_gallery(source: Store, url: str, *, progress: Callable[[int], None] = lambda done: None) -> int:
    """Copy the models of ``source`` to a gallery in Milvus; returns how many it did not have before.

    A gallery that is not there is made, and can be opened when all models are in it; to one that is there, the models
    that it lacks are added, so that the same command goes on where it was interrupted. What others add to ``source``
    meanwhile may be left out, and what they remove too.

    Raises:
        InvalidConfig: ``url`` is none of Milvus, or its gallery promises velocities less rounded than ``source`` has.
        WeightsMismatch: the gallery there was made with other weights, or for another frame.
        InvalidQuery: an id there belongs to another velocity model.
        GalleryDamaged: a model of ``source`` is not what was written; nothing of its page was copied.
        GalleryError, GalleryUnreachable: see `MilvusStore.open`.
    """
    if not is_milvus(url):
        raise InvalidConfig(f"A gallery is copied into Milvus: {url!r:.150} is no milvus:// URL.")
    weights = Fingerprint(source.fingerprint, embeddings=source.embeddings_fingerprint or "")
    try:
        target = MilvusStore.open(url, fingerprint=weights, frame=source.frame, writable=True)
    except GalleryNotFound:
        with MilvusStore.building(
            url, fingerprint=weights, dimension=source.dimension, frame=source.frame,
            precision_m_s=source.precision_m_s,
        ) as target:  # fmt: skip
            return _fill(source, target, progress)
    with target:
        if source.precision_m_s > target.precision_m_s:
            raise InvalidConfig(
                f"The velocities of {source.path} are rounded by up to {source.precision_m_s:g} m/s, and those of "
                f"{url} by {target.precision_m_s:g} at most. Copy to another collection, which then says so."
            )
        return _fill(source, target, progress)


def _fill(source: Store, target: MilvusStore, progress: Callable[[int], None]) -> int:
    ids, added = source.model_ids(), 0
    for start in range(0, len(ids), PAGE):
        added += len(target.add_models(list(_models(source, ids[start : start + PAGE])), skip_existing=True))
        progress(min(start + PAGE, len(ids)))
    return added


def _models(source: Store, model_ids: Sequence[str]) -> Iterator[NewModel]:
    """Those of ``model_ids`` that are still there."""
    with source.unchanging():
        held = _held(source, model_ids)
        names = [record.model_id for record in held]
        read = zip(held, source.velocities(names), *source.embeddings(names), strict=True)
        for record, velocity, in_velocity, in_physics in read:
            yield NewModel(
                record.model_id, record.family, record.tags, record.source, record.added_at,
                np.asarray(record.descriptors, np.float32), velocity, in_velocity, in_physics,
            )  # fmt: skip


def _held(source: Store, model_ids: Sequence[str]) -> list[Record]:
    try:
        return source.records(model_ids)
    except UnknownModel:  # one was removed since
        held = []
        for model_id in model_ids:
            try:
                held.append(source.record(model_id))
            except UnknownModel:
                continue
        return held
