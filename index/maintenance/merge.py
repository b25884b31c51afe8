"""Several galleries in one: models are copied as they are stored, without being described or embedded again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from seisbind.index.gallery import Gallery
from seisbind.index.maintenance.models import Stored, stored_models
from seisbind.index.search.snapshots import recover_snapshots
from seisbind.index.storage.database import RECORDS, translate_errors
from seisbind.index.storage.folder import BUILDING, LOCK, drop_building, install, new_gallery, no_step
from seisbind.index.storage.lock import WriterLock
from seisbind.index.storage.record import LITTLE, Float32, NewModel, RowLookup, velocity_sha256
from seisbind.index.storage.record_writer import RecordWriter
from seisbind.index.storage.records import Records
from seisbind.index.validation import MODEL_ID
from seisbind.model.errors import GalleryNotFound, InvalidConfig, InvalidQuery, WeightsMismatch
from seisbind.model.fingerprint import embeds_alike

LISTED = 10  # equal maps that are named; all are counted


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did.

    Attributes:
        count: models of the gallery now.
        added: of them by this merge.
        present: models that were there already, with the same id and the same map: stored once.
        renamed: models whose id belonged to another map, and that have a new one.
        same_map: of the models added, those whose map another one has under another id: how many.
        examples: the first of them: (id, id of the other).
    """

    count: int
    added: int
    present: int
    renamed: int
    same_map: int
    examples: tuple[tuple[str, str], ...]


def merge(
    out: Path,
    sources: Sequence[Path],
    *,
    into: bool = False,
    overwrite: bool = False,
    rename: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
    at_step: Callable[[str], None] = no_step,
) -> Merged:
    """Put the models of the galleries in the folders ``sources`` into one in the folder ``out``.

    Each keeps its id, family, tags, source and the time it was added. A new gallery is there when all is done, or not
    at all. Into one that is there, models go some hundred at a time, after all ids have been compared: what is there
    after a kill stays, and the same call goes on with the rest. The order is that of ``sources``. Copying takes the
    memory of a few hundred models and 16 bytes for each in ``out``; the snapshots at the end that of a gallery that is
    opened.

    Args:
        into: add to the gallery in ``out``, instead of making a new one.
        overwrite: a new one replaces the gallery in ``out``, when all is done.
        rename: the new id of a model whose id another map has: a text with ``{id}`` and ``{gallery}``, the name of the
            source's folder; None to refuse.
        progress: called with the number of models read so far.
        at_step: called with a name at each step, for crash tests.

    Raises:
        WeightsMismatch: two of them are of other weights, or of another frame; the sentence names both.
        InvalidQuery: an id belongs to two different maps, and ``rename`` is None or gives an id that is taken, too.
            A new gallery is not made then; without ``rename``, nothing is added to one that is there, either.
        InvalidConfig: no source, one twice, ``out`` among them, a ``rename`` without ``{id}``, or ``into`` a gallery
            that promises velocities nearer to those that were given than a source does.
        GalleryNotFound, GalleryDamaged, GalleryLocked, GalleryError, GalleryWriteFailed: as `Gallery.open` and
            `Gallery.building`; GalleryDamaged also where a model is not what was written.
    """
    _check_names(out, sources, rename)
    with ExitStack() as files:
        read = [files.enter_context(closing(Records(path / RECORDS))) for path in sources]
        _check_same(([out] if into else []) + list(sources), files)
        if not into:
            first = read[0]
            with new_gallery(
                out, fingerprint=first.made_with, dimension=first.dimension, frame=first.frame,
                overwrite=overwrite, at_step=at_step, precision_m_s=max(each.precision_m_s for each in read),
            ) as lock:  # fmt: skip
                with closing(RecordWriter(out / BUILDING / RECORDS, at_step=at_step)) as writer:
                    merged = _copy(out / BUILDING, writer, read, rename, progress)
                at_step("merge:copied")
                Gallery.open(out / BUILDING, fingerprint=None, writable=True, at_step=at_step).close()
                with translate_errors(out, "put the merged gallery"):
                    install(out, at_step=at_step)
                lock.release()
            return merged
        with _writing(out, at_step) as writer:
            _check_precision(out, read)
            _compare_ids(out, read, rename)
            at_step("merge:compared")
            merged = _copy(out, writer, read, rename, progress)
            at_step("merge:copied")
    Gallery.open(out, fingerprint=None, writable=True, at_step=at_step).close()
    return merged


@contextmanager
def _writing(out: Path, at_step: Callable[[str], None]) -> Iterator[RecordWriter]:
    """What changes an existing gallery, without what is searched in memory; under its lock."""
    if not (out / RECORDS).is_file():
        raise GalleryNotFound(f"There is no gallery at {out}. Leave out --into to make one.")
    lock = WriterLock(out / LOCK)
    try:
        with closing(RecordWriter(out / RECORDS, at_step=at_step)) as writer:
            recover_snapshots(out)
            drop_building(out)
            yield writer
    finally:
        lock.release()


def _check_names(out: Path, sources: Sequence[Path], rename: str | None) -> None:
    resolved = [path.resolve() for path in sources]
    if not sources or len(set(resolved)) < len(resolved):
        raise InvalidConfig("Name the galleries to merge, each once.")
    if out.resolve() in resolved:
        raise InvalidConfig(f"{out} is both what is merged and where it goes. Name another folder, or use --into.")
    if rename is not None:
        try:
            one, other = rename.format(id="a", gallery="g"), rename.format(id="b", gallery="g")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise InvalidConfig(f"{rename!r} is no rule for ids: only {{id}} and {{gallery}} are replaced.") from error
        if one == other:
            raise InvalidConfig(f"{rename!r} gives every model the same id; put {{id}} into it.")


def _check_same(paths: Sequence[Path], files: ExitStack) -> None:
    """Raises WeightsMismatch unless all are of the same weights and frame."""
    first, *others = [(path, files.enter_context(closing(Records(path / RECORDS)))) for path in paths]
    for path, records in others:
        alike = embeds_alike(records.made_with, first[1].fingerprint, first[1].embeddings_fingerprint)
        if not alike or first[1].dimension != records.dimension:
            raise WeightsMismatch(
                f"{first[0]} was made with weights {first[1].fingerprint} and {path} with {records.fingerprint}: their "
                "embeddings cannot be searched together. Build one of them again with the other's weights."
            )
        if first[1].frame != records.frame:
            raise WeightsMismatch(
                f"{first[0]} and {path} are of different frames: {first[1].frame} there, {records.frame} here."
            )


def _check_precision(out: Path, read: Sequence[Records]) -> None:
    """Raises InvalidConfig where what ``out`` says of its velocities would not be true of a source's."""
    with closing(Records(out / RECORDS)) as held:
        promised = held.precision_m_s
    for records in read:
        if records.precision_m_s > promised:
            kept = f"rounded by at most {promised:g} m/s" if promised else "exact"
            raise InvalidConfig(
                f"The velocities of {out} are {kept}, those of {records.path.parent} rounded by up to "
                f"{records.precision_m_s:g} m/s. Merge both into a new gallery, which then says so. Nothing was added."
            )


class _Ids:
    """Which map each id of a gallery has, of those asked for."""

    def __init__(self, folder: Path) -> None:
        self._records = Records(folder / RECORDS)

    def close(self) -> None:
        self._records.close()

    def count(self) -> int:
        return self._records.state().count

    def held(self, model_ids: Sequence[str]) -> dict[str, tuple[int, bytes]]:
        """Id → its row and the SHA-256 of its map, of those that are there."""
        wanted = ", ".join("?" * len(model_ids))
        with self._records.reading() as connection:
            found = connection.execute(
                f"SELECT model_id, row, velocity_sha256 FROM models WHERE model_id IN ({wanted})", list(model_ids)
            )
            return {model_id: (row, sha256) for model_id, row, sha256 in found}


def _copy(
    folder: Path, writer: RecordWriter, read: Sequence[Records], rename: str | None, progress: Callable[[int], None]
) -> Merged:
    """Copy all models of ``read`` into the records in ``folder``."""
    present = renamed = added = same_map = done = 0
    examples: list[tuple[str, str]] = []
    with closing(_Ids(folder)) as ids:
        for records in read:
            source = records.path.parent
            for batch in stored_models(records):
                models, kept, moved = _named(batch, ids, rename, source)
                held = ids.held([model.model_id for model in models])
                lookup = RowLookup(
                    -1, {model_id: row for model_id, (row, _) in held.items()}, 0, lambda row, model_id: True
                )
                _, _, written, equal = writer.add(models, lookup, skip_existing=False)
                added, present, renamed = added + len(written), present + kept, renamed + moved
                same_map += len(equal)
                examples += list(equal.items())[: LISTED - len(examples)]
                done += len(batch)
                progress(done)
        count = ids.count()
    return Merged(count, added, present, renamed, same_map, tuple(examples))


def _named(batch: Sequence[Stored], ids: _Ids, rename: str | None, source: Path) -> tuple[list[NewModel], int, int]:
    """The models of ``batch`` that are not there yet, under free ids; how many are there; how many have a new id."""
    held = ids.held([each.record.model_id for each in batch])
    own = {each.record.model_id for each in batch}
    models: list[NewModel] = []
    present = moved = 0
    for each in batch:
        model_id = each.record.model_id
        if model_id not in held:
            models.append(each.as_new(model_id))
            continue
        sha256 = _sha256(each.velocity)
        if held[model_id][1] == sha256:
            present += 1
            continue
        new = _new_id(model_id, source, rename)
        taken = ids.held([new]).get(new)
        if taken is not None and taken[1] == sha256:  # by an earlier run, which was stopped
            present += 1
        elif taken is not None or new in own:
            raise InvalidQuery(
                f"The id {new!r}, which {model_id!r} of {source} would have, is taken, too. Give another "
                "rule. What was added before to a gallery that was there stays."
            )
        else:
            models.append(each.as_new(new))
            moved += 1
    return models, present, moved


def _new_id(model_id: str, source: Path, rename: str | None) -> str:
    if rename is None:
        raise InvalidQuery(
            f"The id {model_id!r} of {source} belongs to another velocity map. Give a rule for its new id, such as "
            "--rename '{gallery}.{id}', or remove one of the two. Nothing was changed."
        )
    new = rename.format(id=model_id, gallery=source.resolve().name)
    if not MODEL_ID.fullmatch(new):
        raise InvalidQuery(
            f"The rule {rename!r} makes {new!r:.150} of {model_id!r}, which cannot be an id: letters, digits and ._:- "
            "only, at most 128, a letter or digit first."
        )
    return new


def _compare_ids(out: Path, read: Sequence[Records], rename: str | None) -> None:
    """Raises InvalidQuery where a merge into ``out`` would meet an id of two maps, before anything is written.

    The ids that will be there are listed in a file of SQLite's own that has no name, and goes with its connection.
    """
    if rename is not None:
        return
    with (
        closing(_Ids(out)) as ids,
        closing(sqlite3.connect("", isolation_level=None)) as listed,
        translate_errors(out, "compare ids"),
    ):
        listed.execute("CREATE TABLE ids (model_id TEXT PRIMARY KEY, sha256 BLOB) WITHOUT ROWID")
        for records in read:
            with records.reading() as connection:
                found = connection.execute("SELECT model_id, velocity_sha256 FROM models ORDER BY row")
                while some := found.fetchmany(500):
                    held = {name: sha256 for name, (_, sha256) in ids.held([name for name, _ in some]).items()}
                    for name, sha256 in some:
                        if name not in held:
                            listed.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (name, sha256))
                            held[name] = listed.execute(
                                "SELECT sha256 FROM ids WHERE model_id = ?", (name,)
                            ).fetchone()[0]
                        if held[name] != sha256:
                            _new_id(name, records.path.parent, None)


def _sha256(velocity: Float32) -> bytes:
    return velocity_sha256(velocity.astype(LITTLE).tobytes(), velocity.shape)
