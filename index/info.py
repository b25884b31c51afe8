"""A gallery in numbers: what it holds, and how its descriptors are distributed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from seisbind.index.approximate.info import ApproximateInfo
from seisbind.index.storage.record import Histogram
from seisbind.model.frame import OPENFWI_FRAME, Frame

HISTOGRAM_PARTS = 24  # as many bars as a small plot can show


@dataclass(frozen=True)
class GalleryInfo:
    """The description of a gallery.

    Attributes:
        path: of the folder, or the URL of a store elsewhere.
        families: how many models each has.
        descriptor_ranges: name → (lowest, highest) over all models; empty for an empty gallery.
        bytes: size of the folder; 0 where the store cannot say.
        created_at: ISO 8601, UTC.
        frame: of its models and embeddings.
        precision_m_s: each velocity may differ by this much from the one that was given; 0: none does.
        notes: sentences on snapshots that were not used when the gallery was opened, and on where it is searched.
        digest: 16 digits that follow from the models and their order: two equal ones, the same content.
        search_device: what searches it, ``cpu`` or ``cuda:0``.
        approximate: the approximate index of a very large gallery with its measured recalls, served or not.
        searched: ``approximate`` where that is searched, else ``exact``.
    """

    path: Path | str
    count: int
    families: dict[str, int]
    fingerprint: str
    dimension: int
    format_version: int
    generation: int
    bytes: int
    created_at: str
    descriptor_ranges: dict[str, tuple[float, float]]
    notes: tuple[str, ...]
    frame: Frame = OPENFWI_FRAME
    digest: str = ""
    search_device: str = "cpu"
    precision_m_s: float = 0.0
    approximate: ApproximateInfo | None = None
    searched: str = "exact"

    @property
    def stamp(self) -> str:
        """Generation and half of the digest: short, and two equal ones are the same content."""
        return f"{self.generation}-{self.digest[:8]}" if self.digest else str(self.generation)

    @cached_property  # every answer says it, and the disk is looked at for it
    def name(self) -> str:
        """Of the folder or the collection, for people."""
        return self.path.resolve().name if isinstance(self.path, Path) else self.path.partition("?")[0].split("/")[-1]

    @property
    def bytes_per_model(self) -> float:
        """All files of the gallery over its models; 0 for an empty one."""
        return self.bytes / self.count if self.count else 0.0

    @property
    def search_text(self) -> str:
        """How it is searched, one line for people."""
        found = self.approximate
        if found is None:
            return "search exact"
        filtered = ", ".join(f"{share} % {recall:.4f}" for share, recall in found.filtered.items())
        return (
            f"search {self.searched}; index of {found.models} models: {found.bytes / 1e6:.1f} MB, {found.probes} of "
            f"{found.lists} lists, recall@10 {found.recall:.4f}, recall@{found.deepest} {found.recall_deepest:.4f}, "
            f"under filters (exact) of {filtered}"
        )


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a gallery's descriptors are distributed: name → histogram of `HISTOGRAM_PARTS`; empty for an empty one."""

    generation: int
    histograms: dict[str, Histogram]
