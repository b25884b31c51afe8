"""`seisbind gallery build` and `add`: models drawn or read, described, embedded and written, by as many processes as
there are cores.

Workers make parts of a source; this process writes them in the order of the source, a transaction each, in a thread of
its own. So the content does not depend on the number of workers. No more than a few parts are held at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from seisbind.index import Gallery, Store, building_store
from seisbind.index.building import resumable
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import GalleryError, SeisBindError
from seisbind.model.files import is_milvus
from seisbind.model.ground.descriptors import Untrained
from seisbind.model.processes import in_order, release_memory, usable_cores, worker_pool
from seisbind.model.scale import UNSCALED, Scale
from seisbind.service.building.encoding import EncodedPart, Encoding, embed_part, encode_part, read_part
from seisbind.service.building.sources import Source

RANDOM_PRECISION_M_S = 0.5  # of a gallery of random models: nobody's velocities, in less than half the bytes
AHEAD = 4  # parts of each worker that are begun and not written, 5.5 MB each: it does not wait while one is written
ALONE = 1024  # models up to which no worker is started by itself: starting takes longer than they do


def _no_step(step: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Encoders:
    """Who embeds.

    Attributes:
        embedder: with which this process embeds, if no worker does.
        weights: the file that the workers load; None for those that ship.
        workers: processes; 0: none but this one; None: one a core, or none for a few models.
        here: embed in this process, and let the workers draw, read and describe; None: where the embedder is on a GPU.
    """

    embedder: Embedder
    weights: Path | None = None
    workers: int | None = None
    here: bool | None = None

    def workers_for(self, count: int) -> int:
        if self.workers is not None:
            return self.workers
        return 0 if count <= ALONE else usable_cores()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done.

    Attributes:
        given: models of the source.
        stored: those of them that the gallery did not hold before.
        held: models of the gallery.
        earlier: models of the source that were done before this process began.
        untrained: those that leave the velocities of training.
    """

    given: int
    stored: int
    held: int
    earlier: int
    untrained: Untrained

    @property
    def duplicates(self) -> int:
        """Models whose map was there already, in the gallery or earlier in the source."""
        return self.given - self.stored


def build(
    path: Path | str,
    source: Source,
    encoders: Encoders,
    *,
    scale: Scale = UNSCALED,
    precision_m_s: float = 0.0,
    overwrite: bool = False,
    restart: bool = False,
    resumed: Callable[[int], None] = lambda earlier: None,
    progress: Callable[[int], None] = lambda done: None,
    at_step: Callable[[str], None] = _no_step,
) -> Outcome:
    """Make a gallery of ``source`` in the folder ``path``, or go on with what an earlier call of the same kind began.

    Args:
        path: or the URL of a gallery in Milvus, which cannot go on: what was stopped there begins anew.
        scale: in whose true units the models are; they are stored in the frame's.
        precision_m_s: of the gallery; see `seisbind.index.Gallery.create`.
        overwrite: replace a gallery that is there, when all is done.
        restart: discard what was built before, and begin anew.
        resumed: called with the number of models that were done before, if there are any.
        progress: called with the number of models done so far, at the beginning, too.
        at_step: see `seisbind.index.building.resumable`.

    Raises:
        GalleryError: see `seisbind.index.building.resumable`; or a worker died. What was done stays for the next call.
        SeisBindError: of a model, a file or the disk; what was done stays.
    """
    embedder = encoders.embedder
    if is_milvus(path):
        with building_store(
            path, fingerprint=embedder.fingerprint, frame=embedder.frame, overwrite=overwrite,
            precision_m_s=precision_m_s,
        ) as store:  # fmt: skip
            return add(store, source, encoders, scale=scale, progress=progress)
    plan = source.plan() | {"scale": [scale.s, scale.k], "source": source.origin}
    with resumable(
        Path(path),
        plan,
        fingerprint=embedder.fingerprint,
        frame=embedder.frame,
        precision_m_s=precision_m_s,
        overwrite=overwrite,
        restart=restart,
        at_step=at_step,
    ) as building:
        before = building.progress
        parts, earlier = int(before.get("parts", 0)), int(before.get("models", 0))
        own = scale.frame(embedder.frame).velocity_m_s
        untrained = Untrained(own, **before["untrained"]) if "untrained" in before else Untrained(own)
        if earlier:
            resumed(earlier)
        progress(earlier)
        done = earlier

        def write(part: EncodedPart) -> int:
            nonlocal parts, done, untrained
            _add(building.gallery, part, source.origin, ())
            parts, done, untrained = parts + 1, done + len(part), untrained + part.untrained
            tally = {name: value for name, value in asdict(untrained).items() if name != "range_m_s"}
            building.note({"parts": parts, "models": done} | ({"untrained": tally} if untrained else {}))
            return done

        try:
            _stream(source, parts, encoders, scale, building.gallery, write, progress)
        except BaseException as error:
            if isinstance(error, SeisBindError) and done:
                raise type(error)(
                    f"{error.sentence.removesuffix('Nothing was changed.').rstrip()} {done} of {source.count} velocity "
                    "models are done and kept; the same command goes on with the others."
                ) from error
            raise
        held = len(building.gallery)
    return Outcome(done, held, held, earlier, untrained)


def add(
    gallery: Store,
    source: Source,
    encoders: Encoders,
    *,
    tags: Sequence[str] = (),
    scale: Scale = UNSCALED,
    progress: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Add the models of ``source`` to a gallery that others may read meanwhile; those that it holds are left out.

    Raises:
        SeisBindError: as `build`; the sentence says how many models were added before the error, which stay.
    """
    before, done = len(gallery), 0
    untrained = Untrained(scale.frame(encoders.embedder.frame).velocity_m_s)

    def write(part: EncodedPart) -> int:
        nonlocal done, untrained
        _add(gallery, part, source.origin, tags)
        done, untrained = done + len(part), untrained + part.untrained
        return done

    progress(0)
    try:
        _stream(source, 0, encoders, scale, gallery, write, progress)
    except SeisBindError as error:
        added = len(gallery) - before
        if not added:
            raise
        sentence = error.sentence.removesuffix("Nothing was changed.").rstrip()
        raise type(error)(
            f"{sentence} {added} velocity models were added before that and stay, {before + added} in all; the same "
            "command goes on with the others."
        ) from error
    return Outcome(done, len(gallery) - before, len(gallery), 0, untrained)


def _add(gallery: Store, part: EncodedPart, origin: str, tags: Sequence[str]) -> None:
    words, described, coded, first = part.words, part.described, part.coded, 0
    sources = [origin] * len(part) if words is None else words.sources
    for source, run in groupby(sources):  # one a call
        rows = slice(first, first + len(list(run)))
        first = rows.stop
        own = [()] * len(part) if words is None else words.tags
        named: Any = {
            "model_ids": None if words is None else words.model_ids[rows],
            "families": part.families[rows],
            "tags": [(*each, *tags) for each in own[rows]],
            "source": source,
            "skip_existing": True,
        }
        if coded is not None and isinstance(gallery, Gallery):
            gallery.add_coded(coded.select(rows), **named)
        elif described and part.velocity_embeddings is not None and part.physics_embeddings is not None:
            embeddings = part.velocity_embeddings[rows], part.physics_embeddings[rows]
            gallery.add(described.velocity[rows], described.descriptors[rows], *embeddings, **named)


def _stream(
    source: Source,
    skipped: int,
    encoders: Encoders,
    scale: Scale,
    gallery: Store,
    write: Callable[[EncodedPart], int],
    progress: Callable[[int], None],
) -> None:
    """Write all parts of a source but the first ``skipped``; one is written while the next is made."""
    with ThreadPoolExecutor(1, thread_name_prefix="writer") as thread:
        writing: Future[int] | None = None
        try:
            with closing(_encoded(source, skipped, encoders, scale, gallery)) as encoded:
                for part in encoded:
                    if writing is not None:
                        progress(writing.result())
                    writing = thread.submit(write, part)
        finally:
            if writing is not None:  # also what was made before a worker died is kept
                progress(writing.result())


def _encoded(
    source: Source, skipped: int, encoders: Encoders, scale: Scale, gallery: Store
) -> Generator[EncodedPart, None, None]:
    embedder, workers = encoders.embedder, encoders.workers_for(source.count)
    here = embedder.device.type != "cpu" if encoders.here is None else encoders.here
    encoding = Encoding(
        encoders.weights,
        None if here else embedder.fingerprint,
        embedder.frame,
        scale,
        gallery.precision_m_s,
        coded=isinstance(gallery, Gallery) and gallery.codes,
    )
    if not workers:
        for part in source.parts(skipped):
            yield embed_part(read_part(part, encoding), encoding, embedder)
        return
    release_memory()
    try:
        with worker_pool(workers, uses_torch=not here, imported=(encode_part.__module__,)) as pool:
            work: Callable[[Any], EncodedPart] = partial(encode_part, encoding=encoding)
            for made in in_order(pool, work, source.parts(skipped, run=pool.map), ahead=AHEAD * workers):
                yield embed_part(made, encoding, embedder)
    except BrokenProcessPool as error:
        raise GalleryError(
            f"One of {workers} worker processes died, perhaps out of memory: --workers gives fewer of them."
        ) from error
    except MemoryError as error:
        raise GalleryError(
            f"A worker process ran out of memory; --workers gives fewer of them than {workers}."
        ) from error
