"""``seisbind gallery copy`` and ``sweep``: what only galleries in Milvus need."""

from __future__ import annotations

from typing import Annotated

import typer

UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="As in milvus://HOST:PORT/COLLECTION?maps=s3://…")]


def copy(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder of the gallery to copy, or its URL.")],
    url: UrlArgument,
) -> None:
    """Copy a gallery into Milvus, embeddings and all; the same command goes on where it was interrupted."""
    from seisbind.index import open_store
    from seisbind.index.copying import copy_gallery
    from seisbind.service.commands.console import counting

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
