"""What is known of an approximate index: how it was made, and which share of the true matches it finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

FLOOR = 0.99  # an index that finds less of the ten best than this is not served
DEPTH = 10  # matches that recall is of


@dataclass(frozen=True, slots=True)
class ApproximateInfo:
    """An approximate index as the snapshot that holds it describes it.

    Attributes:
        models: that it holds; those added since are searched exactly.
        lists: parts that the vectors were divided into.
        probes: lists that are looked through for a query.
        candidates: vectors whose similarities are taken exactly, for each query.
        deepest: more matches than this are searched exactly.
        bytes: of the index.
        recall: share of the exact `DEPTH` best that is found, over sample queries that chose nothing, of the kind of
            them of which it is least.
        recall_deepest: share of the exact ``deepest`` best, over all of them.
        filtered: share of the exact `DEPTH` best under a random filter that allows a share of the models, by that
            share in per cent. What has a filter is searched exactly, and so measured.
        samples: queries that each figure is of.
        served: whether it is searched: recall, also under filters, is at least `FLOOR`.
    """

    models: int
    lists: int
    probes: int
    candidates: int
    deepest: int
    bytes: int
    recall: float
    recall_deepest: float
    filtered: dict[str, float] = field(hash=False)
    samples: int
    served: bool

    @classmethod
    def parse(cls, facts: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises TypeError where ``facts`` are of anything else."""
        found = cls(**facts)
        whole = (found.models, found.lists, found.probes, found.candidates, found.deepest, found.bytes, found.samples)
        if not isinstance(found.filtered, dict) or type(found.served) is not bool:
            raise TypeError("an approximate index is described by facts of another kind")
        shares = (found.recall, found.recall_deepest, *found.filtered.values())
        if not all(type(each) is int for each in whole) or not all(type(each) in (int, float) for each in shares):
            raise TypeError("an approximate index is described by facts of another kind")
        return found

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def refusal(self) -> str:
        """Why it is not served, one sentence."""
        least = min(self.recall, self.recall_deepest, *self.filtered.values())
        return (
            f"Search is exact: the approximate index found {least:.4f} of the true matches of {self.samples} sample "
            f"queries, and at least {FLOOR} is served."
        )
