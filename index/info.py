"""A gallery in numbers: what it holds, and how its descriptors are distributed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from seisbind.index.approximate.info import ApproximateInfo
from seisbind.index.storage.record import Histogram
from seisbind.model.frame import OPENFWI_FRAME, Frame

HISTOGRAM_PARTS = 24  # as many bars as a small plot can show


@dataclass(frozen=True, slots=True)
class GalleryInfo:
    """The description of a gallery.

    Attributes:
        families: how many models each has.
        descriptor_ranges: name → (lowest, highest) over all models; empty for an empty gallery.
        bytes: size of the folder.
        created_at: ISO 8601, UTC.
        frame: of its models and embeddings.
        notes: sentences on snapshots that were not used when the gallery was opened.
        approximate: the approximate index of a very large gallery with its measured recalls, served or not.
        searched: ``approximate`` where that is searched, else ``exact``.
    """

    path: Path
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
    approximate: ApproximateInfo | None = None
    searched: str = "exact"

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
