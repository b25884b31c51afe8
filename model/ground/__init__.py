"""Velocity models: the thirteen descriptors of one, and random ones of many families.

One describes a model, the other draws models; how layers, faults and textures are drawn is their own affair.
"""

__all__ = ["descriptors", "families"]
