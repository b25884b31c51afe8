"""What a running server owns: threads, batches, the current gallery, metrics, logs.

`serving.Serving` holds them together.
"""

__all__ = ["batcher", "images", "logs", "metrics", "record_picture", "request_body", "sections", "serving"]
