"""Encoders and a gallery as one thing that answers gathers, in process: no sockets here or below.

The server and the command line both ask it.
"""

__all__ = ["answers", "bodies", "engine", "gallery_builder", "query"]
