"""What a gallery is to those who use it, wherever its models are: a folder (`Gallery`), or Milvus (`MilvusStore`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from numpy.typing import ArrayLike

from seisbind.index.approximate.info import ApproximateInfo
from seisbind.index.approximate.probe import LiveRecall
from seisbind.index.gallery import Gallery
from seisbind.index.info import Distribution, GalleryInfo
from seisbind.index.listing import list_records
from seisbind.index.search.filter import Filter
from seisbind.index.search.view import Hits
from seisbind.index.storage.record import Added, Float32, Record
from seisbind.index.verify import VerifyReport, verify_folder
from seisbind.model.files import is_milvus
from seisbind.model.frame import Frame


class Store(Protocol):
    """A gallery that is open. `Gallery` says what each method does; docs/milvus.md says which of its promises another
    kind of store cannot keep.

    All methods may be called from any thread.

    Attributes:
        path: the folder, or the URL without anything secret.
        name: of the folder or the collection, for people.
        fingerprint, frame: of the weights whose embeddings it holds.
        embeddings_fingerprint: see `seisbind.model.fingerprint.embeds_alike`.
        stamp: see `GalleryInfo.stamp`.
    """

    fingerprint: str
    dimension: int
    frame: Frame
    embeddings_fingerprint: str | None
    precision_m_s: float

    @property
    def path(self) -> Path | str: ...
    @property
    def name(self) -> str: ...
    @property
    def generation(self) -> int: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def stamp(self) -> str: ...
    @property
    def search_device(self) -> str: ...
    @property
    def device_bytes(self) -> int: ...
    def search_on(self, device: torch.device, *, on_fall_back: Callable[[str], object] = ...) -> None: ...
    def marks(self) -> tuple[object, object]: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def stored(self, velocity: ArrayLike) -> Float32: ...
    def add(
        self,
        velocity: ArrayLike,
        descriptors: ArrayLike,
        velocity_embeddings: ArrayLike,
        physics_embeddings: ArrayLike,
        *,
        model_ids: Sequence[str] | None = None,
        families: Sequence[str | None] | None = None,
        tags: Sequence[Sequence[str]] | None = None,
        source: str | None = None,
        skip_existing: bool = False,
    ) -> Added: ...
    def remove(self, model_ids: Sequence[str]) -> int: ...
    @property
    def approximate(self) -> ApproximateInfo | None: ...
    @property
    def live_recall(self) -> LiveRecall: ...
    def search_velocity(
        self, queries: ArrayLike, k: int, *, filter: Filter | None = None, exact: bool | None = None
    ) -> Hits: ...
    def search_physics(self, queries: ArrayLike, k: int, *, filter: Filter | None = None) -> Hits: ...
    def record(self, model_id: str) -> Record: ...
    def records(self, model_ids: Sequence[str]) -> list[Record]: ...
    def velocity(self, model_id: str) -> Float32: ...
    def velocities(self, model_ids: Sequence[str]) -> list[Float32]: ...
    def embeddings(self, model_ids: Sequence[str]) -> tuple[Float32, Float32]: ...
    def model_ids(self) -> list[str]: ...
    def families(self) -> dict[str, int]: ...
    def info(self) -> GalleryInfo: ...
    def is_current(self) -> bool: ...
    def distribution(self) -> Distribution: ...
    def verify(self) -> VerifyReport: ...
    def refresh(self) -> bool: ...
    def unchanging(self) -> AbstractContextManager[None]: ...
    def close(self, *, lists: bool = ...) -> None: ...


@contextmanager
def building_store(
    location: str | Path, *, fingerprint: str, frame: Frame, overwrite: bool = False, precision_m_s: float = 0.0
) -> Iterator[Store]:
    """A new gallery to fill, which is there once the block has ended: `Gallery.building` or `MilvusStore.building`."""
    given: dict[str, Any] = {"fingerprint": fingerprint, "frame": frame, "overwrite": overwrite}
    if not is_milvus(location):
        with Gallery.building(Path(location), precision_m_s=precision_m_s, **given) as gallery:
            yield gallery
        return
    from seisbind.index.milvus_store import MilvusStore

    with MilvusStore.building(str(location), precision_m_s=precision_m_s, **given) as store:
        yield store


def list_store(location: str | Path, *, filter: Filter | None = None, limit: int | None = None) -> Iterator[Record]:
    """The records at ``location``, in the order they were added: `list_records`, also of a store in Milvus."""
    if not is_milvus(location):
        yield from list_records(Path(location), filter=filter, limit=limit)
        return
    from seisbind.index.milvus_store import MilvusStore

    with MilvusStore.open(str(location), fingerprint=None) as store:
        yield from store.listed(filter=filter, limit=limit)


def verify_store(location: str | Path) -> VerifyReport:
    """`verify_folder`, also of a store in Milvus."""
    if not is_milvus(location):
        return verify_folder(Path(location))
    with open_store(location, fingerprint=None) as store:
        return store.verify()


def open_store(
    location: str | Path,
    *,
    fingerprint: str | None,
    frame: Frame | None = None,
    writable: bool = False,
    exact: bool = False,
) -> Store:
    """Open the gallery at ``location``: a folder, or ``milvus://host:port/collection`` (see docs/milvus.md for URLs).

    Args:
        fingerprint, frame: of the weights that queries come from; None not to compare them.
        writable: open it for changes.
        exact: never search approximately; Milvus is always asked for exact searches.

    Raises:
        GalleryError: as `Gallery.open` and `MilvusStore.open`.
        InvalidConfig: a URL that cannot be read.
        MissingExtra: a URL, without the package that it needs.
    """
    if not is_milvus(location):
        return Gallery.open(Path(location), fingerprint=fingerprint, frame=frame, writable=writable, exact=exact)
    from seisbind.index.milvus_store import MilvusStore

    return MilvusStore.open(str(location), fingerprint=fingerprint, frame=frame, writable=writable)
