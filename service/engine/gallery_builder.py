"""Galleries made from random velocity models, OpenFWI's files or plain npy files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seisbind.index import building_store
from seisbind.model.datasets.openfwi import Dataset, find_pairs
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import DatasetError, SeisBindError
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.ground.descriptors import Untrained
from seisbind.model.ground.families import FAMILIES, expanded, mixed
from seisbind.model.scale import UNSCALED, Scale
from seisbind.service.engine.engine import Engine

Float32 = NDArray[np.float32]
Batch = tuple[Float32, Sequence[str | None]]  # (model, depth, x), m/s, and the family of each

RANDOM_PRECISION_M_S = 0.5  # of a gallery of random models: nobody's velocities, in less than half the bytes
BATCH = 256  # models in a transaction: 5 MB of velocities, and a progress bar that moves


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
        _fill(Engine(embedder, gallery), models, source, (), scale, progress, warn)
        return len(gallery)


def add_to_gallery(
    engine: Engine,
    models: Iterable[Batch],
    *,
    source: str | None = None,
    tags: Sequence[str] = (),
    scale: Scale = UNSCALED,
    progress: Callable[[int], None] = lambda done: None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> int:
    """Add models to a gallery that others may read meanwhile; returns the number of those that it did not hold before.

    Raises:
        SeisBindError: as `build_gallery`; the sentence says how many models were added before the error, which stay.
    """
    before = len(engine.gallery)
    try:
        _fill(engine, models, source, tags, scale, progress, warn)
    except SeisBindError as error:
        added = len(engine.gallery) - before
        if not added:
            raise
        sentence = error.sentence.removesuffix("Nothing was changed.").rstrip()
        raise type(error)(
            f"{sentence} {added} velocity models were added before that and stay, {before + added} in all; the same "
            "command goes on with the others."
        ) from error
    return len(engine.gallery) - before


def _fill(
    engine: Engine,
    models: Iterable[Batch],
    source: str | None,
    tags: Sequence[str],
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
            engine.add_models(
                part, families=names, tags=[tags] * len(part), source=source, skip_existing=True, scale=scale
            )
            done += len(part)
            untrained += Untrained.of(part, own)
            progress(done)
    if untrained:
        warn(untrained.sentence)


def random_models(
    count: int, seed: int, families: Sequence[str] | None, *, frame: Frame = OPENFWI_FRAME
) -> Iterator[Batch]:
    """``count`` models of `seisbind.model.ground.families`, shuffled; no families means OpenFWI's ten.

    ``families`` may name groups, see `seisbind.model.ground.families.GROUPS`.
    """
    velocity, family = mixed(count, seed, expanded(families) if families else FAMILIES, frame=frame)
    yield velocity, family.tolist()


def from_files(paths: Sequence[Path], *, frame: Frame = OPENFWI_FRAME) -> tuple[Iterator[Batch], int]:
    """Models of OpenFWI folders and npy files, and how many there are; npy models have no family.

    Raises:
        DatasetError: a path that is neither, a file that cannot be read, or a dataset of another frame.
    """
    opened = [Dataset(find_pairs(path)) if path.is_dir() else _open(path) for path in paths]
    for path, one in zip(paths, opened, strict=True):
        if isinstance(one, Dataset) and one.frame != frame:
            raise DatasetError(f"{path} is of another frame than the weights: {one.frame} there, {frame} here.")
    return _batches(opened), sum(map(len, opened))


def _open(path: Path) -> Float32:
    """The models of an npy file, ``(model, depth, x)``, mapped."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DatasetError(f"{path} cannot be read as an npy file of velocity models: {error}.") from error
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3, 4):
        raise DatasetError(f"{path} does not hold velocity models (model, depth, x).")
    return array[None] if array.ndim == 2 else array


def _batches(opened: Sequence[Dataset | Float32]) -> Iterator[Batch]:
    for one in opened:
        for start in range(0, len(one), BATCH):
            if isinstance(one, Dataset):
                index = np.arange(start, min(start + BATCH, len(one)))
                yield one.velocity(index), one.families[index].tolist()
            else:
                velocity = np.array(one[start : start + BATCH])  # checked where it is added, at its scale
                yield velocity, [None] * len(velocity)
