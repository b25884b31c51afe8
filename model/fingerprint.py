"""Which weights made a gallery's embeddings, and whether others would make the same ones to the bit.

A gallery holds what the velocity and the physics encoder say of its models. Training may leave both as they were, and
change only how gathers are read (recipes that are `locked`, or train `errors_only`): then the gallery is the one that
would be built again, and is served as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

KEEPING = ("errors_only", "locked")  # recipes that train neither the velocity nor the physics encoder


class Fingerprint(str):
    """The fingerprint of weights; with it that of their embeddings, and other weights of the same embeddings.

    As a string it is the fingerprint alone, and two are equal where their weights are.

    Attributes:
        embeddings: of all that a gallery's embeddings depend on; empty where it is not known.
        same: fingerprints of the weights that these were trained from, as far back as embeddings were kept.
    """

    __slots__ = ("embeddings", "same")

    embeddings: str
    same: frozenset[str]

    def __new__(cls, value: str, *, embeddings: str = "", same: frozenset[str] = frozenset()) -> Self:
        made = super().__new__(cls, value)
        made.embeddings, made.same = embeddings, same
        return made


def embeds_alike(weights: str, gallery: str, gallery_embeddings: str | None) -> bool:
    """Whether ``weights`` would give a gallery the embeddings that it holds, to the bit.

    Args:
        weights: a `Fingerprint`, or a string, which is compared as it is.
        gallery: fingerprint of the weights that made the gallery.
        gallery_embeddings: `Fingerprint.embeddings` of those; None where the gallery does not say.
    """
    if weights == gallery:
        return True
    if not isinstance(weights, Fingerprint):
        return False
    if gallery_embeddings and weights.embeddings:
        return weights.embeddings == gallery_embeddings
    return gallery in weights.same


def kept_since(training: Mapping[str, Any], embeddings: str) -> frozenset[str]:
    """Fingerprints of the weights that training went on from without changing embeddings, as it was recorded.

    Each step back has to be one of a recipe that is `KEEPING`, and where the record of a start has its embeddings'
    fingerprint, that has to be ``embeddings``, which those that are described have. The chain ends at the first that
    does not.
    """
    found: set[str] = set()
    step: object = training
    while isinstance(step, Mapping):
        config, start = step.get("config"), step.get("start")
        if not isinstance(config, Mapping) or not any(config.get(name) is True for name in KEEPING):
            break
        before = start.get("fingerprint") if isinstance(start, Mapping) else start
        if not isinstance(before, str) or not before:
            break
        if isinstance(start, Mapping) and start.get("embeddings", embeddings) != embeddings:
            break
        found.add(before)
        step = start
    return frozenset(found)
