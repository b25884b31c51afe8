"""How far a reading can be trusted.

Whether a gather is like those of training, whether its ground is in the gallery, and the order of matches where it is not.
"""

__all__ = ["novelty", "presence", "ranking"]
