"""The clients of a server, waiting and awaited; they load neither torch nor FAISS.

`client` has both; `calls` says what each call sends and how its answer is read; `parts` cuts long stacks.
"""

__all__ = ["calls", "client", "parts"]
