"""Shot gathers of velocity models, by the wave equation.

`wavefield.simulate` runs deepwave or OpenFWI's own operator; `wavelet` has the source wavelets.
"""

__all__ = ["wavefield", "wavelet"]
