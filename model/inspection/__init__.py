"""What a record is, before anything is asked about it: its spread, its band, its noise, its wavelet, its scale.

Nothing here maps a record to a frame, so any geometry can be looked at.
"""

__all__ = ["signal", "spread", "traces"]
