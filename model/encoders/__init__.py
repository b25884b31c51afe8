"""The networks, their weights file, and the runtimes that execute them.

To embed gathers, velocity models and descriptors, use `embedder`.
"""

__all__ = ["config", "embedder", "growth", "networks", "seismic", "weights_file"]
