"""Records against the wave equation: forward modelling through a record's own line, and the source estimated from it.

`check` judges velocity models by that; `observed`, `forward` and `source` are what an inversion is made of too.
"""

__all__ = ["check", "observed"]
