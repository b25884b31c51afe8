"""What a gallery in Milvus is made of: its URL, calls that end in time, its rows and filters, its maps elsewhere.

`seisbind.index.milvus_store` puts them together.
"""

__all__ = ["census", "connection", "expressions", "location", "maps", "rows"]
