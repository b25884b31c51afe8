"""Gathers beside their velocity models, on disk and in memory.

OpenFWI's files, simulated files of that layout, pairs prepared for training, and acquisitions drawn at random.
"""

__all__ = ["openfwi", "pairs", "simulation"]
