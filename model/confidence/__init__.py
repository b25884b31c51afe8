"""How far a reading can be trusted.

Whether a gather is like those of training, whether its ground is in the gallery, how matches are ordered.
"""

__all__ = ["novelty", "presence", "ranking"]
