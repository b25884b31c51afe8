"""How far an answer can be trusted.

Intervals, novelty of a gather, probability that its velocity model is in the gallery, and the order of its matches.
"""

__all__ = ["distinct", "intervals", "novelty", "presence", "ranking"]
