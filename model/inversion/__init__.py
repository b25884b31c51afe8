"""Records against the wave equation: `forward` modelling through a record's own line, the source estimated from it.

`check` judges velocity models by that, `beside` does so in a process of its own, `refinement` makes them explain the
record (`refined`: what it is asked and answers); `observed` is what all compare.
"""

__all__ = ["beside", "check", "forward", "interval", "observed", "refined", "refinement"]
