"""``seisbind gallery publish``, ``copy`` and ``sweep``: galleries that are not in a folder of this host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="As in milvus://HOST:PORT/COLLECTION?maps=s3://…")]


def register(app: typer.Typer) -> None:
    """Put the commands of this module into ``app``."""
    for command in (publish, copy, sweep):
        app.command()(command)


def publish(
    path: Annotated[Path, typer.Argument(help="Folder of the gallery; it may be served and written meanwhile.")],
    url: Annotated[str, typer.Argument(help="s3://BUCKET/PATH, gs://BUCKET/PATH or file:///FOLDER.")],
    workspace: Annotated[
        Path | None, typer.Option(help="Folder for a copy while it is uploaded; default: beside the gallery.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Upload a gallery for servers whose --gallery is that URL; they see the old one or the new one, whole."""
    import json

    from seisbind.index.replicas.publish import publish as run

    found = run(path, url, workspace=workspace)
    manifest = found.manifest
    if as_json:
        facts = {"generation": manifest.stamp, "models": manifest.count, "bytes": manifest.total_bytes}
        print(json.dumps(facts | {"sent_bytes": found.sent, "changed": found.changed}))
        return
    state = (
        f"{found.sent / 1e6:.1f} of {manifest.total_bytes / 1e6:.1f} MB sent" if found.changed else "published already"
    )
    print(f"{url}: generation {manifest.stamp}, {manifest.count} velocity models, {state}")


def copy(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder of the gallery to copy, or its URL.")],
    url: UrlArgument,
) -> None:
    """Copy a gallery into Milvus, embeddings and all; the same command goes on where it was interrupted."""
    from seisbind.index import open_store
    from seisbind.index.copying import copy_gallery
    from seisbind.service.terminal.console import counting

    with open_store(path, fingerprint=None) as source:
        with counting("Copying", len(source)) as progress:
            added = copy_gallery(source, url, progress=progress)
        print(f"{url}: {added} velocity models copied from {path}")


def sweep(url: UrlArgument) -> None:
    """Remove maps that no model names any more, and what interrupted changes have left; nobody may add meanwhile."""
    from seisbind.index.milvus_store import MilvusStore

    with MilvusStore.open(url, fingerprint=None, writable=True) as store:
        maps, embeddings = store.sweep()
        print(f"{url}: {maps} maps and {embeddings} embeddings removed, {len(store)} velocity models kept")
