"""What can be retrieved: the gallery of velocity models, its record store and its nearest-neighbour indices."""

if __name__ != "seisbind.index":
    raise ImportError(f"imported as {__name__!r}; write 'import seisbind.index' (after 'pip install -e .')")
