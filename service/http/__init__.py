"""The HTTP API: its routes, their bodies, the page, and the server that runs them.

`server.serve` is the way in; `app.create_app` makes what it runs.
"""

__all__ = ["parameters", "server"]
