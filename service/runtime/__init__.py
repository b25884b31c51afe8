"""What a running server owns: threads, batches, the current gallery, metrics, logs.

`serving.Serving` holds them together.
"""

__all__ = [
    "batcher",
    "check_picture",
    "images",
    "logs",
    "metrics",
    "npy_stream",
    "npz_answer",
    "record_picture",
    "request_body",
    "sections",
    "serving",
    "watch",
]
