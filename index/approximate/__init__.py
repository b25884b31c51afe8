"""Approximate search with a recall that was measured: `lists` finds candidates, `recall` measures them, `probe` goes on
measuring, `info` describes. What is found is ranked again exactly by those who search.
"""

__all__ = ["info", "lists", "probe", "recall"]
