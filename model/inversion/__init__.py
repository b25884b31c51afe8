"""Records against the wave equation: forward modelling through a record's own line, and the source estimated from it.

`check` judges velocity models by that, `refinement` makes them explain the record; `observed`, `forward` and `source`
are what both are made of.
"""

__all__ = ["check", "forward", "observed", "refinement", "source"]
