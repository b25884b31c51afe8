"""How far an answer can be trusted.

Novelty of a gather, probability that its velocity model is in the gallery, and the order of its matches.
"""

__all__ = ["novelty", "presence", "ranking"]
