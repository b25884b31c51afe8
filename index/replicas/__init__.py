"""Galleries that are published to an object store, and the copies that servers without a shared disk serve.

`publish` uploads one; `source` is where a server has its gallery from, a folder or a URL.
"""

__all__ = ["publish", "source"]
