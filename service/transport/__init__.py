"""What a request meets before any route, and an answer after it.

Connections and their limits, request log, keys, limits on bodies, and the one shape of an error.
"""

__all__ = ["access", "audit", "guard", "keys", "problems", "protocol", "request_log"]
