"""Work on whole galleries, in the memory of a few models: merge, export, back up, restore, look for equal maps."""

__all__ = ["backup", "duplicates", "export", "merge"]
