"""How people and pipelines reach SeisBind: the engine, the HTTP server, the command line."""

if __name__ != "seisbind.service":
    raise ImportError(f"imported as {__name__!r}; write 'import seisbind.service' (after 'pip install -e .')")
