"""Galleries made in this process, of any velocity models; `seisbind.service.building` makes large ones in several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from seisbind.index import building_store
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.ground.descriptors import Untrained
from seisbind.model.ground.families import mixed
from seisbind.model.scale import UNSCALED, Scale
from seisbind.service.building.sources import BATCH, WHOLE, Batch, ModelFiles, RandomModels
from seisbind.service.engine.engine import Engine


def build_gallery(
    path: Path | str,
    embedder: Embedder,
    models: Iterable[Batch],
    *,
    source: str | None = None,
    overwrite: bool = False,
    scale: Scale = UNSCALED,
    precision_m_s: float = 0.0,
    progress: Callable[[int], None] = lambda done: None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> int:
    """Make a gallery in the folder ``path``, or at a URL of Milvus, and fill it; returns how many models it holds.

    If it fails or is killed, a gallery that was there is there still, and otherwise there is none.

    Args:
        models: batches of velocity models with their families.
        source: where they came from.
        overwrite: replace a gallery that is there, when all is done.
        scale: in whose true units the models are; they are stored in the frame's.
        precision_m_s: by how much a stored velocity may be off, m/s of the frame; 0: exact.
        progress: called with the number of models done so far.
        warn: called at the end with a sentence, if models are not such as the encoders were trained for.

    Raises:
        GalleryError, GalleryWriteFailed, InvalidVelocityModel: see `seisbind.index.Gallery`.
    """
    with building_store(
        path,
        fingerprint=embedder.fingerprint,
        frame=embedder.frame,
        overwrite=overwrite,
        precision_m_s=precision_m_s,
    ) as gallery:
        _fill(Engine(embedder, gallery), models, source, scale, progress, warn)
        return len(gallery)


def _fill(
    engine: Engine,
    models: Iterable[Batch],
    source: str | None,
    scale: Scale,
    progress: Callable[[int], None],
    warn: Callable[[str], None],
) -> None:
    """One transaction for each batch; models that the gallery already holds are left out."""
    own = scale.frame(engine.frame)
    done, untrained = 0, Untrained(own.velocity_m_s)
    for velocity, families in models:
        for start in range(0, len(velocity), BATCH):
            part, names = velocity[start : start + BATCH], families[start : start + BATCH]
            engine.add_models(part, families=names, source=source, skip_existing=True, scale=scale)
            done += len(part)
            untrained += Untrained.of(part, own)
            progress(done)
    if untrained:
        warn(untrained.sentence)


def random_models(
    count: int, seed: int, families: Sequence[str] | None, *, frame: Frame = OPENFWI_FRAME
) -> Iterator[Batch]:
    """``count`` models of `seisbind.model.ground.families`, shuffled; no families means OpenFWI's ten.

    Up to `WHOLE` are one batch, more are drawn block by block (see `seisbind.service.building.sources.RandomModels`).
    ``families`` may name groups, see `seisbind.model.ground.families.GROUPS`.
    """
    source = RandomModels.of(count, seed, families, frame=frame)
    if count <= WHOLE:
        velocity, family = mixed(count, seed, source.families, frame=frame)
        yield velocity, family.tolist()
        return
    for part in source.parts():
        yield part.read()


def from_files(paths: Sequence[Path], *, frame: Frame = OPENFWI_FRAME) -> tuple[Iterator[Batch], int]:
    """Models of OpenFWI folders and npy files, and how many there are; npy models have no family.

    Raises:
        DatasetError: a path that is neither, a file that cannot be read, or a dataset of another frame.
    """
    source = ModelFiles.of(paths, frame=frame)
    return (part.read() for part in source.parts()), source.count
