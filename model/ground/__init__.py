"""Velocity models: their thirteen descriptors, and random models of many families.

Families combine the layers, faults and textures of this room.
"""

__all__ = ["descriptors", "families"]
