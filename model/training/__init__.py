"""From pairs to calibrated weights, and their report.

Recipe, augmentation, loss, the loop, calibration on held-out pairs, evaluation.
"""

__all__ = ["augment", "calibration", "evaluation", "recipe", "run", "trainer"]
