"""Shot gathers of velocity models, by a wave equation.

One call, `wavefield.simulate`, for deepwave and for OpenFWI's own operator.
"""

__all__ = ["wavefield"]
