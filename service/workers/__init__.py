"""Several processes that serve behind one port: who starts and ends them, and what they tell each other."""

__all__ = ["board", "supervisor"]
