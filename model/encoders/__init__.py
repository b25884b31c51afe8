"""The networks, the file that they are kept in, and what runs them.

Who answers gathers needs `embedder` alone.
"""

__all__ = ["embedder", "growth", "networks", "weights_file"]
