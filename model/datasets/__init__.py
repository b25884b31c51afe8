"""Pairs of gathers and velocity models, on disk and in memory.

OpenFWI's files, simulated files of that layout, prepared pairs for training, and random acquisitions.
"""

__all__ = ["acquisition", "openfwi", "own_survey", "pairs", "simulation", "writer"]
