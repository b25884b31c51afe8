"""Where and when a record was taken, and the way from any record to the frame that the encoders see.

Traces with positions sorted into a line; a line's gathers on the frame's grid.
"""

__all__ = ["line", "preparation"]
