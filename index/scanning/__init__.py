"""Going through all vectors for those that may be among the best: in eight bits, with bounds that leave out nothing."""

__all__ = ["codes", "shortlist"]
