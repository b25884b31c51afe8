"""Encoders and a gallery that answer gathers together, in process: no sockets here or below.

The server and the command line both use it.
"""

__all__ = [
    "answers",
    "bodies",
    "check",
    "check_bodies",
    "engine",
    "gallery_builder",
    "inspection",
    "keep",
    "query",
    "refine",
    "section",
    "section_file",
]
