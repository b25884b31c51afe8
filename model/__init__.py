"""What is learned or physical: surveys, velocity models, wavefields, encoders and their weights."""

if __name__ != "seisbind.model":
    raise ImportError(f"imported as {__name__!r}; write 'import seisbind.model' (after 'pip install -e .')")
