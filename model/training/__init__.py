"""From pairs to calibrated weights, and their report.

The whole run is `run`; recipe, augmentation, loss, training loop, calibration and evaluation are its parts.
"""

__all__ = ["calibration", "evaluation", "ranks", "recipe", "run", "trainer"]
